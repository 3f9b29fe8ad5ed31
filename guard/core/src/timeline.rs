//! What happened in a run, as data: the one record from which the human lines,
//! the JSON events and the timeline picture are all made.

use std::time::Duration;

use crate::gate::{EvictionFailure, Hint, JudgedHolder, Outcome, SignalFailure};
use crate::model::{BindOutcome, ExitStatus, FailedBind, Instant, ProcessId, ProcessState, Signal, Socket};
use crate::policy::Judgement;

/// The number of entries a timeline keeps. A run has a few dozen; a port with
/// busy clients could otherwise fill the memory with connection events.
pub const MOST_ENTRIES: usize = 4096;

/// How many of them may tell of the port's clients: what the run saw needs room beside those.
pub const MOST_OF_CLIENTS: usize = MOST_ENTRIES / 4;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The run began.
    Began,
    /// The socket table and the owners were read.
    Looked {
        /// The holders, judged: every claim on the port and some of the
        /// connections and TIME_WAIT sockets.
        holders: Vec<JudgedHolder>,
        /// How many more of the latter there were.
        left_out: usize,
        /// How long reading took.
        took: Duration,
    },
    /// Reading failed.
    LookFailed(String),
    /// A bind probe ran; recorded when its answer changed or an event asked for it.
    Probed {
        /// One outcome per endpoint, in the plan's order.
        outcomes: Vec<BindOutcome>,
        /// How long the probe took.
        took: Duration,
    },
    /// The kernel reported an event.
    Event(Hint),
    /// Somebody failed to bind the port: who lost to whom.
    BindFailed {
        /// Who lost.
        bind: Box<FailedBind>,
        /// To whom: the claims on the port that the nearest look found; empty
        /// when it found none, or there was none.
        holders: Vec<JudgedHolder>,
        /// When that look began.
        looked: Option<Instant>,
    },
    /// The kernel dropped this many events.
    EventsLost(u64),
    /// A signal was delivered.
    Signalled {
        /// To whom.
        process: ProcessId,
        /// Which.
        signal: Signal,
        /// Why it may be ended.
        judgement: Judgement,
    },
    /// A signal could not be delivered.
    SignalFailed {
        /// To whom.
        process: ProcessId,
        /// Which.
        signal: Signal,
        /// Why not.
        failure: SignalFailure,
    },
    /// A socket was destroyed.
    Evicted(Socket),
    /// A socket could not be destroyed.
    EvictionFailed {
        /// Which.
        socket: Socket,
        /// Why not.
        failure: EvictionFailure,
    },
    /// A process left: its whole thread group is dead, its sockets are closed.
    Gone {
        /// Who.
        process: ProcessId,
        /// How it ended, where the kernel said so.
        status: Option<ExitStatus>,
        /// The last signal that this run sent it, and how long before.
        answered: Option<(Signal, Duration)>,
    },
    /// A process was sent SIGTERM and cannot act on it for now.
    Held {
        /// Who.
        process: ProcessId,
        /// Traced, or uninterruptible.
        state: ProcessState,
        /// Kernel function its leader slept in at the last look.
        wait_channel: Option<String>,
    },
    /// A cgroup could not be ended as a whole; its members are ended one by one.
    CgroupNotKilled(String),
    /// A signalled process is no longer what it was judged to be, and is left alone.
    Spared {
        /// Who.
        process: ProcessId,
        /// What it is now.
        judgement: Judgement,
    },
    /// A process is still alive a while after SIGKILL.
    Unkillable {
        /// Who.
        process: ProcessId,
        /// Kernel function its leader slept in at the last look.
        wait_channel: Option<String>,
    },
    /// The tier changed while the run was under way.
    TierChanged(&'static str),
    /// The run ended.
    Ended(Outcome),
}

impl Entry {
    /// What the run did or came to, as against what it saw; and how far it could not see.
    const fn is_step(&self) -> bool {
        matches!(
            self,
            Self::EventsLost(_)
                | Self::TierChanged(_)
                | Self::Signalled { .. }
                | Self::SignalFailed { .. }
                | Self::Evicted(_)
                | Self::EvictionFailed { .. }
                | Self::Spared { .. }
                | Self::Held { .. }
                | Self::CgroupNotKilled(_)
                | Self::Unkillable { .. }
                | Self::Ended(_)
        )
    }

    /// The end of a connection, whosever it was.
    const fn is_of_client(&self) -> bool {
        matches!(
            self,
            Self::Event(
                Hint::ConnectionReleased { .. } | Hint::ConnectionAborted { .. } | Hint::TimeWaitEnded { .. }
            )
        )
    }
}

/// The entries of a run in the order in which the core learned of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    began: Instant,
    entries: Vec<(Instant, Entry)>,
    of_clients: usize,
    left_out: u64,
}

impl Timeline {
    /// An empty timeline.
    pub fn new(began: Instant) -> Self {
        Self { began, entries: vec![(began, Entry::Began)], of_clients: 0, left_out: 0 }
    }

    /// Adds an entry. Past [`MOST_ENTRIES`] only the run's own steps are kept, of
    /// which there are a few for each process that it ends, and losses, of which
    /// there are two for each look at most; of the port's clients, [`MOST_OF_CLIENTS`].
    pub fn record(&mut self, at: Instant, entry: Entry) {
        let of_client = entry.is_of_client();
        let fits = self.entries.len() < MOST_ENTRIES && (!of_client || self.of_clients < MOST_OF_CLIENTS);
        if fits || entry.is_step() {
            self.of_clients += usize::from(of_client);
            self.entries.push((at, entry));
        } else {
            self.left_out += 1;
        }
    }

    /// When the run began.
    pub const fn began(&self) -> Instant {
        self.began
    }

    /// The entries, each with the moment at which it happened.
    pub fn entries(&self) -> &[(Instant, Entry)] {
        &self.entries
    }

    /// How many entries did not fit.
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }
}
