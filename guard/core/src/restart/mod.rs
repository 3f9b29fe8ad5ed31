//! Restarting a service manager's unit: which step comes when.
//!
//! # Contract
//!
//! As of the [gate](crate::gate): the caller feeds facts with
//! [`Restart::observe`], performs what [`Restart::next_action`] hands out, and
//! calls [`Restart::on_deadline`] no later than [`Restart::next_deadline`]. It
//! owes an answering fact for each action:
//!
//! | action | answered by |
//! |---|---|
//! | [`Action::Look`] | [`Fact::Looked`] |
//! | [`Action::Ask`] | [`Fact::JobOver`] or [`Fact::JobRefused`] |
//! | [`Action::Free`] | [`Fact::Freed`] |
//! | [`Action::ResetFailed`] | [`Fact::FailureReset`] |
//! | [`Action::Follow`] | [`Fact::UnitSeen`] and [`Fact::PortSeen`], again and again |
//!
//! The order is: look, stop, free, reset, start, follow. Nothing is stopped
//! while the look says that the port could not be freed afterwards, and nothing
//! is started before the gate has opened.

mod ahead;
mod words;

use std::collections::VecDeque;
use std::time::Duration;

use crate::follow::Follow;
use crate::gate::Outcome;
use crate::model::{ActiveState, Instant, ProcessId, Unit, UnknownReason};

pub use ahead::{Ahead, Obstacle, drain, longest_stop, obstacle};

#[cfg(test)]
mod tests;

/// What a manager is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// Stop the unit, and wait until it has stopped.
    Stop,
    /// Start the unit, and wait until it counts as started.
    Start,
}

/// How a manager's job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobResult {
    /// As asked.
    Done,
    /// It did not work.
    Failed,
    /// The job's own time ran out.
    Timeout,
    /// Another job took its place.
    Canceled,
    /// A unit that it needs failed.
    Dependency,
    /// A word that this version does not tell apart.
    Other(String),
}

impl JobResult {
    /// From the manager's word.
    pub fn from_name(word: &str) -> Self {
        match word {
            "done" => Self::Done,
            "failed" => Self::Failed,
            "timeout" => Self::Timeout,
            "canceled" => Self::Canceled,
            "dependency" => Self::Dependency,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The manager's word for it.
    pub fn name(&self) -> &str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Canceled => "canceled",
            Self::Dependency => "dependency",
            Self::Other(word) => word,
        }
    }
}

/// How a unit's main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MainExit {
    /// `exit(code)`
    Code(i32),
    /// Ended by this signal.
    Signal(i32),
}

/// What else a manager says about a unit, which only its restart asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitDetails {
    /// `SubState`: `running`, `auto-restart`, `stop-sigterm` …
    pub sub_state: String,
    /// `SendSIGKILL`: whoever outlives the stop timeout is killed.
    pub send_sigkill: bool,
    /// How the last main process ended; `None` while it runs, and before there was one.
    pub main_exit: Option<MainExit>,
    /// The `.socket` units that start it: they keep its port for ever.
    pub sockets: Vec<String>,
    /// The units that a stop of this one stops too, and its start does not start again.
    pub stopped_along: Vec<String>,
}

/// What a restart is told at its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The longest a stop may take; `None` waits for ever.
    pub stop: Option<Duration>,
    /// The longest from the start to the listener.
    pub follow: Duration,
    /// The longest that all of it may take; `None` for no limit but those of the steps.
    pub total: Option<Duration>,
    /// Exit codes by which the service says that a healthy instance of it already runs.
    pub already_running: Vec<i32>,
}

/// What the world said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The look before the stop is over.
    Looked(Ahead),
    /// The job that was asked for last is over.
    JobOver(JobResult),
    /// The job that was asked for last was refused.
    JobRefused {
        /// In the manager's words.
        why: String,
        /// It is a matter of permission.
        denied: bool,
    },
    /// The gate has ended.
    Freed(Outcome),
    /// The unit's failure is forgotten, or could not be, in words.
    FailureReset(Result<(), String>),
    /// What the manager says about the unit now.
    UnitSeen(Box<(Unit, UnitDetails)>),
    /// What is on the port now.
    PortSeen(Follow),
    /// The manager cannot be asked any more, in words.
    Lost(String),
}

/// What the caller has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at the port, and change nothing.
    Look,
    /// Ask the manager for this job.
    Ask(JobKind),
    /// End what is left on the port and wait until it is bindable.
    Free,
    /// Make the manager forget that the unit failed.
    ResetFailed,
    /// Report every change of the unit and of who listens on the port.
    Follow,
}

