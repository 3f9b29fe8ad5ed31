//! Process file descriptors: a process that cannot be mistaken for another.
//!
//! # Why [`PidFd::open`] is free of races
//!
//! A PID may be reused between looking at a process and signalling it. So:
//!
//! 1. `pidfd_open(N)` pins one process P for good.
//! 2. Then `/proc/N/stat` is read: the start time of whoever has number N now.
//! 3. Then `/proc/self/fdinfo/FD` says P's number *in the PID namespace of
//!    `/proc`*, which is -1 once P was reaped.
//!
//! When step 3 says N, P had the number N the whole time from 1 to 3, because a
//! number is given away only after its process was reaped. So step 2 read P's
//! start time and nobody else's. The same step refuses a `/proc` that belongs
//! to another PID namespace, where N would be another process altogether.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guard_core::model::{ExitStatus, ProcessId, Signal, StartTime, Tgid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use super::procfs::{self, ProcError};

/// What can go wrong with a pidfd.
#[derive(Debug, thiserror::Error)]
pub enum PidFdError {
    /// The process has ended: it is a zombie with no live thread, or reaped.
    #[error("process {0} has ended")]
    Gone(Tgid),
    /// The number belongs to another process by now. Nobody was signalled.
    #[error(
        "process number {tgid} was reused: the process that was meant started at tick {expected}, this one at tick {found}"
    )]
    IdentityChanged {
        /// The number.
        tgid: Tgid,
        /// Start time of the process that was meant.
        expected: StartTime,
        /// Start time of the process that has the number now.
        found: StartTime,
    },
    /// The process is another user's, or hidden.
    #[error("{operation} process {tgid} was denied: it needs {capability} ({source})")]
    Denied {
        /// The step.
        operation: &'static str,
        /// The process.
        tgid: Tgid,
        /// What would permit it.
        capability: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no pidfds.
    #[error("{operation} process {tgid} is not possible on this kernel: it needs {needs}")]
    Unsupported {
        /// The step.
        operation: &'static str,
        /// The process.
        tgid: Tgid,
        /// What would make it possible.
        needs: &'static str,
    },
    /// Any other error.
    #[error("{operation} process {tgid} failed: {source}")]
    Failed {
        /// The step.
        operation: &'static str,
        /// The process.
        tgid: Tgid,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process's start time could not be read.
    #[error("process {tgid} cannot be recognised: {source}")]
    Unrecognised {
        /// The process.
        tgid: Tgid,
        /// Why not.
        source: ProcError,
    },
}

/// One process, held by a descriptor: it stays this process even after its end.
///
/// The descriptor ([`AsFd`]) becomes readable when the *whole thread group* has
/// exited, which is after its descriptors were closed (every kernel since 5.3:
/// only `PIDFD_THREAD` descriptors, which this is not, follow one thread). A
/// thread group leader that exits before its threads is not an end.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    process: ProcessId,
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PidFd {
    /// Opens `process` and makes sure that it is that very process (see the
    /// module) and that it has not ended.
    ///
    /// # Errors
    ///
    /// See [`PidFdError`]; [`PidFdError::Gone`] and
    /// [`PidFdError::IdentityChanged`] both mean that the process has ended.
    pub fn open(process: ProcessId) -> Result<Self, PidFdError> {
        const OPERATION: &str = "opening";
        let tgid = process.tgid;
        let failed = |errno: Errno| PidFdError::Failed { operation: OPERATION, tgid, source: errno.into() };
        let pid = i32::try_from(tgid.0).ok().and_then(Pid::from_raw).ok_or(PidFdError::Gone(tgid))?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
            // EINVAL, ENOENT since 6.9: the number is that of a thread now.
            Errno::SRCH | Errno::INVAL | Errno::NOENT => PidFdError::Gone(tgid),
            Errno::NOSYS => {
                PidFdError::Unsupported { operation: OPERATION, tgid, needs: "Linux 5.3 (pidfd_open)" }
            }
            Errno::PERM | Errno::ACCESS => PidFdError::Denied {
                operation: OPERATION,
                tgid,
                capability: "a sandbox (seccomp) that allows pidfd_open",
                source: errno.into(),
            },
            errno => failed(errno),
        })?;
        let found = procfs::start_time(tgid).map_err(|source| PidFdError::Unrecognised { tgid, source })?;
        match procfs::pid_of_pidfd(fd.as_fd()).map_err(|source| PidFdError::Unrecognised { tgid, source })? {
            Some(number) if number == tgid => {}
            // /proc shows another PID namespace: there, this number is somebody else.
            Some(_) => return Err(hidden(tgid, "a /proc of portguard's own PID namespace")),
            None => {
                return Err(match found {
                    Some(found) if found != process.start => {
                        PidFdError::IdentityChanged { tgid, expected: process.start, found }
                    }
                    _ => PidFdError::Gone(tgid),
                });
            }
        }
        match found {
            Some(found) if found == process.start => {}
            Some(found) => return Err(PidFdError::IdentityChanged { tgid, expected: process.start, found }),
            // It has its number, so it exists, and /proc does not show it.
            None => return Err(hidden(tgid, "CAP_SYS_PTRACE, or /proc without hidepid")),
        }
        let opened = Self { fd, process };
        if opened.has_exited()? { Err(PidFdError::Gone(tgid)) } else { Ok(opened) }
    }

    /// Which process it is.
    pub const fn process(&self) -> ProcessId {
        self.process
    }

    /// Sends `signal` to the whole process.
    ///
    /// # Errors
    ///
    /// [`PidFdError::Gone`] when it was reaped (a zombie takes the signal and
    /// ignores it), [`PidFdError::Denied`] without `CAP_KILL` for another
    /// user's process.
    pub fn signal(&self, signal: Signal) -> Result<(), PidFdError> {
        let tgid = self.process.tgid;
        let (operation, number) = match signal {
            Signal::Term => ("sending SIGTERM to", rustix::process::Signal::TERM),
            Signal::Kill => ("sending SIGKILL to", rustix::process::Signal::KILL),
            Signal::Continue => ("sending SIGCONT to", rustix::process::Signal::CONT),
        };
        pidfd_send_signal(&self.fd, number).map_err(|errno| match errno {
            Errno::SRCH => PidFdError::Gone(tgid),
            Errno::PERM | Errno::ACCESS => PidFdError::Denied {
                operation,
                tgid,
                capability: "the same user or CAP_KILL",
                source: errno.into(),
            },
            Errno::NOSYS => {
                PidFdError::Unsupported { operation, tgid, needs: "Linux 5.1 (pidfd_send_signal)" }
            }
            errno => PidFdError::Failed { operation, tgid, source: errno.into() },
        })
    }

    /// Whether the whole thread group has exited; a zombie has.
    ///
    /// # Errors
    ///
    /// [`PidFdError::Failed`] when `poll()` fails, which leaves it open.
    pub fn has_exited(&self) -> Result<bool, PidFdError> {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&NOW)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => {
                    let tgid = self.process.tgid;
                    return Err(PidFdError::Failed { operation: "polling", tgid, source: errno.into() });
                }
            }
        }
    }

    /// How it ended, by `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`: since Linux
    /// 6.15, and only once its parent has reaped it. `None` before, elsewhere
    /// and where the kernel does not say.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        exit_status_of(self.fd.as_fd())
    }
}

