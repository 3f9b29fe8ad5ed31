//! Network namespaces: which one this thread is in, and how to enter another.
//!
//! A network namespace belongs to a thread, not to the process, so everything
//! in here reads `/proc/thread-self` and never `/proc/self`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guard_core::model::NetnsInode;
use nix::errno::Errno;
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

/// Moves the calling thread, and only that thread, into the network namespace
/// at `path`, and says which one it is.
///
/// Threads that it starts afterwards inherit it; threads that already run do
/// not follow. Netlink sockets stay in the namespace they were opened in.
///
/// # Errors
///
/// See [`NetnsError`]; on an error the thread is where it was.
pub fn enter(path: &Path) -> Result<NetnsInode, NetnsError> {
    let file = File::open(path).map_err(|source| sort_out("opening", path, source))?;
    match setns(&file, CloneFlags::CLONE_NEWNET) {
        Ok(()) => current(),
        // EINVAL: not a namespace file, or one of another type.
        Err(Errno::EINVAL) => Err(NetnsError::NotANetns { path: path.to_owned() }),
        Err(errno) => Err(sort_out("entering", path, errno.into())),
    }
}

fn sort_out(operation: &'static str, path: &Path, source: io::Error) -> NetnsError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => NetnsError::Missing { path },
        io::ErrorKind::PermissionDenied => NetnsError::Denied { path, source },
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
        });
    }
}
