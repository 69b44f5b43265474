//! What is told about a step: an Event on the VMI, and what metrics count.

use crate::ledger::{Cause, Ledger, Phase, Then};
use crate::machine::{Seen, Step};
use crate::quantity::show_bytes;
use crate::size::Size;

/// How a resize ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// Pod, guest and VMI have the new size.
    Done,
    /// The owner took it back, or switched it off; everything is as before.
    Withdrawn,
    /// Given up; everything is as before.
    PutBack,
    /// KubeVirt does it its own way.
    LeftToKubevirt,
}

impl Outcome {
    /// Its name, for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Withdrawn => "withdrawn",
            Self::PutBack => "put-back",
            Self::LeftToKubevirt => "left-to-kubevirt",
        }
    }
}

/// One thing that is worth an Event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// An Event of type `Warning`, not `Normal`.
    pub warning: bool,
    /// The Event's reason.
    pub reason: &'static str,
    /// Its message.
    pub message: String,
    /// The resize ended with it.
    pub outcome: Option<Outcome>,
    /// What stood in its way.
    pub cause: Option<Cause>,
}

impl Notice {
    fn normal(reason: &'static str, message: String) -> Self {
        Self { warning: false, reason, message, outcome: None, cause: None }
    }

    fn warning(reason: &'static str, message: String, cause: Cause) -> Self {
        Self { warning: true, cause: Some(cause), ..Self::normal(reason, message) }
    }

    fn ending(self, outcome: Outcome) -> Self {
        Self { outcome: Some(outcome), ..self }
    }

    /// The API server refused the pod's new resources: quota, LimitRange, the node's size.
    pub fn refused(words: &str) -> Self {
        Self::warning(
            "ResizeRefused",
            format!("the pod's new resources were refused: {words}"),
            Cause::Refused,
        )
    }
}

fn show(size: Size) -> String {
    let plural = if size.sockets == 1 { "" } else { "s" };
    format!("{} socket{plural} and {}", size.sockets, show_bytes(size.guest))
}

/// What a step tells; nothing for most. It is told after the step has been written, so that a
/// step that met a conflict is not told twice.
pub fn of(seen: &Seen, step: &Step) -> Option<Notice> {
    let before = seen.ledger.as_ref();
    match step {
        Step::Record(ledger) if before.is_none_or(|before| before.phase != ledger.phase) => {
            recorded(before, ledger)
        }
        Step::Clear => cleared(seen, before?),
        _ => None,
    }
}

fn recorded(before: Option<&Ledger>, ledger: &Ledger) -> Option<Notice> {
    let why = || ledger.reason.as_ref().map(ToString::to_string).unwrap_or_default();
    let cause = ledger.reason.as_ref().map_or(Cause::Error, |reason| reason.cause);
    let ways = || format!("from {} to {}", show(ledger.from.size), show(ledger.to.size));
    match ledger.phase {
        Phase::Preparing if before.is_none_or(|before| !before.phase.is_under_way()) => {
            Some(Notice::normal("ResizeStarted", format!("resizing in place {}", ways())))
        }
        Phase::Returning if cause.is_wanted() => {
            let message = format!("the resize {} is taken back ({})", ways(), why());
            Some(Notice { cause: Some(cause), ..Notice::normal("ResizeWithdrawn", message) })
        }
        Phase::Returning => {
            let next = match ledger.then {
                Then::Open => "the pod is put back, then KubeVirt migrates",
                Then::Retry => "the pod is put back, and it is tried again later",
                Then::Stop | Then::Forget => "the pod is put back",
            };
            let message = format!("not resized {}: {}; {next}", ways(), why());
            Some(Notice::warning("ResizeGivenUp", message, cause))
        }
        Phase::Open => {
            let message = format!("left to KubeVirt {}: {}", ways(), why());
            Some(Notice::warning("ResizeLeftToKubeVirt", message, cause).ending(Outcome::LeftToKubevirt))
        }
        Phase::Stopped => {
            let message = format!("everything is as it was, {}: {}", show(ledger.from.size), why());
            let ended = Notice::warning("ResizeStopped", message, cause);
            Some(ended.ending(if cause.is_wanted() { Outcome::Withdrawn } else { Outcome::PutBack }))
        }
        Phase::Preparing | Phase::Plugging | Phase::Declaring | Phase::Trimming => None,
    }
}