/// As [`PidFd::exit_status`], for any pidfd.
pub(super) fn exit_status_of(pidfd: BorrowedFd<'_>) -> Option<ExitStatus> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the opcode carries the size of `PidfdInfo`, the first published
    // layout of `struct pidfd_info`; the kernel reads and writes only that many
    // bytes of it, and `info` outlives the call.
    let answer = unsafe { ioctl(pidfd, Updater::<PIDFD_GET_INFO, PidfdInfo>::new(&mut info)) };
    // An error is a kernel before 6.13 (ENOTTY) or before 6.15, where a reaped
    // process has no information left (ESRCH).
    answer.ok()?;
    (info.mask & PIDFD_INFO_EXIT != 0).then(|| ExitStatus::from_wait_status(info.exit_code))
}

fn hidden(tgid: Tgid, capability: &'static str) -> PidFdError {
    PidFdError::Denied {
        operation: "recognising",
        tgid,
        capability,
        source: io::ErrorKind::PermissionDenied.into(),
    }
}

/// `struct pidfd_info` of `include/uapi/linux/pidfd.h`, `PIDFD_INFO_SIZE_VER0`.
#[repr(C)]
#[derive(Debug, Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    /// pid, tgid, ppid, and eight user and group ids: not used here.
    numbers: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);
const _: () = assert!(std::mem::offset_of!(PidfdInfo, exit_code) == 60);

const PIDFD_INFO_EXIT: u64 = 1 << 3;
const PIDFD_GET_INFO: Opcode = opcode::read_write::<PidfdInfo>(0xff, 11);

#[cfg(test)]
mod tests;
