//! The door to listening on a Unix socket, and to knowing who calls.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockname, listen, socket,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{Gid, chown};

/// Where a service manager puts the first socket that it hands over
/// (`SD_LISTEN_FDS_START` of `sd_listen_fds(3)`).
const FIRST_HANDED_OVER: i32 = 3;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 511;

/// More supplementary groups than any user has.
const MOST_GROUPS: usize = 65_536;

/// A Unix socket could not be listened on.
#[derive(Debug, thiserror::Error)]
pub enum UnixSocketError {
    /// Somebody listens there.
    #[error("{} is in use: another sidecar answers there", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there already and is no socket: portguard does not remove it", path.display())]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// It may not be given to that group.
    #[error(
        "cannot give {} to the group {group}: {source}; that takes the capability CAP_CHOWN, or a user who is in \
         that group; where the service manager makes the socket, SocketGroup= of its .socket unit sets the group",
        path.display()
    )]
    Group {
        /// Where.
        path: PathBuf,
        /// Which group, by number.
        group: u32,
        /// What the system said.
        source: io::Error,
    },
    /// What was handed over is no listening Unix socket.
    #[error("the service manager did not hand over one listening Unix socket: {0}")]
    HandedOver(String),
    /// Anything else.
    #[error("cannot {operation} {}: {source}", path.display())]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl UnixSocketError {
    /// With more rights it would work.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Group { source, .. } | Self::Failed { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            Self::InUse { .. } | Self::NoSocket { .. } | Self::HandedOver(_) => false,
        }
    }
}

/// A socket's file, to be removed when it is no longer listened on.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Removes it, unless somebody has put another one in its place: then that is his.
    ///
    /// # Errors
    ///
    /// When it stays behind.
    pub fn remove(self) -> io::Result<()> {
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (self.device, self.inode) => {
                std::fs::remove_file(&self.path)
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Listens at `path`, which nobody but the owner can connect to before it has
/// the permissions `mode`. What a sidecar that was killed left there goes;
/// nothing else that is there does.
///
/// # Errors
///
/// See [`UnixSocketError`].
pub fn listen_at(
    path: &Path,
    mode: u32,
    group: Option<u32>,
) -> Result<(UnixListener, SocketFile), UnixSocketError> {
    let failed = |operation, source: Errno| UnixSocketError::Failed {
        operation,
        path: path.to_owned(),
        source: source.into(),
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| UnixSocketError::Failed {
            operation: "make the folder of",
            path: path.to_owned(),
            source,
        })?;
    }
    let address = UnixAddr::new(path).map_err(|errno| failed("listen at", errno))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| failed("make a socket for", errno))?;
    match bind(fd.as_raw_fd(), &address) {
        Err(Errno::EADDRINUSE) => {
            let there = std::fs::symlink_metadata(path).map_err(|source| UnixSocketError::Failed {
                operation: "look at",
                path: path.to_owned(),
                source,
            })?;
            if !there.file_type().is_socket() {
                return Err(UnixSocketError::NoSocket { path: path.to_owned() });
            }
            // Nobody listens there only if that is what the kernel says: a full queue (EAGAIN) is somebody.
            match connects(&address) {
                Err(Errno::ECONNREFUSED) => {}
                Ok(()) | Err(_) => return Err(UnixSocketError::InUse { path: path.to_owned() }),
            }
            std::fs::remove_file(path).map_err(|source| UnixSocketError::Failed {
                operation: "remove what is left of",
                path: path.to_owned(),
                source,
            })?;
            bind(fd.as_raw_fd(), &address).map_err(|errno| failed("listen at", errno))?;
        }
        bound => bound.map_err(|errno| failed("listen at", errno))?,
    }
    // Nobody can connect before listen(), so there is no moment with other permissions.
    fchmodat(nix::fcntl::AT_FDCWD, path, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
        .map_err(|errno| failed("set the permissions of", errno))?;
    if let Some(group) = group {
        let given = chown(path, None, Some(Gid::from_raw(group)));
        given.map_err(|errno| UnixSocketError::Group {
            path: path.to_owned(),
            group,
            source: errno.into(),
        })?;
    }
    let there = std::fs::symlink_metadata(path).map_err(|source| UnixSocketError::Failed {
        operation: "look at",
        path: path.to_owned(),
        source,
    })?;
    let file = SocketFile { path: path.to_owned(), device: there.dev(), inode: there.ino() };
    let backlog = Backlog::new(BACKLOG).map_err(|errno| failed("listen at", errno))?;
    listen(&fd, backlog).map_err(|errno| failed("listen at", errno))?;
    Ok((UnixListener::from(fd), file))
}

/// Whether somebody takes connections there. Waits for nobody.
fn connects(address: &UnixAddr) -> Result<(), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), address)
}

