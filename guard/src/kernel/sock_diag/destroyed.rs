//! The kernel's own announcements of destroyed TCP sockets.
//!
//! `sock_diag_broadcast_destroy()` sends one message per full socket from a
//! workqueue after `__sk_free()`, so always after the bind bucket was released.
//! TIME_WAIT sockets are never announced. Anybody may listen; the groups exist
//! since Linux 4.3 and end at the border of the network namespace. But one who listens in any
//! namespace makes the kernel announce everywhere (`netlink_has_listeners()` asks the protocol,
//! not the namespace), and so the first message may be of a socket that ended before the subscription.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use guard_core::model::{Port, Socket};
use netlink_packet_core::{DecodeError, NetlinkBuffer};
use netlink_packet_sock_diag::AF_INET;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use tracing::{debug, trace};

use super::{NEEDS_DIAG, SockDiagError, row};

/// `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY` of `linux/sock_diag.h`.
const GROUPS: [u32; 2] = [1, 3];

/// Where a message has `idiag_family` of `inet_diag_msg`, after `nlmsghdr` (16).
const FAMILY_OFFSET: usize = 16;
/// Where a message has the local port: `nlmsghdr` (16), then four bytes and
/// `idiag_sport` of `inet_diag_msg`.
const SPORT_OFFSET: u32 = 20;
/// `idiag_dport` follows it.
const DPORT_OFFSET: u32 = 22;

/// An announcement without attributes: `nlmsghdr` and `inet_diag_msg` (72).
const ANNOUNCEMENT: usize = 16 + 72;

/// What was being done, for errors.
const SUBSCRIBING: &str = "subscribing to announcements";

/// One announcement is a few hundred bytes.
const DATAGRAM: usize = 8 * 1024;

/// What became of the announcements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All that had been sent were read.
    Whole,
    /// The reader had enough: there may be more.
    InPart,
    /// The receive buffer overran (`ENOBUFS`): some were lost.
    Overrun,
}

/// A port whose sockets' ends are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Local port.
    pub port: Port,
    /// Of connections too. Of sockets without a peer always, which an aborted
    /// connection is as well.
    pub connections: bool,
}

/// A subscription to the destruction of the sockets on a few ports.
pub struct DestroyedSockets {
    socket: NetlinkSocket,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for DestroyedSockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DestroyedSockets").finish_non_exhaustive()
    }
}

impl AsFd for DestroyedSockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl DestroyedSockets {
    /// Subscribes in the calling thread's network namespace; the kernel drops
    /// the messages about all other sockets, unless there are more ports than it takes
    /// in a filter: then messages about other ports come too. `receive_bytes` sizes the receive
    /// buffer, beyond `net.core.rmem_max` only with `CAP_NET_ADMIN`; `None` leaves
    /// the system's default.
    ///
    /// # Errors
    ///
    /// See [`SockDiagError`].
    pub fn subscribe(ports: &[Announced], receive_bytes: Option<usize>) -> Result<Self, SockDiagError> {
        let failed = |source| match Errno::from_raw(io::Error::raw_os_error(&source).unwrap_or(0)) {
            Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL => {
                SockDiagError::Unsupported { needs: NEEDS_DIAG, source }
            }
            Errno::EPERM | Errno::EACCES => SockDiagError::Denied { operation: SUBSCRIBING, source },
            _ => SockDiagError::Failed { operation: SUBSCRIBING, source },
        };
        let mut socket = NetlinkSocket::new(NETLINK_SOCK_DIAG).map_err(failed)?;
        if let Some(bytes) = receive_bytes {
            size_buffer(&socket, bytes).map_err(|errno| failed(errno.into()))?;
        }
        // The filter comes first: nothing unfiltered is ever queued.
        attach_best_filter(&socket, ports).map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
        for group in GROUPS {
            socket.add_membership(group).map_err(failed)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Lets the kernel pass the messages about these ports from now on, and no
    /// others where they fit into a filter. One filter replaces the other without a gap.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then the old ports are still listened to.
    pub fn listen_to(&self, ports: &[Announced]) -> Result<(), SockDiagError> {
        let failed = |source| SockDiagError::Failed { operation: SUBSCRIBING, source };
        attach_best_filter(&self.socket, ports).map_err(failed)
    }

    /// Gives the receive buffer this size, unless it is that large already.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then it is as large as before.
    pub fn make_room(&self, receive_bytes: usize) -> Result<(), SockDiagError> {
        // The kernel tells it doubled.
        if getsockopt(&self.socket, sockopt::RcvBuf).is_ok_and(|bytes| bytes / 2 >= receive_bytes) {
            return Ok(());
        }
        let failed = |errno: Errno| SockDiagError::Failed {
            operation: "making room for announcements",
            source: errno.into(),
        };
        size_buffer(&self.socket, receive_bytes).map_err(failed)
    }

    /// Reads the waiting announcements, oldest first, until `sink` has enough. Never blocks. Of a socket there is
    /// who it was and what it was bound to: no flags. A message that cannot be decoded counts as lost.
    ///
    /// # Errors
    ///
    /// When the socket fails for good.
    pub fn drain(
        &mut self,
        mut sink: impl FnMut(Socket) -> ControlFlow<()>,
    ) -> Result<Drained, SockDiagError> {
        let mut drained = Drained::Whole;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(drained),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    drained = Drained::Overrun;
                    continue;
                }
                Err(source) => {
                    return Err(SockDiagError::Failed { operation: "listening to announcements", source });
                }
            }
            match decode(&self.buffer) {
                Ok(Some(socket)) => {
                    trace!(?socket, "destroyed");
                    if sink(socket).is_break() {
                        return Ok(if drained == Drained::Whole { Drained::InPart } else { drained });
                    }
                }
                Ok(None) => {}
                Err(_) => drained = Drained::Overrun,
            }
        }
    }

    /// Shows `sink` what an announcement looks like, of no socket that there is: nothing may follow from it.
    pub fn rehearse(&mut self, sink: impl FnOnce(Socket) -> ControlFlow<()>) {
        let mut message = [0; ANNOUNCEMENT];
        message[..4].copy_from_slice(&(ANNOUNCEMENT as u32).to_ne_bytes());
        message[FAMILY_OFFSET] = AF_INET;
        message[SPORT_OFFSET as usize + 1] = 1;
        self.buffer.clear();
        self.buffer.extend(std::hint::black_box(message));
        if let Ok(Some(socket)) = decode(&self.buffer) {
            // Whether more is wanted or not.
            let _made_up = sink(socket);
        }
    }
}