/// Something that happened, for the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The manager was asked to stop the unit.
    Stopping,
    /// The stop job is over.
    Stopped(JobResult),
    /// The unit's failure is forgotten, or could not be, in words.
    FailureReset(Result<(), String>),
    /// The manager was asked to start the unit.
    Starting,
    /// The unit was started by somebody else while the port was waited for.
    StartedElsewhere,
    /// The start job is over.
    Started(JobResult),
    /// The unit's main process ended before it listened, and the manager starts it again.
    Crashed(Option<MainExit>),
    /// This process listens.
    Listening(ProcessId),
    /// Somebody listens whose owner is not visible.
    ListeningUnseen,
}

/// How a restart ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The unit listens; the process where it is visible.
    Restarted(Option<ProcessId>),
    /// Nothing was done: see [`Ahead`].
    NotBegun(Ahead),
    /// The manager refused a job, in its words.
    JobRefused {
        /// Which.
        job: JobKind,
        /// Why.
        why: String,
        /// It is a matter of permission.
        denied: bool,
    },
    /// The stop job ended otherwise than asked; `None`: it is not over.
    NotStopped(Option<JobResult>),
    /// The gate did not open. The unit stays stopped.
    GateShut(Outcome),
    /// The start job ended otherwise than asked; `None`: it is not over.
    NotStarted(Option<JobResult>),
    /// The unit ended before it listened.
    Died(Option<MainExit>),
    /// The unit runs, and nobody listened in time.
    Silent,
    /// Somebody else listens.
    Rival {
        /// Who.
        process: ProcessId,
        /// The unit's last exit code says so too.
        told: Option<i32>,
    },
    /// The manager cannot be asked any more, in words.
    Lost(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Looking,
    Stopping,
    Freeing,
    Resetting,
    Starting,
    Following,
}

/// One restart. See the [module](self) for the contract.
#[derive(Debug)]
pub struct Restart {
    plan: Plan,
    phase: Phase,
    began: Instant,
    phase_began: Instant,
    queue: VecDeque<Action>,
    steps: Vec<(Instant, Step)>,
    unit: Option<(Unit, UnitDetails)>,
    port: Follow,
    /// `NRestarts` of the last crash that was told.
    crashes: Option<u32>,
    end: Option<End>,
}

impl Restart {
    /// Begins at `now`.
    pub fn new(plan: Plan, now: Instant) -> Self {
        Self {
            plan,
            phase: Phase::Looking,
            began: now,
            phase_began: now,
            queue: VecDeque::from([Action::Look]),
            steps: Vec::new(),
            unit: None,
            port: Follow::NotYet,
            crashes: None,
            end: None,
        }
    }

    /// The next thing to do, until there is none.
    pub fn next_action(&mut self) -> Option<Action> {
        self.queue.pop_front()
    }

    /// How it ended, once it has.
    pub const fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// What happened so far.
    pub fn steps(&self) -> &[(Instant, Step)] {
        &self.steps
    }

    /// What the manager said last.
    pub const fn unit(&self) -> Option<&(Unit, UnitDetails)> {
        self.unit.as_ref()
    }

