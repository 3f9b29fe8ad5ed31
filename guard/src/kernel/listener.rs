//! How a live socket of another process was bound: what no socket table shows.
//!
//! The descriptor is duplicated with `pidfd_getfd()` (Linux 5.6), asked, and
//! closed. In between, which is microseconds, the socket has one more holder: if its
//! owner closes it just then, the port is given back when the copy is closed. So
//! nobody should be asked whose end is being waited for. Under cgroup v1 with
//! `net_cls` or `net_prio` the socket also takes on this process's class
//! (`__receive_sock` in `net/core/scm.c`), as with every passed descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use guard_core::model::{SocketCookie, Tgid};
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// The flags that decide who may share a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindFlags {
    /// `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
    /// `IPV6_V6ONLY`; `None` for an IPv4 socket.
    pub v6only: Option<bool>,
}

/// Why a socket could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The process or its descriptor is gone, or the number means another file now.
    #[error("descriptor {fd} of process {tgid} is no longer the socket that was meant")]
    Gone {
        /// The owner.
        tgid: Tgid,
        /// The number.
        fd: RawFd,
    },
    /// Only who may trace the process may duplicate its descriptors.
    #[error("duplicating descriptor {fd} of process {tgid} was denied: it needs CAP_SYS_PTRACE ({source})")]
    Denied {
        /// The owner.
        tgid: Tgid,
        /// The number.
        fd: RawFd,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel cannot duplicate other processes' descriptors.
    #[error("duplicating descriptors of other processes needs Linux 5.6 (pidfd_getfd)")]
    Unsupported,
    /// Any other error.
    #[error("asking descriptor {fd} of process {tgid} how it was bound failed: {source}")]
    Failed {
        /// The owner.
        tgid: Tgid,
        /// The number.
        fd: RawFd,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Asks descriptor `fd` of `tgid` how it was bound. The cookie proves that it is
/// that very socket: numbers of processes and of descriptors are reused.
///
/// # Errors
///
/// See [`ListenerError`].
pub fn bind_flags(tgid: Tgid, fd: RawFd, cookie: SocketCookie) -> Result<BindFlags, ListenerError> {
    let sort_out = |errno: Errno| match errno {
        Errno::SRCH | Errno::BADF | Errno::INVAL | Errno::NOTSOCK => ListenerError::Gone { tgid, fd },
        Errno::PERM | Errno::ACCESS => ListenerError::Denied { tgid, fd, source: errno.into() },
        Errno::NOSYS => ListenerError::Unsupported,
        _ => ListenerError::Failed { tgid, fd, source: errno.into() },
    };
    let pid = i32::try_from(tgid.0).ok().and_then(Pid::from_raw).ok_or(ListenerError::Gone { tgid, fd })?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(sort_out)?;
    let socket = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).map_err(sort_out)?;
    let failed = |source: io::Error| ListenerError::Failed { tgid, fd, source };
    let found = match option(&socket, libc::SO_COOKIE, 0_u64) {
        Ok(found) => SocketCookie(found),
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
            return Err(ListenerError::Gone { tgid, fd });
        }
        Err(error) => return Err(failed(error)),
    };
    if found != cookie {
        return Err(ListenerError::Gone { tgid, fd });
    }
    let is_inet6 = option(&socket, libc::SO_DOMAIN, 0_i32).map_err(failed)? == libc::AF_INET6;
    let failed = |errno: nix::Error| failed(errno.into());
    Ok(BindFlags {
        reuse_address: getsockopt(&socket, sockopt::ReuseAddr).map_err(failed)?,
        reuse_port: getsockopt(&socket, sockopt::ReusePort).map_err(failed)?,
        v6only: match is_inet6 {
            true => Some(getsockopt(&socket, sockopt::Ipv6V6Only).map_err(failed)?),
            false => None,
        },
    })
}

/// A number that `getsockopt()` may fill with any bits.
trait Number: Copy {}
impl Number for i32 {}
impl Number for u64 {}

/// An option of level `SOL_SOCKET` that nix does not know.
fn option<T: Number>(socket: &impl std::os::fd::AsFd, name: i32, mut value: T) -> io::Result<T> {
    let socket: BorrowedFd<'_> = socket.as_fd();
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut length = size;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which is that long, outlives the call
    // and may hold any bits.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length)
    };
    nix::errno::Errno::result(result)?;
    if length == size { Ok(value) } else { Err(io::Error::other("an option of an unexpected size")) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::sys::socket::setsockopt;

    use super::*;
    use crate::kernel::sandbox::{self, REUSE, Sleeper, listening, netns_alone};

    fn cookie_of(socket: &OwnedFd) -> SocketCookie {
        SocketCookie(option(socket, libc::SO_COOKIE, 0_u64).unwrap())
    }

    /// A child that shares `socket` under the same number.
    fn flags_in_a_child(alone: &sandbox::Alone, socket: &OwnedFd) -> BindFlags {
        let child = Sleeper::fork(alone);
        bind_flags(child.tgid(), socket.as_raw_fd(), cookie_of(socket)).unwrap()
    }

    #[test]
    fn the_flags_of_another_process_s_listener_can_be_read() {
        netns_alone("the_flags_of_another_process_s_listener_can_be_read", |alone| {
            let (v4, _) = listening("127.0.0.1", None, REUSE);
            let expected = BindFlags { reuse_address: true, reuse_port: false, v6only: None };
            assert_eq!(flags_in_a_child(alone, &v4), expected);
            setsockopt(&v4, sockopt::ReuseAddr, &false).unwrap();
            setsockopt(&v4, sockopt::ReusePort, &true).unwrap();
            let expected = BindFlags { reuse_address: false, reuse_port: true, v6only: None };
            assert_eq!(flags_in_a_child(alone, &v4), expected);
            let (v6, _) = listening("::", None, REUSE);
            assert_eq!(flags_in_a_child(alone, &v6).v6only, Some(false));
        });
    }

    #[test]
    fn another_socket_under_the_same_number_is_not_taken_for_it() {
        netns_alone("another_socket_under_the_same_number_is_not_taken_for_it", |alone| {
            let (one, _) = listening("127.0.0.1", None, REUSE);
            let (other, _) = listening("127.0.0.1", None, REUSE);
            let child = Sleeper::fork(alone);
            let gone = |asked| matches!(asked, Err(ListenerError::Gone { .. }));
            assert!(gone(bind_flags(child.tgid(), one.as_raw_fd(), cookie_of(&other))));
            assert!(gone(bind_flags(child.tgid(), i32::MAX, cookie_of(&one))));
            assert!(bind_flags(child.tgid(), 2, cookie_of(&one)).is_err(), "standard error is another file");
            let tgid = child.tgid();
            drop(child);
            assert!(gone(bind_flags(tgid, one.as_raw_fd(), cookie_of(&one))));
        });
    }
}
