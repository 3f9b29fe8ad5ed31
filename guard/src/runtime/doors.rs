//! How a gate's actions are performed, whoever drives it.

use guard_core::gate::{Action, Fact};
use guard_core::model::{BindSpec, Port, ProcessId};
use tracing::warn;

use super::now;
use crate::act::{self, Prober};
use crate::kernel::pidfd::PidFdError;
use crate::observe::{ExitWatch, Observer, read_table};

/// What all runs of one event loop share.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) observer: Observer,
    pub(super) exits: ExitWatch,
    /// Processes whose pidfd could not be opened; tried again with each look.
    unwatched: Vec<ProcessId>,
    prober: Prober,
    signalled: bool,
}

impl Doors {
    pub(super) fn new(observer: Observer, exits: ExitWatch) -> Self {
        Self { observer, exits, unwatched: Vec::new(), prober: Prober::default(), signalled: false }
    }

    /// Performs any action but a snapshot, which is taken on another thread.
    /// `None`: the answer comes later.
    pub(super) fn perform(&mut self, action: Action, endpoints: &[BindSpec], ports: &[Port]) -> Option<Fact> {
        match action {
            Action::Probe => {
                let begun = now();
                Some(Fact::Probed { outcomes: self.prober.bind_all(endpoints), begun })
            }
            Action::ReadTable => {
                let begun = now();
                Some(match read_table(ports) {
                    Ok(sockets) => Fact::TableRead { sockets, begun },
                    Err(error) => Fact::SnapshotFailed(error.to_string()),
                })
            }
            Action::TakeSnapshot { .. } => None,
            Action::KillCgroup { cgroup, members } => {
                self.signalled = true;
                Some(act::kill_cgroup(&cgroup, members))
            }
            Action::Watch(process) => self.watch(process),
            Action::Evict(socket) => Some(act::evict(socket)),
            Action::Signal { process, signal } => {
                self.signalled = true;
                Some(act::signal(process, self.exits.pidfd(process), signal))
            }
        }
    }

    /// The gate has taken in what [`Doors::perform`] answered. Called before anybody is told of it.
    pub(super) fn taken_in(&mut self) {
        self.prober.let_go();
    }

    /// Whether anybody was sent a signal since this was last asked.
    pub(super) fn signalled(&mut self) -> bool {
        std::mem::take(&mut self.signalled)
    }

    /// Tries again to watch those that could not be watched.
    pub(super) fn watch_again(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.unwatched).into_iter().filter_map(|process| self.watch(process)).collect()
    }

    /// Watches a process for its exit; answers when it is gone already.
    pub(super) fn watch(&mut self, process: ProcessId) -> Option<Fact> {
        self.observer.watch_owner(process);
        match self.exits.watch(process) {
            Ok(()) => None,
            Err(PidFdError::Gone(_) | PidFdError::IdentityChanged { .. }) => {
                Some(Fact::OwnerGone { process, status: None })
            }
            Err(error) => {
                // Its end will be seen late. Safe: a gate that waits for it stays shut.
                warn!(%error, pid = process.tgid.0, "cannot watch a process for its exit");
                self.unwatched.push(process);
                None
            }
        }
    }
}
