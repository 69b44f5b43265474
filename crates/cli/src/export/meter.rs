//! Progress: one line on a terminal for each disk, or events as lines of JSON.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use ::export::run::Event;
use serde::Serialize;

use super::{Args, Output};
use crate::progress::{Line, Pace, Reached, mib};

/// Who shows progress. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Meter(Arc<Inner>);

struct Inner {
    json: bool,
    pipe: bool,
    quiet: bool,
    line: Mutex<Line>,
}

/// An event of progress, with what follows from it.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    event: &'a Event,
    #[serde(flatten)]
    pace: Pace,
}

impl Meter {
    pub fn new(args: &Args) -> Self {
        let json = args.o == Output::Json;
        let line = Mutex::new(Line::new(args.quiet || json));
        Self(Arc::new(Inner { json, pipe: args.pipe(), quiet: args.quiet, line }))
    }

    fn line(&self) -> std::sync::MutexGuard<'_, Line> {
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows an event.
    pub fn event(&self, event: &Event) {
        if let Event::Started { done, .. } = event {
            self.line().begin(*done);
        }
        if self.0.json {
            self.tell(event);
        } else if !self.0.quiet {
            self.draw(event);
        }
    }

    fn tell(&self, event: &Event) {
        let text = match done(event) {
            None => serde_json::to_string(event),
            Some((_, now)) => match self.line().due(now) {
                Some(pace) => serde_json::to_string(&Told { event, pace }),
                None => return,
            },
        };
        if let Ok(text) = text {
            line(self.0.pipe, &text);
        }
    }

    fn draw(&self, event: &Event) {
        let mut line = self.line();
        match event {
            Event::Started { disk, size, done, passes_left } if !line.is_drawn() => {
                let from = match (*done, *passes_left) {
                    (0, 0) => String::new(),
                    (0, _) => ", measuring first".into(),
                    (done, _) => format!(", going on at {:.0} MiB", mib(done)),
                };
                eprintln!("{disk}: {:.0} MiB{from}", mib(*size));
            }
            Event::Verifying { disk } => line.text(&format!("{disk}: verifying")),
            Event::Warning { message } => eprintln!("warning: {message}"),
            _ => {
                if let Some((disk, now)) = done(event) {
                    line.draw(disk, now);
                }
            }
        }
    }

    /// Takes the line away.
    pub fn clear(&self) {
        self.line().clear();
    }
}

/// How far which disk is.
fn done(event: &Event) -> Option<(&str, Reached)> {
    let Event::Progress { disk, size, done, data, stored, passes_left, .. } = event else { return None };
    let (size, done, data, stored, passes_left) = (*size, *done, *data, *stored, *passes_left);
    Some((disk, Reached { size, done, data, stored, passes_left }))
}

/// A line of JSON: on standard output, unless the disk itself goes there.
pub fn line(pipe: bool, text: &str) {
    // Nobody reads any more: no reason to give the export up.
    let _ = if pipe { writeln!(std::io::stderr(), "{text}") } else { writeln!(std::io::stdout(), "{text}") };
}
