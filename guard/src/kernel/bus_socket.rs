//! Connecting to a message bus as the user it belongs to.
//!
//! A bus knows a client by the credentials that the kernel noted when it
//! connected (`SO_PEERCRED`), and a user's bus turns away everybody else, root
//! included. So a thread of its own takes on the user's *effective* id,
//! connects, and ends. Credentials belong to a thread (credentials(7)); the
//! real and the saved id stay root's, so the user may neither signal nor trace
//! it.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use guard_core::model::Uid;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};
use rustix::thread::set_thread_res_uid;

/// An id that stays as it is.
const KEEP: Option<rustix::process::Uid> = None;

/// Why a bus could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum BusSocketError {
    /// Only root may act as another user.
    #[error("acting as user {uid} needs root (CAP_SETUID): {source}")]
    Denied {
        /// The user.
        uid: Uid,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such socket, or nobody listens on it.
    #[error("cannot connect to the message bus at {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No thread for it.
    #[error("cannot start a thread to connect to the message bus: {0}")]
    Thread(#[source] io::Error),
}

impl BusSocketError {
    /// It is a matter of permission.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Denied { .. } => true,
            Self::Connect { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Thread(_) => false,
        }
    }
}

/// Connects to the bus at `path` as the user `uid`.
///
/// # Errors
///
/// See [`BusSocketError`].
pub fn connect(path: &Path, uid: Uid) -> Result<UnixStream, BusSocketError> {
    let to = |source| BusSocketError::Connect { path: path.to_owned(), source };
    if own_uid() == uid {
        return at_once(path).map_err(to);
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("bus".to_owned()).spawn_scoped(scope, || {
            set_thread_res_uid(KEEP, rustix::process::Uid::from_raw(uid.0), KEEP)
                .map_err(|errno| BusSocketError::Denied { uid, source: errno.into() })?;
            at_once(path).map_err(to)
        });
        let ended = thread.map_err(BusSocketError::Thread)?.join();
        ended.unwrap_or_else(|_| Err(BusSocketError::Thread(io::Error::other("the thread panicked"))))
    })
}

/// A bus whose queue is full is an error (`EAGAIN`): whoever is on the socket
/// of some user could keep a blocking `connect()` waiting for ever.
fn at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// The effective user id of this process.
pub fn own_uid() -> Uid {
    Uid(rustix::process::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// `SO_PEERCRED` is what a bus goes by.
    #[test]
    fn a_bus_sees_the_user_as_whom_it_was_connected_to() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = folder.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let seen = |stream: &UnixStream| {
            nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials).unwrap().uid()
        };
        let own = own_uid();
        let _client = connect(&path, own).unwrap();
        assert_eq!(seen(&listener.accept().unwrap().0), own.0);
        let other = connect(&path, Uid(65534));
        if own.0 == 0 {
            assert_eq!(seen(&listener.accept().unwrap().0), 65534);
            assert_eq!(own_uid(), own, "this thread, and all others, are who they were");
        } else {
            assert!(matches!(other, Err(BusSocketError::Denied { .. })), "{other:?}");
        }
        let missing = connect(&folder.path().join("missing"), own);
        assert!(missing.unwrap_err().to_string().contains("/missing"));
    }

    #[test]
    fn a_bus_that_accepts_nobody_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let mut queued = Vec::new();
        let full = loop {
            match connect(&path, own_uid()) {
                Ok(stream) => queued.push(stream),
                Err(error) => break error,
            }
            assert!(queued.len() < 100, "the queue has an end");
        };
        let BusSocketError::Connect { source, .. } = &full else { panic!("{full}") };
        assert_eq!(source.kind(), io::ErrorKind::WouldBlock, "{full}");
    }
}
