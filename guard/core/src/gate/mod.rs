//! The gate: the state machine of one run, from the first look at the port to
//! the moment it is proven bindable.
//!
//! # Contract
//!
//! The caller feeds facts with [`Gate::observe`], performs what
//! [`Gate::next_action`] hands out until it returns `None`, and calls
//! [`Gate::on_deadline`] no later than [`Gate::next_deadline`]. It owes exactly
//! one answering fact for each action:
//!
//! | action | answered by |
//! |---|---|
//! | [`Action::TakeSnapshot`] | [`Fact::SnapshotTaken`] or [`Fact::SnapshotFailed`] |
//! | [`Action::ReadTable`] | [`Fact::TableRead`] or [`Fact::SnapshotFailed`] |
//! | [`Action::Probe`] | [`Fact::Probed`] |
//! | [`Action::Watch`] | [`Fact::OwnerGone`], whenever that happens |
//! | [`Action::Evict`] | [`Fact::Evicted`] or [`Fact::EvictionFailed`] |
//! | [`Action::KillCgroup`] | [`Fact::CgroupKilled`] or [`Fact::CgroupNotKilled`] |
//! | [`Action::Signal`] | [`Fact::SignalDelivered`] or [`Fact::SignalFailed`] |
//!
//! Nothing here returns a `Result`: what fails outside is an observation too.
//! An early wake-up is harmless. An [`Outcome`] is final.
//!
//! # Hints and proofs
//!
//! Events are hints: they say when to look. Only a bind probe that began after
//! the last event which could contradict it opens the gate.

mod assessment;
mod escalation;
mod eviction;
mod machine;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod randomised;
mod reach;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod toy;
mod verdict;

use std::net::IpAddr;
use std::time::Duration;

pub use assessment::{Decision, JudgedHolder, JudgedOwner, Rival};
pub use machine::Gate;

use crate::model::{
    BindOutcome, BindSpec, ExitStatus, FailedBind, Instant, Port, ProcessId, Signal, Snapshot, Socket,
    UnknownReason,
};
use crate::policy::{Asker, Judgement, Rules};

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Look once and report.
    Look,
    /// Wait until the port is bindable; signal nobody.
    Wait,
    /// End the stale holders, then wait until the port is bindable.
    Free,
}

/// Whom the end of a stale owner reaches besides the owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nobody.
    Owners,
    /// Its descendants: `--tree`.
    Tree,
    /// Everybody in its service's cgroup: `--cgroup-kill`.
    Cgroup,
}

/// How long each step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// The whole run; `None` waits for ever.
    pub total: Option<Duration>,
    /// From SIGTERM to SIGKILL, for each process.
    pub drain: Duration,
    /// From SIGKILL until a process counts as unkillable.
    pub confirm: Duration,
}

/// Everything a run is told at its start.
#[derive(Debug)]
pub struct Plan {
    /// What must be bindable, all of it at once. Never empty.
    pub endpoints: Vec<BindSpec>,
    /// What the run is for.
    pub goal: Goal,
    /// How the service's processes are recognised.
    pub rules: Rules,
    /// Who asks.
    pub asker: Asker,
    /// Time budgets.
    pub budgets: Budgets,
    /// The longest time between two looks without an event: the polling
    /// interval of the `poll` tier, a safety net in the event-driven tiers.
    pub recheck: Duration,
    /// Open as soon as the port is bindable, although an ended owner still lives.
    pub port_only: bool,
    /// Destroy the sockets that no signal helps against, as the last resort:
    /// see [`Decision::Evict`].
    pub evict: bool,
    /// Who is ended besides the owners. Each is judged as they are, and if one
    /// may not be ended, nobody is.
    pub reach: Reach,
}

/// A hint from the kernel: something changed on a watched port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// A socket entered LISTEN.
    ListenerOpened {
        /// Its local address.
        address: IpAddr,
        /// Its local port.
        port: Port,
    },
    /// A socket is leaving LISTEN; its state is stored just after.
    ListenerClosed {
        /// Its local address.
        address: IpAddr,
        /// Its local port.
        port: Port,
    },
    /// A former listener is being destroyed; its bind bucket goes just after.
    SocketReleased {
        /// Its local address.
        address: IpAddr,
        /// Its local port.
        port: Port,
    },
    /// A connection on the port was destroyed.
    ConnectionReleased {
        /// Its local port.
        port: Port,
    },
    /// A connection on the port was aborted from here, as a closing listener does with those that nobody accepted.
    ConnectionAborted {
        /// Its local port.
        port: Port,
    },
    /// A TIME_WAIT or FIN_WAIT2 socket on the port is gone, by time or otherwise.
    TimeWaitEnded {
        /// Its local port.
        port: Port,
    },
    /// A process began to exit. Its sockets are still open.
    OwnerExiting {
        /// Who.
        process: ProcessId,
        /// How, where the kernel said so.
        status: Option<ExitStatus>,
    },
}

/// Why a signal could not be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignalFailure {
    /// The process is gone.
    Gone,
    /// The PID belongs to another process now: the start time changed.
    IdentityChanged,
    /// The kernel refused: other user, no `CAP_KILL`.
    NotPermitted,
    /// Anything else, in words.
    Failed(String),
}

