//! Network namespaces: which one this thread is in, and how to enter another.
//!
//! A network namespace belongs to a thread, not to the process, so everything
//! in here reads `/proc/thread-self` and never `/proc/self`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use guard_core::model::{NetnsInode, Tgid};
use nix::errno::Errno;
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::sched::{CloneFlags, setns};

const THREAD_NETNS: &str = "/proc/thread-self/ns/net";

/// What can go wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The namespace file is not there.
    #[error("there is no network namespace at {}: the process may have ended, or the name is wrong", path.display())]
    Missing {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The file is there and is no network namespace.
    #[error("{} is not a network namespace: give a path such as /proc/PID/ns/net or /run/netns/NAME", path.display())]
    NotANetns {
        /// The path as it was given.
        path: PathBuf,
    },
    /// Reading or entering it needs more privilege.
    #[error("entering the network namespace {} was denied: it needs CAP_SYS_ADMIN, and CAP_SYS_PTRACE for another user's process", path.display())]
    Denied {
        /// The path as it was given.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Any other error.
    #[error("{operation} the network namespace {} failed: {source}", path.display())]
    Failed {
        /// "opening", "reading" or "entering".
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The network namespace of the calling thread.
///
/// # Errors
///
/// When `/proc` is not mounted or is another PID namespace's.
pub fn current() -> Result<NetnsInode, NetnsError> {
    let path = Path::new(THREAD_NETNS);
    match fs::metadata(path) {
        Ok(metadata) => Ok(NetnsInode(metadata.ino())),
        Err(source) => Err(sort_out("reading", path, source)),
    }
}

/// The network namespace that the main thread of `process` lives in.
///
/// # Errors
///
/// When the process has ended, or may not be looked into.
pub fn of(process: Tgid) -> Result<NetnsInode, NetnsError> {
    let path = format!("/proc/{process}/ns/net");
    let path = Path::new(&path);
    match fs::metadata(path) {
        Ok(metadata) => Ok(NetnsInode(metadata.ino())),
        Err(source) => Err(sort_out("reading", path, source)),
    }
}

/// Moves the calling thread, and only that thread, into the network namespace
/// at `path`, and says which one it is.
///
/// Threads that it starts afterwards inherit it; threads that already run do
/// not follow. Netlink sockets stay in the namespace they were opened in.
///
/// The open file keeps the namespace alive, so what is judged is what is
/// entered, whatever the path leads to afterwards. Entering the namespace that
/// the thread is in already needs no privilege.
///
/// # Errors
///
/// See [`NetnsError`]; on an error the thread is where it was.
pub fn enter(path: &Path) -> Result<NetnsInode, NetnsError> {
    let file = open(path).map_err(|source| sort_out("opening", path, source))?;
    if is_current(&file) {
        return current();
    }
    match setns(&file, CloneFlags::CLONE_NEWNET) {
        Ok(()) => current(),
        // EINVAL: not a namespace file, or one of another type.
        Err(Errno::EINVAL) => Err(NetnsError::NotANetns { path: path.to_owned() }),
        Err(errno) => Err(sort_out("entering", path, errno.into())),
    }
}

/// The path is whatever the user gave: a FIFO must not block, nor a terminal
/// become ours.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path)
}

fn is_current(file: &File) -> bool {
    let here = fs::metadata(THREAD_NETNS);
    matches!((file.metadata(), here), (Ok(a), Ok(b)) if a.dev() == b.dev() && a.ino() == b.ino())
}

fn sort_out(operation: &'static str, path: &Path, source: io::Error) -> NetnsError {
    let path = path.to_owned();
    match (source.kind(), source.raw_os_error().map(Errno::from_raw)) {
        // ENOTDIR, ESRCH: a process without that entry, or one that is ending.
        (io::ErrorKind::NotFound | io::ErrorKind::NotADirectory, _) | (_, Some(Errno::ESRCH)) => {
            NetnsError::Missing { path }
        }
        (io::ErrorKind::PermissionDenied, _) => NetnsError::Denied { path, source },
        _ => NetnsError::Failed { operation, path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::sandbox;

    #[test]
    fn a_namespace_belongs_to_the_thread() {
        let outside = current().unwrap();
        sandbox::netns("a_namespace_belongs_to_the_thread", move || {
            assert_ne!(current().unwrap(), outside);
        });
        assert_eq!(current().unwrap(), outside);
    }

    #[test]
    fn entering_another_thread_s_namespace_moves_only_this_thread() {
        let outside = current().unwrap();
        sandbox::netns("entering_another_thread_s_namespace_moves_only_this_thread", move || {
            let inside = current().unwrap();
            let home = format!("/proc/{}/ns/net", std::process::id());
            let came_to = enter(Path::new(&home)).unwrap();
            assert_eq!(came_to, outside);
            assert_ne!(came_to, inside);
        });
    }

    #[test]
    fn what_is_no_namespace_is_refused_by_name() {
        sandbox::netns("what_is_no_namespace_is_refused_by_name", || {
            assert!(matches!(enter(Path::new("/proc/self/status")), Err(NetnsError::NotANetns { .. })));
            assert!(matches!(enter(Path::new("/proc/self/ns/uts")), Err(NetnsError::NotANetns { .. })));
            assert!(matches!(enter(Path::new("/proc/self/ns/none")), Err(NetnsError::Missing { .. })));
            assert!(matches!(enter(Path::new("/proc/self/status/net")), Err(NetnsError::Missing { .. })));
        });
    }

    #[test]
    fn a_fifo_is_refused_and_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(enter(&fifo), Err(NetnsError::NotANetns { .. })));
    }

    #[test]
    fn the_namespace_that_one_is_in_can_be_entered_by_anybody() {
        assert_eq!(enter(Path::new(THREAD_NETNS)).unwrap(), current().unwrap());
    }
}