fn cleared(seen: &Seen, before: &Ledger) -> Option<Notice> {
    let vmi = &seen.vmi;
    match before.phase {
        Phase::Returning => {
            let message = format!("everything is as it was, {}", show(before.from.size));
            Some(Notice::normal("ResizeTakenBack", message).ending(Outcome::Withdrawn))
        }
        phase if phase.is_under_way() && vmi.size == before.to.size && vmi.status == vmi.size => {
            let message =
                format!("resized in place from {} to {}", show(before.from.size), show(before.to.size));
            Some(Notice::normal("ResizeDone", message).ending(Outcome::Done))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{End, Reason};
    use crate::machine::Vmi;
    use crate::resources::Rules;

    const SMALL: Size = Size { sockets: 1, guest: 1 << 30 };
    const LARGE: Size = Size { sockets: 4, guest: 2 << 30 };

    fn ledger(phase: Phase, cause: Option<Cause>, then: Then) -> Ledger {
        let end = |size| End { size, ..End::default() };
        Ledger {
            phase,
            pod: "p".into(),
            from: end(SMALL),
            to: end(LARGE),
            since: 0,
            begun: 0,
            touched: false,
            task: None,
            reason: cause.map(|cause| Reason::new(cause, "words")),
            then,
            retry_at: None,
            refusal: None,
        }
    }

    fn seen(before: Option<Ledger>, size: Size) -> Seen {
        Seen {
            wanted: None,
            vmi: Vmi { size, status: size, ..Vmi::default() },
            pod: None,
            migrating: false,
            report: None,
            ledger: before,
            wish: None,
            obstacles: Vec::new(),
            rules: Rules::default(),
            may_declare: false,
        }
    }

    #[test]
    fn beginning_end_and_every_refusal_are_told_and_steps_between_are_not() {
        let at = |phase| Some(ledger(phase, None, Then::Forget));
        let to = |phase, cause, then| Step::Record(ledger(phase, cause, then));
        let quota = Some(Cause::Refused);
        let cases = [
            (None, to(Phase::Preparing, None, Then::Forget), SMALL, "ResizeStarted", None),
            (at(Phase::Stopped), to(Phase::Preparing, None, Then::Forget), SMALL, "ResizeStarted", None),
            (at(Phase::Plugging), to(Phase::Preparing, None, Then::Forget), SMALL, "", None),
            (at(Phase::Preparing), to(Phase::Plugging, None, Then::Forget), SMALL, "", None),
            (at(Phase::Preparing), to(Phase::Preparing, None, Then::Forget), SMALL, "", None),
            (at(Phase::Preparing), to(Phase::Returning, quota, Then::Open), SMALL, "ResizeGivenUp", None),
            (
                at(Phase::Preparing),
                to(Phase::Returning, Some(Cause::Withdrawn), Then::Forget),
                SMALL,
                "ResizeWithdrawn",
                None,
            ),
            (
                at(Phase::Returning),
                to(Phase::Open, quota, Then::Open),
                SMALL,
                "ResizeLeftToKubeVirt",
                Some(Outcome::LeftToKubevirt),
            ),
            (
                at(Phase::Returning),
                to(Phase::Stopped, quota, Then::Stop),
                SMALL,
                "ResizeStopped",
                Some(Outcome::PutBack),
            ),
            (at(Phase::Returning), Step::Clear, SMALL, "ResizeTakenBack", Some(Outcome::Withdrawn)),
            (at(Phase::Declaring), Step::Clear, LARGE, "ResizeDone", Some(Outcome::Done)),
            (at(Phase::Trimming), Step::Clear, LARGE, "ResizeDone", Some(Outcome::Done)),
            (at(Phase::Open), Step::Clear, LARGE, "", None),
            (None, Step::Clear, SMALL, "", None),
        ];
        for (before, step, size, reason, outcome) in cases {
            let notice = of(&seen(before.clone(), size), &step);
            let told = notice.as_ref().map_or("", |notice| notice.reason);
            assert_eq!(told, reason, "{before:?} {step:?}");
            assert_eq!(notice.and_then(|notice| notice.outcome), outcome, "{before:?} {step:?}");
        }
        let step = to(Phase::Returning, quota, Then::Retry);
        let notice = of(&seen(at(Phase::Preparing), SMALL), &step).unwrap();
        assert_eq!(
            notice.message,
            "not resized from 1 socket and 1Gi to 4 sockets and 2Gi: Refused: words; \
             the pod is put back, and it is tried again later"
        );
        assert!(notice.warning && notice.cause == quota);
    }
}