/// One announcement; `None` for a socket without a port.
// One copy of the code, for the rehearsal as well.
#[inline(never)]
fn decode(message: &[u8]) -> Result<Option<Socket>, DecodeError> {
    NetlinkBuffer::new_checked(message).and_then(|message| row::decode_announcement(message.payload()))
}

/// Classic BPF: pass a message whose local port is one of `ports`, and with a
/// peer only if its end is wanted. A busy server's thousands a second wake nobody.
fn filter(ports: &[Announced]) -> Vec<libc::sock_filter> {
    let (all, without_peer): (Vec<_>, Vec<_>) = ports.iter().partition(|announced| announced.connections);
    let mut program = pass(&all);
    program.extend(drop_with_peer());
    program.extend(pass(&without_peer));
    program.push(instruction(RETURN, 0));
    program
}

/// The same for more ports than fit: whatever their port, and no connections unless some are wanted.
fn coarse_filter(ports: &[Announced]) -> Vec<libc::sock_filter> {
    let mut program = Vec::new();
    if !ports.iter().any(|announced| announced.connections) {
        program.extend(drop_with_peer());
    }
    program.push(instruction(RETURN, u32::MAX));
    program
}

const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// A conditional jump goes no farther than 255 instructions.
const REACH: usize = 250;

const fn instruction(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

/// Goes on only with a message about a socket without a peer.
const fn drop_with_peer() -> [libc::sock_filter; 3] {
    [
        instruction(LOAD_HALF, DPORT_OFFSET),
        libc::sock_filter { jt: 1, ..instruction(JUMP_IF_EQUAL, 0) },
        instruction(RETURN, 0),
    ]
}

/// Passes these local ports, and goes on with all others. One instruction for a port: before Linux 6.8
/// the kernel takes 20 KiB of a filter (`net.core.optmem_max`), and both at once when one replaces another.
fn pass(ports: &[&Announced]) -> Vec<libc::sock_filter> {
    let mut program = vec![instruction(LOAD_HALF, SPORT_OFFSET)];
    for ports in ports.chunks(REACH) {
        // To the "pass" behind the block, over the jump that all others take.
        for (announced, jt) in ports.iter().zip((1..=ports.len() as u8).rev()) {
            program.push(libc::sock_filter { jt, ..instruction(JUMP_IF_EQUAL, announced.port.get().into()) });
        }
        program.extend([instruction(JUMP, 1), instruction(RETURN, u32::MAX)]);
    }
    program
}

/// The exact filter, or the coarse one where the kernel does not take that.
fn attach_best_filter(socket: &NetlinkSocket, ports: &[Announced]) -> io::Result<()> {
    attach_filter(socket, &filter(ports)).or_else(|error| {
        debug!(%error, ports = ports.len(), "sockets on other ports are announced too, and left out here");
        // While one replaces another the kernel counts both: without the old one there is room.
        attach_filter(socket, &coarse_filter(ports)).or_else(|_| {
            detach_filter(socket)?;
            attach_filter(socket, &coarse_filter(ports))
        })
    })
}

fn attach_filter(socket: &NetlinkSocket, program: &[libc::sock_filter]) -> io::Result<()> {
    let too_long = |_| io::Error::other("too many ports for one filter");
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(too_long)?,
        // The kernel only reads it.
        filter: program.as_ptr().cast_mut(),
    };
    let length = libc::socklen_t::try_from(size_of_val(&program)).map_err(too_long)?;
    // SAFETY: the option takes a `sock_fprog`, whose pointer and length describe a slice that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Everything passes from now on.
fn detach_filter(socket: &NetlinkSocket) -> io::Result<()> {
    let (unused, length) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the option takes no value; the kernel wants to be given an integer all the same, which lives here.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_FILTER,
            (&raw const unused).cast::<libc::c_void>(),
            length,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// The kernel doubles it for its own bookkeeping.
fn size_buffer(socket: &NetlinkSocket, bytes: usize) -> nix::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes).or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;
    use crate::kernel::bind::try_bind;
    use crate::kernel::sandbox::{
        REUSE, STRICT, become_nobody, eventually, listening, netns, queued, root_or_skip, spec,
    };
    use guard_core::model::BindOutcome;

    fn all(port: Port) -> Announced {
        Announced { port, connections: true }
    }

    fn drain(destroyed: &mut DestroyedSockets, mut sink: impl FnMut(Socket)) -> Drained {
        let to_the_end = |socket| {
            sink(socket);
            ControlFlow::Continue(())
        };
        destroyed.drain(to_the_end).unwrap()
    }

    fn next(destroyed: &mut DestroyedSockets) -> Socket {
        eventually("an announcement", || {
            let mut first = None;
            drain(destroyed, |socket| first = first.take().or(Some(socket)));
            first
        })
    }

    #[test]
    fn an_announcement_comes_after_the_release() {
        netns("an_announcement_comes_after_the_release", || {
            let (listener, port) = listening("127.0.0.1", None, STRICT);
            let mut destroyed = DestroyedSockets::subscribe(&[all(port)], None).unwrap();
            drop(listener);
            let socket = next(&mut destroyed);
            assert_eq!((socket.port, socket.remote), (port, None));
            assert_eq!(socket.address, Ipv4Addr::LOCALHOST);
            // A strict bind needs the bind bucket back.
            assert_eq!(try_bind(&spec("127.0.0.1", port, STRICT)).0, BindOutcome::Bindable);
        });
    }

    #[test]
    fn a_rehearsal_shows_a_socket_that_nobody_knows() {
        netns("a_rehearsal_shows_a_socket_that_nobody_knows", || {
            let (listener, port) = listening("127.0.0.1", None, STRICT);
            let mut destroyed = DestroyedSockets::subscribe(&[all(port)], None).unwrap();
            let mut seen = None;
            destroyed.rehearse(|socket| {
                seen = Some(socket);
                ControlFlow::Break(())
            });
            let seen = seen.unwrap();
            assert_eq!((seen.port.get(), seen.remote), (1, None));
            drop(listener);
            assert_eq!(next(&mut destroyed).port, port, "what the kernel says is read all the same");
        });
    }

    #[test]
    fn anybody_may_listen_to_announcements() {
        if !root_or_skip("anybody_may_listen_to_announcements") {
            return;
        }
        netns("anybody_may_listen_to_announcements", || {
            become_nobody();
            let (listener, port) = listening("::1", None, REUSE);
            let mut destroyed = DestroyedSockets::subscribe(&[all(port)], None).unwrap();
            drop(listener);
            assert_eq!(next(&mut destroyed).port, port);
        });
    }

    #[test]
    fn other_ports_are_filtered_in_the_kernel() {
        netns("other_ports_are_filtered_in_the_kernel", || {
            let (watched, port) = listening("127.0.0.1", None, REUSE);
            let (other, _) = listening("127.0.0.1", None, REUSE);
            let mut destroyed = DestroyedSockets::subscribe(&[all(port)], None).unwrap();
            drop(other);
            drop(watched);
            // In order, so the first one would be the other's.
            assert_eq!(next(&mut destroyed).port, port);
        });
    }

    /// A sidecar with a thousand services did not start in the netlink tier of Linux 5.10 and 6.1.
    #[test]
    fn as_many_ports_as_there_are_can_be_listened_to() {
        netns("as_many_ports_as_there_are_can_be_listened_to", || {
            let (_, port) = listening("127.0.0.1", None, REUSE);
            let others = (1..=u16::MAX).filter_map(Port::new).filter(|other| *other != port);
            for (count, exact) in [(250, true), (251, true), (1_000, true), (65_534, false)] {
                let ports: Vec<Announced> = others.clone().take(count).chain([port]).map(all).collect();
                let mut destroyed = DestroyedSockets::subscribe(&ports, None).unwrap();
                destroyed.listen_to(&ports).unwrap();
                let (other, other_port) = listening("127.0.0.1", None, REUSE);
                let unwanted = !ports.contains(&all(other_port));
                drop(other);
                drop(listening("127.0.0.1", Some(port), REUSE));
                let first = next(&mut destroyed);
                assert!(first.port == port || !(exact && unwanted), "{count}: {first:?}");
            }
        });
    }

    #[test]
    fn connections_are_announced_only_where_they_are_wanted() {
        netns("connections_are_announced_only_where_they_are_wanted", || {
            let (unwanted, port) = listening("127.0.0.1", None, REUSE);
            let (wanted, other) = listening("127.0.0.1", None, REUSE);
            let both = [Announced { port, connections: false }, all(other)];
            let mut destroyed = DestroyedSockets::subscribe(&both, None).unwrap();
            let (unwanted, wanted) = (TcpListener::from(unwanted), TcpListener::from(wanted));
            for listener in [&unwanted, &wanted] {
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                // Whoever closes second has a full socket to the end, with its peer: a reset would take that away.
                drop(client);
                assert_eq!(server.read(&mut [0]).unwrap(), 0);
                drop(server);
            }
            drop((unwanted, wanted));
            let mut seen = Vec::new();
            // One workqueue announces them all: when these are there, the unwanted one would be too.
            eventually("the wanted ends", || {
                drain(&mut destroyed, |socket| seen.push((socket.port, socket.remote.is_some())));
                [(port, false), (other, false), (other, true)]
                    .iter()
                    .all(|end| seen.contains(end))
                    .then_some(())
            });
            drop(listening("127.0.0.1", Some(port), REUSE));
            eventually("one more end on the port", || {
                drain(&mut destroyed, |socket| seen.push((socket.port, socket.remote.is_some())));
                (seen.iter().filter(|end| **end == (port, false)).count() >= 2).then_some(())
            });
            assert!(!seen.contains(&(port, true)), "{seen:?}");
        });
    }

    /// `inet_child_forget()` disconnects them. A bind probe has no peer at all.
    #[test]
    fn connections_that_nobody_accepted_keep_their_peer_s_address_and_lose_its_port() {
        const NAME: &str = "connections_that_nobody_accepted_keep_their_peer_s_address_and_lose_its_port";
        netns(NAME, || {
            for address in ["127.0.0.1", "::1"] {
                let (listener, port) = listening(address, None, REUSE);
                let host: std::net::IpAddr = address.parse().unwrap();
                let queue = queued(host, port, 10);
                let without = Announced { port, connections: false };
                let mut destroyed = DestroyedSockets::subscribe(&[without], None).unwrap();
                drop(listener);
                let mut seen = Vec::new();
                // The listener's own end comes among theirs.
                eventually("the ends of a listener and ten connections", || {
                    drain(&mut destroyed, |socket| seen.push(socket.remote));
                    let of_queue = seen.iter().filter(|remote| **remote == Some((host, 0))).count();
                    (of_queue == 10 && seen.contains(&None)).then_some(())
                });
                // One more without a peer is the socket that was asked for a free port.
                let others = seen.iter().flatten().filter(|remote| **remote != (host, 0)).count();
                assert_eq!(others, 0, "{seen:?}");
                drop(queue);
            }
        });
    }

    #[test]
    fn an_overrun_is_told_and_listening_goes_on() {
        netns("an_overrun_is_told_and_listening_goes_on", || {
            let (fd, port) = listening("127.0.0.1", None, REUSE);
            let listener = TcpListener::from(fd);
            // The kernel raises it to its minimum, which holds a few messages.
            let mut destroyed = DestroyedSockets::subscribe(&[all(port)], Some(1)).unwrap();
            for _ in 0..300 {
                let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap();
                let (server, _) = listener.accept().unwrap();
                // Reset rather than TIME_WAIT: a full socket is destroyed.
                setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
                drop(client);
                drop(server);
            }
            eventually("an overrun", || (drain(&mut destroyed, |_| {}) == Drained::Overrun).then_some(()));
            drop(listener);
            // The flood may not be over yet, and take this end too: then the next one is seen.
            eventually("a listener's end", || {
                drop(listening("127.0.0.1", Some(port), REUSE));
                let mut found = false;
                drain(&mut destroyed, |socket| found |= socket.remote.is_none());
                found.then_some(())
            });
        });
    }
}
