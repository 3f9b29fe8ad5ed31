//! `/proc`: processes, who holds which socket, and the socket table of last
//! resort.
//!
//! What needs more than one file of a process is read through one descriptor of its
//! `/proc/PID` directory. That descriptor stays with the process it was opened for: after
//! its end every read fails with `ESRCH` or `ENOENT`, even when the number was
//! given to a new process meanwhile.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use guard_core::model::Tgid;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

mod net;
mod owners;
mod process;
mod source_ports;
mod start;
mod stat;
mod view;

pub use net::sockets;
pub use owners::{OwnerScan, has_socket_at, owned_by_unless, owners, owners_unless};
pub use process::{Ancestors, ancestors, clock_ticks_per_second, everybody, own, process, start_time};
pub use source_ports::source_ports;
pub use start::{BootOffset, boot_offset};
pub use view::{
    HidePid, effective_capabilities, hidepid, in_initial_pid_namespace, in_initial_user_namespace,
    may_trace_everybody, open_files, processes, what_is_unseen,
};

/// What can go wrong with `/proc`.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// The file may not be read.
    #[error("reading {path} was denied: run portguard as root or with CAP_SYS_PTRACE ({source})")]
    Denied {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file has a form that this version does not know.
    #[error("{path} has an unexpected form: {what}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Any other error, among them a `/proc` that is not mounted.
    #[error("reading {path} failed: {source}")]
    Failed {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ProcError {
    fn new(path: impl Into<String>, errno: Errno) -> Self {
        let (path, source) = (path.into(), errno.into());
        match errno {
            Errno::PERM | Errno::ACCESS => Self::Denied { path, source },
            _ => Self::Failed { path, source },
        }
    }
}

/// The process ended: its directory is gone, or answers no longer.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::SRCH)
}

fn open_dir(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn open_process(tgid: Tgid) -> Result<OwnedFd, Errno> {
    open_dir(CWD, &format!("/proc/{tgid}"))
}

/// Room for what most files of a process hold.
const USUAL: usize = 4096;

/// The whole file; the kernel bounds what it shows here.
fn read_at(dir: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, Errno> {
    read_start_at(dir, name, u64::MAX)
}

/// At most the first `longest` bytes of the file.
fn read_start_at(dir: BorrowedFd<'_>, name: &str, longest: u64) -> Result<Vec<u8>, Errno> {
    let file = File::from(openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    // Nearly all are shorter, and each read has the kernel write them anew or find its place again.
    let mut bytes = Vec::with_capacity(USUAL.min(usize::try_from(longest).unwrap_or(USUAL)));
    match file.take(longest).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

/// The process number behind a pidfd in this `/proc`'s PID namespace, `None`
/// once it was reaped. Since Linux 5.3, as pidfds themselves.
pub(super) fn pid_of_pidfd(fd: BorrowedFd<'_>) -> Result<Option<Tgid>, ProcError> {
    let path = format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd());
    let text = read_at(CWD, &path).map_err(|errno| ProcError::new(path.as_str(), errno))?;
    let number = String::from_utf8_lossy(&text)
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|number| number.trim().parse::<i64>().ok())
        .ok_or(ProcError::Malformed { path, what: "no line \"Pid:\"" })?;
    // -1: reaped. 0: alive, but with no number in this /proc's namespace.
    Ok(u32::try_from(number).ok().map(Tgid))
}
