//! What is guarded, what is asked for, and what is told.

use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use guard_core::follow::Follow;
use guard_core::gate::{Budgets, Gate, Outcome, Proof};
use guard_core::model::{BindSpec, Instant, Manager, Port, Unit, UnitId, UnitName};
use guard_core::policy::{Rules, UnitRule, UnitState};
use guard_core::restart::{self, Obstacle, Step, UnitDetails};
use guard_core::timeline::Entry;
use tokio::sync::oneshot;

use crate::act::systemd::SystemdError;
use crate::observe::Tier;

/// From SIGTERM to SIGKILL where nothing else is said.
pub const DRAIN: Duration = Duration::from_secs(10);

/// What a run has beyond the drain budget where nothing else is said.
pub const AFTER_DRAIN: Duration = Duration::from_secs(20);

/// From SIGKILL until a process counts as unkillable.
const CONFIRM: Duration = Duration::from_secs(5);

/// One guarded service.
#[derive(Clone)]
pub struct Service {
    /// Its name.
    pub name: Arc<str>,
    /// What must be bindable, all of it at once. Never empty.
    pub endpoints: Vec<BindSpec>,
    /// How its processes are recognised, made anew for each run.
    pub rules: Arc<dyn Fn() -> Rules + Send + Sync>,
    /// From SIGTERM to SIGKILL; `None`: what its unit grants, or [`DRAIN`].
    pub drain: Option<Duration>,
    /// Until the port is bindable; `None`: the drain budget and [`AFTER_DRAIN`].
    pub timeout: Option<Duration>,
    /// Open although an ended process has not finished exiting.
    pub port_only: bool,
    /// Destroy sockets as the last resort.
    pub evict: bool,
    /// How it is started again.
    pub start: Option<Start>,
    /// From the start to LISTEN.
    pub start_budget: Duration,
}

/// How a service is started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// By this command.
    Command(Vec<OsString>),
    /// By the manager of this unit, which also stops it.
    Unit(UnitStart),
}

/// A unit that is a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitStart {
    /// Whose it is.
    pub manager: Manager,
    /// Its name.
    pub name: UnitName,
    /// Exit codes by which it says that a healthy instance of it already runs.
    pub already_running: Vec<i32>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// The ports of its endpoints, in ascending order.
    pub(super) fn ports(&self) -> Vec<Port> {
        let mut ports: Vec<Port> = self.endpoints.iter().map(|spec| spec.port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// How long each step of a run that ends holders may take.
    pub(super) fn budgets(&self, unit: Option<&Unit>) -> Budgets {
        let drain = self.drain.or_else(|| unit.map(restart::drain)).unwrap_or(DRAIN);
        let total = self.timeout.unwrap_or_else(|| drain.saturating_add(AFTER_DRAIN));
        Budgets { total: Some(total), drain, confirm: CONFIRM }
    }

    /// The unit that it is.
    pub(super) const fn unit(&self) -> Option<&UnitStart> {
        match &self.start {
            Some(Start::Unit(unit)) => Some(unit),
            Some(Start::Command(_)) | None => None,
        }
    }

    /// Its rules; a restart stops its unit, so that unit's processes may be ended.
    pub(super) fn rules_with(&self, known: Option<&Unit>) -> Rules {
        let mut rules = (self.rules)();
        if let Some(unit) = self.unit() {
            let state = known.cloned().map_or_else(
                || UnitState::Unknown("its service manager was not asked".to_owned()),
                UnitState::Known,
            );
            let manager = Some(unit.manager);
            let named = UnitRule::named(known.map_or(unit.name.as_str(), |unit| unit.name.as_str()));
            rules.units.push(UnitRule { manager, state, restarted: true, ..named });
        }
        rules
    }

    /// A restart of the one is a restart of the other.
    pub(super) fn restarts_like(&self, other: &Self) -> bool {
        self.endpoints == other.endpoints
            && self.start == other.start
            && (self.drain, self.timeout, self.start_budget)
                == (other.drain, other.timeout, other.start_budget)
            && (self.port_only, self.evict) == (other.port_only, other.evict)
            && (self.rules)() == (other.rules)()
    }

    /// The two cannot both listen.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let shared = |a: &BindSpec, b: &BindSpec| a.reuse_port && b.reuse_port;
        let meets = |a: &BindSpec| other.endpoints.iter().any(|b| a.overlaps(b) && !shared(a, b));
        self.endpoints.iter().any(meets)
    }

    /// Connections block its bind too.
    pub(super) fn is_strict(&self) -> bool {
        self.endpoints.iter().any(|spec| !spec.reuse_address)
    }
}

/// The number of a run, unique in the life of the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunNumber(pub u64);

/// What a run of the engine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Free the port, start the service, follow it until it listens.
    Restart,
    /// Free the port.
    Free,
    /// Wait until the port is bindable.
    Gate,
}

impl Kind {
    /// The word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Free => "free",
            Self::Gate => "gate",
        }
    }
}

/// Which run something is told of.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// Its number.
    pub number: RunNumber,
    /// Its service.
    pub service: Arc<Service>,
    /// What it is for.
    pub kind: Kind,
    /// When it was asked for.
    pub began: Instant,
}

/// A run that was begun, or joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The run.
    pub number: RunNumber,
    /// It was under way already.
    pub joined: bool,
}

