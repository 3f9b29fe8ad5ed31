//! Who is gone, in the event loop.
//!
//! A pidfd becomes readable when the whole thread group has exited, 20 to 40 µs
//! after that process's sockets were closed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use guard_core::model::{ExitStatus, ProcessId};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::kernel::exit_set::ExitSet;
use crate::kernel::oom::OomCount;
use crate::kernel::pidfd::{PidFd, PidFdError};

const SIGKILL: u8 = 9;

/// The watched processes.
#[derive(Debug)]
pub struct ExitWatch {
    set: AsyncFd<ExitSetFd>,
    /// What the OOM killer had done in the cgroup of each, where that is counted.
    victims: BTreeMap<ProcessId, OomCount>,
}

#[derive(Debug)]
struct ExitSetFd(ExitSet);

impl AsRawFd for ExitSetFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl ExitWatch {
    /// An empty set. Needs a running tokio reactor.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the set owns its descriptor, keeps it for its whole life and always names the same one.
        let set = unsafe { AsyncFd::register_with_interest(ExitSetFd(ExitSet::new()?), Interest::READABLE) }?;
        Ok(Self { set, victims: BTreeMap::new() })
    }

    /// Watches `process`. Fails with [`PidFdError::Gone`] or
    /// [`PidFdError::IdentityChanged`] when it is already gone.
    pub fn watch(&mut self, process: ProcessId) -> Result<(), PidFdError> {
        self.set.get_mut().0.add(process)?;
        if !self.victims.contains_key(&process)
            && let Some(count) = OomCount::of(process.tgid)
        {
            self.victims.insert(process, count);
        }
        Ok(())
    }

    /// The pidfd of a watched process.
    pub fn pidfd(&self, process: ProcessId) -> Option<&PidFd> {
        self.set.get_ref().0.get(process)
    }

    /// Resolves when at least one watched process is gone, with all that are.
    /// They are no longer watched then. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Vec<(ProcessId, Option<ExitStatus>)>> {
        loop {
            let mut ready = self.set.readable_mut().await?;
            let exited = ready.get_inner_mut().0.take_exited()?;
            if exited.is_empty() {
                ready.clear_ready();
                continue;
            }
            let victims = &mut self.victims;
            return Ok(exited
                .iter()
                .map(|pidfd| {
                    let (process, status) = (pidfd.process(), pidfd.exit_status());
                    let count = victims.remove(&process);
                    // Asked only where it can be the explanation.
                    let unexplained = status.is_none_or(|status| status.is_by(SIGKILL));
                    let struck = unexplained && count.is_some_and(|mut count| count.rose());
                    (process, if struck { Some(ExitStatus::OutOfMemory) } else { status })
                })
                .collect());
        }
    }
}
