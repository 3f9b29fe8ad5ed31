//! Many pidfds behind one descriptor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use guard_core::model::ProcessId;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::pidfd::{PidFd, PidFdError};

/// Processes that are taken at a time.
const BATCH: usize = 16;

/// An epoll set of pidfds. Its descriptor ([`AsFd`]) is readable while a
/// process in the set has exited as a whole thread group.
#[derive(Debug)]
pub struct ExitSet {
    epoll: Epoll,
    members: BTreeMap<u64, PidFd>,
    next_token: u64,
}

impl AsFd for ExitSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl ExitSet {
    /// An empty set.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, members: BTreeMap::new(), next_token: 0 })
    }

    /// Adds a process; a member stays a member.
    ///
    /// # Errors
    ///
    /// As [`PidFd::open`]: [`PidFdError::Gone`] and
    /// [`PidFdError::IdentityChanged`] mean that it has exited already.
    pub fn add(&mut self, process: ProcessId) -> Result<(), PidFdError> {
        if self.get(process).is_some() {
            return Ok(());
        }
        let pidfd = PidFd::open(process)?;
        let token = self.next_token;
        self.next_token += 1;
        self.epoll.add(pidfd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token)).map_err(|errno| {
            PidFdError::Failed { operation: "watching", tgid: process.tgid, source: errno.into() }
        })?;
        self.members.insert(token, pidfd);
        Ok(())
    }

    /// The pidfd of a member.
    pub fn get(&self, process: ProcessId) -> Option<&PidFd> {
        self.members.values().find(|pidfd| pidfd.process() == process)
    }

    /// Takes out the members that have exited, a few at a time: call again until
    /// there is none. Never blocks.
    ///
    /// # Errors
    ///
    /// When the set itself fails.
    pub fn take_exited(&mut self) -> io::Result<Vec<PidFd>> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
        // Closing the pidfd takes it out of the set as well.
        Ok(events[..count].iter().filter_map(|event| self.members.remove(&event.data())).collect())
    }
}
