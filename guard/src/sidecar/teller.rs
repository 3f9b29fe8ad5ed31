//! What the event loops tell the hub.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guard_core::gate::Gate;
use guard_core::model::{Instant, Unit};
use guard_core::restart::{Step, UnitDetails};
use guard_core::timeline::Entry;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::warn;

use super::hub::{Notice, What};
use crate::report::{Body, Exit, outcome_code, restart_end, unit_notes, unit_words};
use crate::runtime::engine::{End, RunInfo, Service, Witness};
use crate::runtime::{SystemdError, Tier};

/// Tells the hub, from the thread of an event loop.
#[derive(Debug)]
pub(super) struct Teller {
    pub(super) names: Vec<Arc<str>>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) ends: mpsc::UnboundedSender<Notice>,
    pub(super) overrun: Arc<AtomicU64>,
}

impl Teller {
    /// Never waits: what does not fit is counted, but for the end of a run, which goes another way.
    fn tell(&self, at: Instant, service: Option<&Arc<str>>, what: What) {
        let notice = match self.notices.try_send(Notice { at, service: service.cloned(), what }) {
            Ok(()) => return,
            Err(TrySendError::Full(notice) | TrySendError::Closed(notice)) => notice,
        };
        if matches!(notice.what, What::Run(_, _, Body::RunFinished { .. })) {
            // Nobody listens any more: the sidecar is on its way out.
            let _gone = self.ends.send(notice);
        } else {
            self.overrun.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Witness for Teller {
    fn entry(&mut self, run: &RunInfo, gate: &Gate, tier: Tier, at: Instant, entry: &Entry) {
        let command = run.kind.name();
        if let Some(body) = Body::of_entry(command, false, gate, tier, entry) {
            self.tell(at, Some(&run.service.name), What::Run(run.number, command, body));
        }
    }

    fn step(&mut self, run: &RunInfo, at: Instant, step: &'static str, pid: Option<u32>, text: String) {
        let what = What::Run(run.number, run.kind.name(), Body::step(step, pid, Some(text)));
        self.tell(at, Some(&run.service.name), what);
    }

    fn unit_seen(&mut self, run: &RunInfo, at: Instant, unit: &Unit, details: &UnitDetails) {
        let body = Body::unit("unit_seen", unit, details, unit_words(unit, details));
        self.tell(at, Some(&run.service.name), What::Run(run.number, run.kind.name(), body));
        for note in unit_notes(unit, details) {
            self.step(run, at, "unit_note", None, note);
        }
    }

    fn looked_ahead(&mut self, run: &RunInfo, gate: &Gate, tier: Tier, at: Instant) {
        let what = What::Run(run.number, run.kind.name(), Body::looked(gate, tier));
        self.tell(at, Some(&run.service.name), what);
    }

    fn unit_step(&mut self, run: &RunInfo, at: Instant, step: &Step) {
        let pid = match step {
            Step::Listening(process) => Some(process.tgid.0),
            _ => None,
        };
        self.step(run, at, step.code(), pid, step.to_string());
    }

    fn ended(&mut self, run: &RunInfo, _: &Gate, tier: Tier, at: Instant, end: &End<'_>) {
        let (outcome, exit, detail) = match end {
            End::Gate(outcome) => (outcome_code(outcome), Exit::of_outcome(outcome), None),
            End::Restarted(_) => ("restarted", Exit::Done, None),
            End::StartFailed(why) => ("command_failed", Exit::CommandFailed, Some(why.clone())),
            End::NoUnit(error) => {
                let word = match error {
                    SystemdError::NoUnit { .. } | SystemdError::Malformed { .. } => "no_unit",
                    _ => "manager_lost",
                };
                (word, Exit::of_systemd(error), Some(error.to_string()))
            }
            End::Obstructed(obstacle) => ("refused", Exit::Refused, Some(obstacle.to_string())),
            End::Unit(restart, end) => {
                let (word, detail) = restart_end(restart, end);
                (word, Exit::of_restart(end), detail)
            }
            End::LeftStopped(unit) => {
                let why = format!(
                    "the sidecar was asked to stop after {unit} was stopped and before it was started again: \
                     start it with systemctl"
                );
                warn!(service = &*run.service.name, "{why}");
                ("abandoned", Exit::Unknown, Some(why))
            }
            End::Abandoned(why) => ("abandoned", Exit::Unknown, Some((*why).to_owned())),
        };
        let took = at.since(run.began);
        let body = Body::finished(took, tier, outcome, exit.code(), detail);
        self.tell(at, Some(&run.service.name), What::Run(run.number, run.kind.name(), body));
    }

    fn looked(&mut self, service: &Service, gate: &Gate, tier: Tier, since: Instant, at: Instant) {
        self.tell(at, Some(&service.name), What::Looked(since, Body::looked(gate, tier)));
    }

    fn happened(&mut self, service: &Service, at: Instant, entry: &Entry) {
        if let Some(body) = Body::happened(entry) {
            self.tell(at, Some(&service.name), What::Event(body));
        }
    }

    fn happened_to_all(&mut self, at: Instant, entry: &Entry) {
        if let Some(body) = Body::happened(entry) {
            self.tell(at, None, What::Event(body));
        }
    }

    fn tier(&mut self, tier: Tier, shortfall: Option<&str>) {
        let shortfall: Option<Arc<str>> = shortfall.map(Arc::from);
        for name in &self.names {
            let what = What::Tier(tier.name(), shortfall.clone());
            self.tell(crate::runtime::now(), Some(name), what);
        }
    }

    fn guarded(&mut self, names: Vec<Arc<str>>) {
        self.names = names;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::engine::RunNumber;
    use crate::runtime::now;

    #[test]
    fn the_end_of_a_run_is_told_however_much_is_lost() {
        let (notices, mut inbox) = mpsc::channel(1);
        let (ends, mut late) = mpsc::unbounded_channel();
        let overrun = Arc::new(AtomicU64::new(0));
        let teller = Teller { names: Vec::new(), notices, ends, overrun: Arc::clone(&overrun) };
        let web: Arc<str> = "web".into();
        for _ in 0..3 {
            teller.tell(now(), Some(&web), What::Event(Body::EventsLost { count: 1 }));
        }
        let finished = Body::finished(Duration::ZERO, Tier::Poll, "restarted", 0, None);
        teller.tell(now(), Some(&web), What::Run(RunNumber(7), "restart", finished));
        assert_eq!(overrun.load(Ordering::Relaxed), 2);
        assert!(inbox.try_recv().is_ok() && inbox.try_recv().is_err());
        let end = late.try_recv().expect("the end");
        assert!(matches!(end.what, What::Run(RunNumber(7), _, Body::RunFinished { .. })), "{end:?}");
    }
}
