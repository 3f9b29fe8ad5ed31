//! SIGTERM, the drain budget, one more look, SIGKILL, a confirm budget: the
//! way of each stale owner, by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{Instant, Process, ProcessId, Signal};
use crate::policy::Judgement;

/// What SIGTERM was sent on.
#[derive(Clone, Debug)]
pub(super) struct First {
    pub(super) judgement: Judgement,
    /// The process as it was then.
    pub(super) process: Option<Process>,
}

/// A stale owner that was sent SIGTERM.
#[derive(Clone, Debug)]
struct Ending {
    first: First,
    step: Step,
    /// The last signal that it got, and when.
    last: Option<(Signal, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// SIGTERM was handed out and is not delivered yet.
    Terminating,
    /// SIGTERM was delivered; SIGKILL becomes due at `until`.
    Draining { until: Instant },
    /// The budget is spent: SIGKILL waits for a look that began after `since`.
    Confirming { since: Instant },
    /// SIGKILL was handed out and is not delivered yet.
    Killing,
    /// SIGKILL was delivered; alive after `until` means unkillable.
    Killed { until: Instant },
    /// Still alive after SIGKILL and the confirm budget.
    Unkillable,
    /// Dead as a whole, or spared.
    Over,
}

/// Everybody that this run has begun to end.
#[derive(Clone, Debug)]
pub(super) struct Escalation {
    drain: Duration,
    confirm: Duration,
    endings: BTreeMap<ProcessId, Ending>,
}

/// What became due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// A budget is spent: a fresh look has to come before SIGKILL.
    pub(super) look: bool,
    /// These survived SIGKILL and the confirm budget.
    pub(super) unkillable: Vec<ProcessId>,
}

impl Escalation {
    pub(super) const fn new(drain: Duration, confirm: Duration) -> Self {
        Self { drain, confirm, endings: BTreeMap::new() }
    }

    /// SIGTERM is handed out; `false` when it was before.
    pub(super) fn begin(&mut self, process: ProcessId, first: First) -> bool {
        let fresh = !self.endings.contains_key(&process);
        if fresh {
            self.endings.insert(process, Ending { first, step: Step::Terminating, last: None });
        }
        fresh
    }

    /// The process has the signal: its budget starts now, not when the signal
    /// was asked for.
    pub(super) fn delivered(&mut self, process: ProcessId, signal: Signal, now: Instant) {
        let step = match (signal, self.endings.get(&process).map(|ending| ending.step)) {
            (Signal::Term, Some(Step::Terminating)) => Step::Draining { until: now + self.drain },
            (Signal::Kill, Some(Step::Killing)) => Step::Killed { until: now + self.confirm },
            _ => return,
        };
        self.set(process, step);
        if let Some(ending) = self.endings.get_mut(&process) {
            ending.last = Some((signal, now));
        }
    }

    /// The last signal that the process got, and how long ago.
    pub(super) fn since_last_signal(&self, process: ProcessId, now: Instant) -> Option<(Signal, Duration)> {
        let (signal, at) = self.endings.get(&process)?.last?;
        Some((signal, now.since(at)))
    }

    /// Why the process may be ended, when it is one of ours.
    pub(super) fn first(&self, process: ProcessId) -> Option<&First> {
        self.endings.get(&process).map(|ending| &ending.first)
    }

    /// The process needs nothing more: dead, or not to be ended after all.
    pub(super) fn finish(&mut self, process: ProcessId) {
        self.set(process, Step::Over);
    }

    /// SIGKILL was handed out.
    pub(super) fn kill(&mut self, process: ProcessId) {
        self.set(process, Step::Killing);
    }

    /// SIGKILL was not delivered after all: another look has to come first.
    pub(super) fn confirm_again(&mut self, processes: &[ProcessId], now: Instant) {
        for id in processes {
            if let Some(ending) = self.endings.get_mut(id).filter(|ending| ending.step == Step::Killing) {
                ending.step = Step::Confirming { since: now };
            }
        }
    }

    fn set(&mut self, process: ProcessId, step: Step) {
        if let Some(ending) = self.endings.get_mut(&process) {
            ending.step = step;
        }
    }

    pub(super) fn all_over(&self) -> bool {
        self.endings.values().all(|ending| ending.step == Step::Over)
    }

    /// Those that are still alive, as far as is known.
    pub(super) fn pending(&self) -> Vec<ProcessId> {
        self.endings.iter().filter(|(_, ending)| ending.step != Step::Over).map(|(&id, _)| id).collect()
    }

    /// Those whose SIGKILL waits for a look, given one that began at `begun`.
    pub(super) fn confirmed_by(&self, begun: Instant) -> Vec<ProcessId> {
        self.endings
            .iter()
            .filter(|(_, ending)| matches!(ending.step, Step::Confirming { since } if begun >= since))
            .map(|(&id, _)| id)
            .collect()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.endings
            .values()
            .filter_map(|ending| match ending.step {
                Step::Draining { until } | Step::Killed { until } => Some(until),
                Step::Terminating
                | Step::Confirming { .. }
                | Step::Killing
                | Step::Unkillable
                | Step::Over => None,
            })
            .min()
    }

    pub(super) fn on_deadline(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        for (&process, ending) in &mut self.endings {
            match ending.step {
                Step::Draining { until } if until <= now => {
                    ending.step = Step::Confirming { since: now };
                    due.look = true;
                }
                Step::Killed { until } if until <= now => {
                    ending.step = Step::Unkillable;
                    due.unkillable.push(process);
                }
                _ => {}
            }
        }
        due
    }
}
