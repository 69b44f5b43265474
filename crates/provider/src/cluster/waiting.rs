//! Waiting until something is done.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::Provider;
use super::objects::{VMIS, VMS};
use crate::wait::{Goal, Progress, judge};
use crate::{Error, Kind, VmId};

/// How soon it is looked at again at first, and at most.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Looks at something until it is done or the time is up; `note` is told where it stands.
pub(super) async fn until<T, F: Future<Output = Result<(Progress, T), Error>>>(
    doing: &str,
    timeout: Duration,
    note: &mut (dyn FnMut(&str) + Send),
    mut look: impl FnMut() -> F,
) -> Result<T, Error> {
    let end = Instant::now() + timeout;
    let mut interval = INTERVAL.0;
    loop {
        let standing = match look().await? {
            (Progress::Done, found) => return Ok(found),
            (Progress::Failed(why), _) => {
                let remedy = "look at its conditions and events: `virt-steward vm describe`";
                return Err(Error::new(Kind::WrongState, doing, why, remedy));
            }
            (Progress::Waiting(standing), _) => standing,
        };
        note(&standing);
        let now = Instant::now();
        if now >= end {
            let wrong = format!("not done after {} s; it stands at: {standing}", timeout.as_secs());
            let remedy = "give it more time with `--timeout`; it may still happen";
            return Err(Error::new(Kind::Timeout, doing, wrong, remedy));
        }
        tokio::time::sleep(interval.min(end - now)).await;
        interval = (interval * 2).min(INTERVAL.1);
    }
}

impl Provider {
    /// Waits until a VM is where it should be; `note` is told where it stands meanwhile.
    pub async fn wait(
        &self,
        vm: &VmId,
        goal: &Goal,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Error> {
        let doing = format!("waiting for VM `{vm}`");
        let doing = doing.as_str();
        until(doing, timeout, note, || async move {
            let (object, instance) = futures::join!(async { self.find(&VMS.of(vm), doing).await }, async {
                self.find(&VMIS.of(vm), doing).await
            });
            Ok((judge(goal, object?.as_ref(), instance?.as_ref()), ()))
        })
        .await
    }
}