/// Why a socket could not be destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvictionFailure {
    /// The socket is gone already, which is as good.
    Gone,
    /// The kernel refused: no `CAP_NET_ADMIN`.
    NotPermitted(String),
    /// Anything else, in words.
    Failed(String),
}

/// What the world said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A full snapshot.
    SnapshotTaken(Snapshot),
    /// The socket table alone.
    TableRead {
        /// The sockets on the watched ports.
        sockets: Vec<Socket>,
        /// When reading began.
        begun: Instant,
    },
    /// A snapshot or a table could not be read, in words.
    SnapshotFailed(String),
    /// A bind probe of all endpoints.
    Probed {
        /// One outcome per endpoint, in the plan's order.
        outcomes: Vec<BindOutcome>,
        /// When the probe began.
        begun: Instant,
    },
    /// The kernel reported an event at this moment.
    Hinted {
        /// The event.
        hint: Hint,
        /// The kernel's own time stamp, else the time of receipt.
        at: Instant,
    },
    /// Somebody else failed to bind a port of the plan. It tells who is waiting
    /// for the port and decides nothing.
    BindFailed {
        /// Who, and what for.
        bind: Box<FailedBind>,
        /// When.
        at: Instant,
    },
    /// The kernel dropped events.
    EventsLost {
        /// How many, since the last such fact.
        count: u64,
    },
    /// A watched process is dead as a whole thread group, its sockets closed.
    OwnerGone {
        /// Who.
        process: ProcessId,
        /// How it ended, where the kernel said so.
        status: Option<ExitStatus>,
    },
    /// A signal was delivered.
    SignalDelivered {
        /// To whom.
        process: ProcessId,
        /// Which.
        signal: Signal,
    },
    /// A signal was not delivered.
    SignalFailed {
        /// To whom.
        process: ProcessId,
        /// Which.
        signal: Signal,
        /// Why not.
        failure: SignalFailure,
    },
    /// Everybody in a cgroup was sent SIGKILL at once.
    CgroupKilled(Vec<ProcessId>),
    /// A cgroup was not ended as a whole, and nobody in it was signalled: its
    /// members are ended one by one, after another look.
    CgroupNotKilled {
        /// Its members, as they were asked for.
        members: Vec<ProcessId>,
        /// Why not, in words.
        why: String,
    },
    /// A socket was destroyed.
    Evicted(Socket),
    /// A socket was not destroyed.
    EvictionFailed {
        /// Which.
        socket: Socket,
        /// Why not.
        failure: EvictionFailure,
    },
    /// Facts come from another tier from now on.
    TierChanged {
        /// Its name.
        tier: &'static str,
        /// Its [`Plan::recheck`].
        recheck: Duration,
    },
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the socket table, all owners, and the evidence on them and on
    /// these processes too.
    TakeSnapshot {
        /// Processes to read although they may own nothing any more.
        also: Vec<ProcessId>,
        /// Also ask the owners' sockets for the flags that no table shows. That
        /// holds the sockets open for a moment, so it is asked for only before
        /// anybody is ended; later looks repeat what was learned then.
        learn: bool,
        /// Read every process on the machine.
        everybody: bool,
    },
    /// Read the socket table without owners.
    ReadTable,
    /// Bind all endpoints at once, never listen, close.
    Probe,
    /// Report when this process is gone.
    Watch(ProcessId),
    /// Destroy this socket, recognised by its cookie (`SOCK_DESTROY`).
    Evict(Socket),
    /// Send SIGKILL to everybody in this cgroup at once, if these processes are
    /// still all there is in it.
    KillCgroup {
        /// Its path.
        cgroup: String,
        /// Who is in it.
        members: Vec<ProcessId>,
    },
    /// Deliver a signal, by pidfd, after comparing the start time.
    Signal {
        /// To whom.
        process: ProcessId,
        /// Which.
        signal: Signal,
    },
}

/// Why the gate opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// When the bind probe that succeeded began.
    pub probed: Instant,
    /// From the kernel's last event about the port's release to the opening;
    /// `None` when no event told of it.
    pub release_latency: Option<Duration>,
    /// What was bindable.
    pub endpoints: Vec<BindSpec>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The port is bindable and nobody who was ended is left.
    Opened(Proof),
    /// A [`Goal::Look`] has seen what there is to see.
    Looked,
    /// The deadline came first.
    StillBusy {
        /// Processes that were sent SIGTERM and are alive.
        pending: Vec<ProcessId>,
    },
    /// The guard cannot tell, and waiting would not change that; or it could
    /// not tell at the deadline.
    Unknown(UnknownReason),
    /// A holder may not be ended.
    Refused(Vec<(ProcessId, Judgement)>),
    /// Newcomers keep taking the port.
    Duel(Vec<Rival>),
    /// The service's own unit has started again and has the port: these
    /// newcomers. It is not free, and nobody needs to start the service.
    Respawned(Vec<Rival>),
    /// The guard's user may not signal these stale owners.
    NotPermitted(Vec<ProcessId>),
    /// The guard's user may not destroy sockets, in words.
    CannotEvict(String),
    /// A signal failed for a reason that is no matter of permission, in words.
    CannotSignal(ProcessId, String),
}
