//! Tells how far disks are that are written one behind the other, each by itself.
//!
//! ```text
//!  what is written   a ────────┐ b ──┐        a ────────┐ b ──┐     (twice where it cannot be gone back)
//!  what is told      a started … b started …  a started … b started …
//! ```

use std::sync::Arc;

use image::Progress;
use tokio_util::sync::CancellationToken;

use super::{Event, ExportDisk, Listener};
use crate::Prefetch;

/// See the module.
pub(super) struct Tell {
    listener: Listener,
    stop: CancellationToken,
    /// Names and sizes.
    disks: Vec<(String, u64)>,
    prefetch: Option<Arc<Prefetch>>,
    /// The pass and the disk at work.
    at: Option<(u8, usize)>,
    /// Data and stored bytes of the disks before.
    before: (u64, u64),
}

impl Tell {
    pub fn new(
        disks: &[ExportDisk],
        prefetch: Option<Arc<Prefetch>>,
        listener: &Listener,
        stop: &CancellationToken,
    ) -> Self {
        let disks = disks.iter().map(|disk| (disk.volume.name.clone(), disk.source.size())).collect();
        let (listener, stop) = (listener.clone(), stop.clone());
        Self { listener, stop, disks, prefetch, at: None, before: (0, 0) }
    }

    /// How far all of it is; `false`: it is to stop. What is done counts whole sectors of the disks before.
    pub fn progress(&mut self, now: Progress) -> bool {
        let mut start = 0;
        let last = self.disks.len().saturating_sub(1);
        for number in 0..=last {
            let size = self.disks.get(number).map_or(0, |(_, size)| *size);
            let end = start + if number < last { size.next_multiple_of(512) } else { size };
            if now.done <= end || number == last {
                self.one(number, now.done.saturating_sub(start).min(size), now);
                break;
            }
            start = end;
        }
        !self.stop.is_cancelled()
    }

    fn one(&mut self, number: usize, done: u64, now: Progress) {
        let Some((disk, size)) = self.disks.get(number).cloned() else { return };
        if self.at != Some((now.passes_left, number)) {
            self.at = Some((now.passes_left, number));
            self.before = if number == 0 { (0, 0) } else { (now.data, now.stored) };
            let passes_left = now.passes_left;
            (self.listener)(Event::Started { disk: disk.clone(), size, done: 0, passes_left });
        }
        let fetched = self.prefetch.as_ref().map_or(done, |prefetch| prefetch.fetched());
        (self.listener)(Event::Progress {
            disk,
            size,
            done,
            data: now.data.saturating_sub(self.before.0),
            stored: now.stored.saturating_sub(self.before.1),
            fetched,
            passes_left: now.passes_left,
        });
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn each_disk_is_told_of_by_itself_and_in_each_pass() {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let tells = told.clone();
        let listener: Listener = Arc::new(move |event| {
            tells.lock().push(match event {
                Event::Started { disk, size, passes_left, .. } => format!("{disk} {size} {passes_left}"),
                Event::Progress { disk, done, data, stored, .. } => format!("{disk} {done} {data} {stored}"),
                other => format!("{other:?}"),
            });
        });
        let stop = CancellationToken::new();
        let mut tell = Tell {
            listener,
            stop: stop.clone(),
            disks: vec![("a".into(), 1000), ("b".into(), 300)],
            prefetch: None,
            at: None,
            before: (0, 0),
        };
        for (passes_left, done, data, stored) in [
            (1, 500, 100, 10),
            (1, 1000, 200, 20),
            (1, 1324, 250, 25),
            (0, 1000, 200, 20),
            (0, 1324, 250, 25),
        ] {
            assert!(tell.progress(Progress { done, total: 1300, data, stored, passes_left }));
        }
        let expected = [
            "a 1000 1",
            "a 500 100 10",
            "a 1000 200 20",
            "b 300 1",
            "b 300 0 0",
            "a 1000 0",
            "a 1000 200 20",
            "b 300 0",
            "b 300 0 0",
        ];
        assert_eq!(*told.lock(), expected);
        stop.cancel();
        assert!(!tell.progress(Progress::default()));
    }
}