    /// The latest moment for the next [`Restart::on_deadline`]. While the gate
    /// runs, this is the end of its time.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.end.is_some() {
            return None;
        }
        let total = self.plan.total.map(|total| self.began + total);
        let step = match self.phase {
            Phase::Stopping => self.plan.stop,
            Phase::Starting | Phase::Following => Some(self.plan.follow),
            Phase::Looking | Phase::Freeing | Phase::Resetting => None,
        };
        [total, step.map(|step| self.phase_began + step)].into_iter().flatten().min()
    }

    /// Takes in a fact.
    pub fn observe(&mut self, fact: Fact, now: Instant) {
        if self.end.is_some() {
            return;
        }
        match (self.phase, fact) {
            (_, Fact::Lost(why)) => self.finish(End::Lost(why)),
            (_, Fact::UnitSeen(seen)) => {
                self.unit = Some(*seen);
                if self.phase == Phase::Following {
                    self.judge(now);
                }
            }
            (Phase::Looking, Fact::Looked(Ahead::Clear)) => {
                self.enter(Phase::Stopping, Action::Ask(JobKind::Stop), now);
                self.record(now, Step::Stopping);
            }
            (Phase::Looking, Fact::Looked(ahead)) => self.finish(End::NotBegun(ahead)),
            (Phase::Stopping, Fact::JobOver(result)) => {
                self.record(now, Step::Stopped(result.clone()));
                if result == JobResult::Done {
                    self.enter(Phase::Freeing, Action::Free, now);
                } else {
                    self.finish(End::NotStopped(Some(result)));
                }
            }
            (Phase::Freeing, Fact::Freed(Outcome::Opened(_))) => {
                self.enter(Phase::Resetting, Action::ResetFailed, now);
            }
            (Phase::Freeing, Fact::Freed(outcome)) => self.freed(outcome, now),
            (Phase::Resetting, Fact::FailureReset(result)) => {
                // A unit that did not fail has nothing to forget; a start that is refused will say why.
                if result.is_err() {
                    self.record(now, Step::FailureReset(result));
                }
                self.enter(Phase::Starting, Action::Ask(JobKind::Start), now);
                self.record(now, Step::Starting);
            }
            (Phase::Starting, Fact::JobOver(result)) => {
                self.record(now, Step::Started(result.clone()));
                if result == JobResult::Done {
                    self.follow(now);
                } else {
                    self.finish(End::NotStarted(Some(result)));
                }
            }
            (Phase::Stopping, Fact::JobRefused { why, denied }) => {
                self.finish(End::JobRefused { job: JobKind::Stop, why, denied });
            }
            (Phase::Starting, Fact::JobRefused { why, denied }) => {
                self.finish(End::JobRefused { job: JobKind::Start, why, denied });
            }
            (Phase::Following, Fact::PortSeen(port)) => {
                self.port = port;
                self.judge(now);
            }
            // An answer to a question of an earlier phase.
            (_, _) => {}
        }
    }

    /// Time has passed. Harmless when nothing is due.
    pub fn on_deadline(&mut self, now: Instant) {
        // The gate has a deadline of its own, and answers.
        if self.phase == Phase::Freeing || self.next_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        let end = match (self.phase, self.port) {
            (Phase::Looking, _) => End::NotBegun(Ahead::Unknown(UnknownReason::NotYetObserved)),
            (Phase::Stopping, _) => End::NotStopped(None),
            (Phase::Following, Follow::Other(process)) => {
                End::Rival { process, told: self.told_already_running() }
            }
            (Phase::Following, _) => End::Silent,
            (Phase::Freeing | Phase::Resetting | Phase::Starting, _) => End::NotStarted(None),
        };
        self.finish(end);
    }

    /// The gate did not open. When the unit runs again, somebody else has
    /// started it meanwhile: that is what was wanted.
    fn freed(&mut self, outcome: Outcome, now: Instant) {
        let runs = self.unit.as_ref().is_some_and(|(unit, _)| {
            unit.main_pid.is_some()
                && matches!(unit.active_state, ActiveState::Active | ActiveState::Activating)
        });
        if runs && matches!(outcome, Outcome::StillBusy { .. } | Outcome::Duel(_)) {
            self.record(now, Step::StartedElsewhere);
            self.follow(now);
        } else {
            self.finish(End::GateShut(outcome));
        }
    }

    fn follow(&mut self, now: Instant) {
        self.enter(Phase::Following, Action::Follow, now);
    }

    /// While it is followed: has it taken the port, or ended?
    fn judge(&mut self, now: Instant) {
        match self.port {
            Follow::Listening(process) => {
                self.record(now, Step::Listening(process));
                return self.finish(End::Restarted(Some(process)));
            }
            Follow::Hidden => {
                self.record(now, Step::ListeningUnseen);
                return self.finish(End::Restarted(None));
            }
            Follow::NotYet | Follow::Other(_) => {}
        }
        let Some((unit, details)) = &self.unit else { return };
        let (main_exit, restarts) = (details.main_exit, unit.n_restarts);
        let over = !unit.active_state.has_instance();
        let waits = details.sub_state.starts_with("auto-restart");
        if let Follow::Other(process) = self.port
            && (over || (waits && self.told_already_running().is_some()))
        {
            return self.finish(End::Rival { process, told: self.told_already_running() });
        }
        if over {
            self.finish(End::Died(main_exit));
        } else if waits && self.crashes != Some(restarts) {
            self.crashes = Some(restarts);
            self.record(now, Step::Crashed(main_exit));
        }
    }

    /// The unit's last exit code, when it says that a healthy instance already runs.
    fn told_already_running(&self) -> Option<i32> {
        let (_, details) = self.unit.as_ref()?;
        match details.main_exit {
            Some(MainExit::Code(code)) if self.plan.already_running.contains(&code) => Some(code),
            _ => None,
        }
    }

    fn enter(&mut self, phase: Phase, action: Action, now: Instant) {
        self.phase = phase;
        self.phase_began = now;
        self.queue.push_back(action);
    }

    fn record(&mut self, now: Instant, step: Step) {
        self.steps.push((now, step));
    }

    fn finish(&mut self, end: End) {
        self.queue.clear();
        self.end = Some(end);
    }
}