/// The socket that a service manager handed over (`LISTEN_FDS`), if it did.
/// The first call takes it.
///
/// # Errors
///
/// When something else was handed over.
pub fn handed_over(
    pid: Option<OsString>,
    count: Option<OsString>,
) -> Result<Option<UnixListener>, UnixSocketError> {
    let number = |text: Option<OsString>| text.and_then(|text| text.into_string().ok()?.parse::<u32>().ok());
    if number(pid) != Some(std::process::id()) {
        return Ok(None);
    }
    match number(count) {
        None | Some(0) => return Ok(None),
        Some(1) => {}
        Some(more) => return Err(UnixSocketError::HandedOver(format!("there are {more} descriptors"))),
    }
    // SAFETY: LISTEN_PID names this process, so the descriptor was left open for it and nothing else here knows its
    // number.
    let fd = unsafe { OwnedFd::from_raw_fd(FIRST_HANDED_OVER) };
    let wrong = |errno: Errno| UnixSocketError::HandedOver(errno.to_string());
    getsockname::<UnixAddr>(fd.as_raw_fd()).map_err(wrong)?;
    let listens = nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::AcceptConn).map_err(wrong)?;
    if !listens {
        return Err(UnixSocketError::HandedOver("it does not listen".to_owned()));
    }
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true).map_err(|error| UnixSocketError::HandedOver(error.to_string()))?;
    // It must not leak into the commands that are started.
    nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .map_err(wrong)?;
    Ok(Some(listener))
}

/// All groups of the process at the other end when it connected, the
/// supplementary ones (`SO_PEERGROUPS`, since Linux 4.13).
///
/// # Errors
///
/// When the kernel does not say.
pub fn peer_groups(stream: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; 64];
    loop {
        let mut length =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the buffer is as long as the length says, and the kernel writes back how much it used or needs.
        let result = unsafe {
            libc::getsockopt(
                stream.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(Errno::ERANGE) if count > groups.len() && count <= MOST_GROUPS => groups.resize(count, 0),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_has_its_permissions_and_replaces_a_dead_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/portguard.sock");
        let (first, _file) = listen_at(&path, 0o600, None).expect("a socket");
        assert_eq!(std::fs::metadata(&path).expect("the socket").permissions().mode() & 0o777, 0o600);
        let refused = listen_at(&path, 0o600, None).expect_err("somebody listens");
        assert!(matches!(refused, UnixSocketError::InUse { .. }), "{refused}");
        drop(first);
        let (second, _file) = listen_at(&path, 0o660, None).expect("the old one is dead");
        assert_eq!(std::fs::metadata(&path).expect("the socket").permissions().mode() & 0o777, 0o660);
        drop(second);
    }

    #[test]
    fn what_is_no_socket_is_not_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("portguard.sock");
        std::fs::write(&path, "precious").expect("a file");
        let refused = listen_at(&path, 0o600, None).expect_err("something else is there");
        assert!(matches!(refused, UnixSocketError::NoSocket { .. }), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).expect("the file"), "precious");
    }

    #[test]
    fn a_listener_with_a_full_queue_is_somebody_and_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("portguard.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        listen(&listener, Backlog::new(1).expect("a backlog")).expect("a short queue");
        let address = UnixAddr::new(&path).expect("an address");
        let mut queued = Vec::new();
        loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("a socket");
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => queued.push(fd),
                Err(errno) => break assert_eq!(errno, Errno::EAGAIN),
            }
            assert!(queued.len() < 100, "the queue has an end");
        }
        let refused = listen_at(&path, 0o600, None).expect_err("somebody listens");
        assert!(matches!(refused, UnixSocketError::InUse { .. }), "{refused}");
        assert!(path.exists());
    }

    #[test]
    fn a_socket_that_another_put_in_its_place_is_not_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("portguard.sock");
        let (_first, file) = listen_at(&path, 0o600, None).expect("a socket");
        std::fs::remove_file(&path).expect("removed by somebody");
        let _other = UnixListener::bind(&path).expect("another's socket");
        file.remove().expect("there is nothing to do");
        assert!(path.exists() && UnixStream::connect(&path).is_ok());
        std::fs::remove_file(&path).expect("removed by somebody");
        let (_second, file) = listen_at(&path, 0o600, None).expect("a socket");
        file.remove().expect("it is our own");
        assert!(!path.exists());
    }

    #[test]
    fn only_what_was_meant_for_this_process_is_taken() {
        let other = std::process::id() + 1;
        let some = |number: u32| Some(OsString::from(number.to_string()));
        assert!(handed_over(some(other), some(1)).expect("not ours").is_none());
        assert!(handed_over(None, some(1)).expect("not ours").is_none());
        assert!(handed_over(some(std::process::id()), some(0)).expect("nothing").is_none());
        assert!(handed_over(some(std::process::id()), some(2)).is_err());
    }

    #[test]
    fn the_groups_of_a_peer_are_its_own() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let groups = peer_groups(&ours).expect("groups");
        let own: Vec<u32> =
            nix::unistd::getgroups().expect("groups").into_iter().map(|group| group.as_raw()).collect();
        assert_eq!(groups.len(), own.len());
        assert!(groups.iter().all(|group| own.contains(group)));
    }
}