/// A run could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no service of that name here.
    #[error("there is no service of that name")]
    NoService,
    /// Nothing says how the service is started.
    #[error("the configuration does not say how this service is started")]
    NoRestart,
    /// Its manager would start it again, or take it for failed.
    #[error(
        "this service is the unit {0}, which is stopped by its manager alone: ask for a restart, or `systemctl stop` it"
    )]
    IsUnit(UnitName),
    /// Joining it would not be what was asked for.
    #[error("it began before the configuration changed; ask again when it has ended")]
    Outdated(RunNumber),
    /// Two runs that end processes would get in each other's way.
    #[error("this {} of the service is under way; ask again when it has ended", .1.name())]
    Other(RunNumber, Kind),
    /// The same, on a port that this service needs too.
    #[error("this {} of the service {}, which needs the same port, is under way; ask again when it has ended", .1.name(), .2)]
    SamePort(RunNumber, Kind, Arc<str>),
    /// portguard cannot tell who it is itself.
    #[error(transparent)]
    Asker(#[from] crate::runtime::asker::AskerError),
}

/// The gate of a service is open.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The run that waited.
    pub number: RunNumber,
    /// Why.
    pub proof: Proof,
}

/// How waiting for a gate ended.
pub type Waited = Result<Opened, Outcome>;

/// What the engine can be asked for.
pub enum Request {
    /// Begin a restart of this service, or join the one that is under way, unless the
    /// configuration of the service has changed since that began.
    Restart {
        /// Its name.
        service: Arc<str>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Ticket, Refused>>,
    },
    /// End the stale holders of this service's endpoints, or join the run that does so already, under
    /// the same condition.
    Free {
        /// Its name.
        service: Arc<str>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Ticket, Refused>>,
    },
    /// Wait until this service's endpoints are bindable. Dropping the receiver ends the waiting.
    Gate {
        /// Its name.
        service: Arc<str>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Waited, Refused>>,
    },
    /// Look at this service now; answered when what was found has been told.
    Look {
        /// Its name.
        service: Arc<str>,
        /// A look that began before this moment will not do.
        after: Option<Instant>,
        /// Where the answer goes.
        reply: oneshot::Sender<()>,
    },
    /// Make another list of services, and keep it. Nothing else changes. The list
    /// is made on the engine's thread, in its network namespace.
    Prepare {
        /// Makes the list.
        services: Box<dyn FnOnce() -> Result<Vec<Service>, String> + Send>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Guard the services of the list that was made last. Runs under way go on as they began.
    Commit {
        /// Where the answer goes.
        reply: oneshot::Sender<()>,
    },
    /// Tell anew how everything is: some of what was told has got lost.
    Refresh,
    /// Nothing is guarded here any more: serve until the last run has ended.
    Retire,
}

/// How a run of the engine ended.
#[derive(Debug)]
pub enum End<'a> {
    /// At the gate.
    Gate(&'a Outcome),
    /// The service listens again.
    Restarted(Follow),
    /// The service did not come up: why.
    StartFailed(String),
    /// The manager of its unit could not be asked.
    NoUnit(SystemdError),
    /// The unit cannot be restarted from here.
    Obstructed(Obstacle),
    /// As the unit's restart says.
    Unit(&'a restart::Restart, &'a restart::End),
    /// Nobody wants it any more, and the unit was stopped.
    LeftStopped(UnitId),
    /// Nobody wants it any more: why.
    Abandoned(&'static str),
}

/// Who is told what happens. Called on the engine's thread: must not block.
pub trait Witness {
    /// A new entry of a run's timeline.
    fn entry(&mut self, run: &RunInfo, gate: &Gate, tier: Tier, at: Instant, entry: &Entry);
    /// A step of a run outside of its gate.
    fn step(&mut self, run: &RunInfo, at: Instant, step: &'static str, pid: Option<u32>, text: String);
    /// What a run is about to restart.
    fn unit_seen(&mut self, run: &RunInfo, at: Instant, unit: &Unit, details: &UnitDetails);
    /// The look before the unit's stop is over.
    fn looked_ahead(&mut self, run: &RunInfo, gate: &Gate, tier: Tier, at: Instant);
    /// A step of a unit's restart.
    fn unit_step(&mut self, run: &RunInfo, at: Instant, step: &Step);
    /// A run ended.
    fn ended(&mut self, run: &RunInfo, gate: &Gate, tier: Tier, at: Instant, end: &End<'_>);
    /// A look at a service that nothing is under way for, which shows nothing older than `since`.
    fn looked(&mut self, service: &Service, gate: &Gate, tier: Tier, since: Instant, at: Instant);
    /// Something happened to a service that no run has told of.
    fn happened(&mut self, service: &Service, at: Instant, entry: &Entry);
    /// Something happened to all of them.
    fn happened_to_all(&mut self, at: Instant, entry: &Entry);
    /// The tier that facts come from, and why it is not a better one.
    fn tier(&mut self, tier: Tier, shortfall: Option<&str>);
    /// These services are guarded from now on. [`Witness::tier`] follows.
    fn guarded(&mut self, names: Vec<Arc<str>>);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spelling::Regex;

    #[test]
    fn a_restart_is_another_when_anything_of_it_has_changed() {
        let service = |pattern: &'static str, evict: bool, command: &str| Service {
            name: "web".into(),
            endpoints: Vec::new(),
            rules: Arc::new(move || Rules {
                patterns: vec![Box::new(pattern.parse::<Regex>().expect("a rule"))],
                ..Rules::default()
            }),
            drain: None,
            timeout: None,
            port_only: false,
            evict,
            start: Some(Start::Command(vec![command.into()])),
            start_budget: Duration::from_secs(1),
        };
        let old = service("gateway", false, "/bin/a");
        assert!(old.restarts_like(&service("gateway", false, "/bin/a")));
        assert!(!old.restarts_like(&service("gateway2", false, "/bin/a")), "others may be ended");
        assert!(!old.restarts_like(&service("gateway", true, "/bin/a")));
        assert!(!old.restarts_like(&service("gateway", false, "/bin/b")));
    }
}
