//! `NETLINK_SOCK_DIAG`: the kernel's own list of TCP sockets.
//!
//! # What a dump is, and is not
//!
//! A dump is a walk along hash chains, not a snapshot. The kernel walks the
//! listeners, then the bound-only sockets (Linux 6.8), then everything else
//! (`inet_diag_dump_icsk`), one chain lock at a time, and goes on where it was by
//! counting when the reply needs another buffer. Where listeners alone are asked for,
//! the walk ends after them. Else it costs the same whatever is asked for, so both
//! address families come of one: `SOCK_DIAG_BY_FAMILY`
//! tells one family, the older request `TCPDIAG_GETSOCK` both, in the same rows
//! and with the same filters (`inet_diag_dump_compat` asks for `AF_UNSPEC`). So a socket
//! that moves from a later table to an earlier one meanwhile (bound → `LISTEN`)
//! or from one chain to another may be missing, and one that moves the other
//! way may show twice (of which the later row is kept). **An empty dump is no
//! proof that a port is free**: only a bind probe is, see [`super::bind`].
//! `NLM_F_DUMP_INTR` does not tell: this interface never counts generations.
//!
//! # Network namespace
//!
//! A [`SockDiag`] sees the network namespace of the thread that *opened* it, for
//! as long as it lives.

mod channel;
mod destroyed;
mod dump;
mod row;

pub use destroyed::{Announced, DestroyedSockets, Drained};
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use guard_core::model::{Port, Socket, SocketCookie};
use netlink_packet_core::{DecodeError, NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_TCP, SockDiagDestroy, SockDiagMessage};
use nix::errno::Errno;

use channel::{Channel, Ending};
use dump::DumpRequest;

/// Every state from 1 to 13. A kernel before 6.8 does not know 13
/// (`TCP_BOUND_INACTIVE`) and ignores the bit.
const ALL_STATES: u32 = (1 << 14) - 2;

/// `TCPF_LISTEN`
const LISTEN: u32 = 1 << 10;

/// For so many ports one walk is enough where nothing speaks against it.
pub const AT_ONCE: usize = 16;

/// How often a dump that the kernel reports as torn is asked for again: a dump
/// is torn by an overrun receive buffer, which a second try seldom meets.
const ATTEMPTS: u32 = 4;

/// How often a socket that the table shows is looked for by its address: the moment in which neither it
/// nor its TIME_WAIT socket is found passes by itself.
const DESTROY_ATTEMPTS: u32 = 4;

const NEEDS_DIAG: &str =
    "a kernel with CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG, and a sandbox that allows AF_NETLINK";
const NEEDS_DESTROY: &str =
    "a kernel with CONFIG_INET_DIAG_DESTROY (and a newer one than 5.10 for TIME_WAIT)";

/// What can go wrong with a dump.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    /// This kernel or sandbox has no `sock_diag` for TCP.
    #[error("listing TCP sockets by sock_diag is not possible here: it needs {needs} ({source})")]
    Unsupported {
        /// What would make it possible.
        needs: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A security policy forbids it; no capability is needed otherwise.
    #[error("sock_diag: {operation} was denied by a security policy (seccomp or an LSM): {source}")]
    Denied {
        /// The step.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Any other error of the kernel.
    #[error("sock_diag: {operation} failed: {source}")]
    Failed {
        /// The step.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A reply could not be decoded.
    #[error("a reply of sock_diag cannot be read: {source}")]
    Garbled {
        /// Where it broke.
        source: DecodeError,
    },
    /// Every attempt was cut short, the table being too big or too busy.
    #[error("sock_diag never gave a whole list of TCP sockets in {attempts} attempts")]
    Torn {
        /// How many dumps were made.
        attempts: u32,
    },
}

/// Why a socket was not destroyed.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// The kernel cannot destroy sockets, or not ones in this state.
    #[error("the kernel cannot destroy this socket: it needs {needs}")]
    Unsupported {
        /// What would make it possible.
        needs: &'static str,
    },
    /// `CAP_NET_ADMIN` over the socket's network namespace is missing.
    #[error("destroying a socket was denied: it needs {capability} over its network namespace")]
    Denied {
        /// The capability's name.
        capability: &'static str,
    },
    /// The socket was gone already.
    #[error("the socket is gone already")]
    Gone,
    /// The socket is there, but the kernel's lookup by address does not lead to
    /// it: a bound-only socket, or one of a `SO_REUSEPORT` group.
    #[error(
        "the socket is still there, but the kernel finds no way to it by its address (bound only, or one of a SO_REUSEPORT group)"
    )]
    NotAddressable,
    /// The row came from a source without cookies: nothing says that the socket
    /// with this address is still the same.
    #[error("the socket has no cookie to recognise it by (it was read from /proc/net/tcp)")]
    NoCookie,
    /// The request itself failed.
    #[error("destroying a socket: {0}")]
    Request(#[from] SockDiagError),
}

/// An open `NETLINK_SOCK_DIAG` socket.
#[derive(Debug)]
pub struct SockDiag {
    channel: Channel,
}

impl SockDiag {
    /// Opens it in the calling thread's network namespace. No privilege needed.
    ///
    /// # Errors
    ///
    /// [`SockDiagError::Unsupported`] and [`SockDiagError::Denied`] above all.
    pub fn open() -> Result<Self, SockDiagError> {
        Ok(Self { channel: Channel::open()? })
    }

    /// All TCP sockets, IPv4 and IPv6, whose *local* port is `port`: listeners,
    /// connections, bound-only ones (since Linux 6.8), request sockets and
    /// TIME_WAIT, in the kernel's order, IPv4 first.
    ///
    /// Blocks only for the kernel's own walk. See the module on what a missing
    /// row means.
    ///
    /// # Errors
    ///
    /// See [`SockDiagError`].
    pub fn dump(&mut self, port: Port) -> Result<Vec<Socket>, SockDiagError> {
        self.walk(Rows::OnPort(port), ALL_STATES)
    }

    /// What [`SockDiag::dump`] finds on each of `ports`, ordered by port. One walk or two do for [`AT_ONCE`] of them where
    /// their sockets fit into one datagram, and the kernel can choose by several ports (Linux 4.16).
    ///
    /// # Errors
    ///
    /// See [`SockDiagError`].
    pub fn dump_each(&mut self, ports: &BTreeSet<Port>) -> Result<Vec<Socket>, SockDiagError> {
        let ports: Vec<Port> = ports.iter().copied().collect();
        let mut found = Vec::new();
        for ports in ports.chunks(AT_ONCE) {
            if let Some(sockets) = self.dump_together(ports)? {
                found.extend(sockets);
                continue;
            }
            for &port in ports {
                found.extend(self.dump(port)?);
            }
        }
        Ok(found)
    }

    /// `None` for a single port, for more sockets than one datagram has room for, and where the kernel does not choose.
    fn dump_together(&mut self, ports: &[Port]) -> Result<Option<Vec<Socket>>, SockDiagError> {
        if ports.len() < 2 {
            return Ok(None);
        }
        // The first datagram that the kernel fills for a socket is a page; the next ones are as large as what was read
        // with (`netlink_dump`).
        for _ in 0..2 {
            match self.walk(Rows::OnFew(ports), ALL_STATES) {
                Ok(mut sockets) if self.channel.datagrams < 2 => {
                    sockets.sort_by_key(|socket| socket.port);
                    return Ok(Some(sockets));
                }
                Ok(_) => {}
                Err(SockDiagError::Unsupported { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Whether anybody listens on one of `ports`. The kernel does not walk through connections for that.
    ///
    /// # Errors
    ///
    /// See [`SockDiagError`].
    pub fn listens(&mut self, ports: &[Port]) -> Result<bool, SockDiagError> {
        for &port in ports {
            if !self.walk(Rows::OnPort(port), LISTEN)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What [`SockDiag::dump`] finds on each of `ports`, ordered by port, in one walk:
    /// every socket of the namespace is told, and those on other ports are left out here.
    ///
    /// # Errors
    ///
    /// See [`SockDiagError`].
    pub fn dump_any(&mut self, ports: &BTreeSet<Port>) -> Result<Vec<Socket>, SockDiagError> {
        let mut sockets = self.walk(Rows::OnAnyOf(ports), ALL_STATES)?;
        sockets.sort_by_key(|socket| socket.port);
        Ok(sockets)
    }

    /// All TCP listeners of the namespace, on whatever port.
    ///
    /// # Errors
    ///
    /// See [`SockDiagError`].
    pub fn listeners(&mut self) -> Result<Vec<Socket>, SockDiagError> {
        self.walk(Rows::All, LISTEN)
    }

    fn walk(&mut self, rows: Rows<'_>, states: u32) -> Result<Vec<Socket>, SockDiagError> {
        for _ in 0..ATTEMPTS {
            let mut sockets: Vec<Socket> = Vec::new();
            let mut places = BTreeMap::new();
            let request = DumpRequest { states, source_ports: rows.ports_for_the_kernel() };
            let ending = self.channel.exchange(request, NLM_F_DUMP, "a dump", |payload| {
                // The kernel filters listeners and connections by
                // `idiag_sport`, but not bound-only sockets.
                if let Some(socket) = row::decode(payload)?
                    && rows.include(socket.port)
                {
                    keep_latest(&mut sockets, &mut places, socket);
                }
                Ok(())
            })?;
            match ending {
                Ending::Whole => {
                    sockets.sort_by_key(|socket| socket.mapped || socket.address.is_ipv6());
                    return Ok(sockets);
                }
                Ending::Torn => {}
                Ending::Refused(errno) => return Err(refused(errno)),
            }
        }
        Err(SockDiagError::Torn { attempts: ATTEMPTS })
    }

    /// `SOCK_DESTROY`: the kernel aborts exactly this socket, recognised by its
    /// addresses *and* its cookie. A TIME_WAIT socket is gone then. A listener
    /// stays bound until its owner closes it: the port is bindable at once for
    /// whoever shares `SO_REUSEADDR` with it, and for nobody else.
    ///
    /// # Errors
    ///
    /// See [`DestroyError`]; [`DestroyError::Gone`] is as good as done.
    pub fn destroy(&mut self, socket: &Socket) -> Result<(), DestroyError> {
        let cookie = socket.cookie.ok_or(DestroyError::NoCookie)?;
        let socket_id = row::encode_id(socket, cookie);
        let family = if socket_id.source_address.is_ipv4() { AF_INET } else { AF_INET6 };
        let request = SockDiagDestroy::new(SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::from_bits_retain(ALL_STATES),
            socket_id,
        }));
        for _ in 0..DESTROY_ATTEMPTS {
            let request = request.clone();
            match self.channel.exchange(request, NLM_F_ACK, "destroying a socket", |_| Ok(()))? {
                // One acknowledgement cannot be torn: it fits into every buffer.
                Ending::Whole | Ending::Torn => return Ok(()),
                // The kernel says so for a socket that is gone, for one that its lookup by address
                // does not reach, and for one that becomes its TIME_WAIT socket at this moment.
                Ending::Refused(Errno::ENOENT | Errno::ESTALE) => {
                    if !self.dump(socket.port)?.iter().any(|there| there.cookie == Some(cookie)) {
                        return Err(DestroyError::Gone);
                    }
                }
                Ending::Refused(Errno::EOPNOTSUPP) => {
                    return Err(DestroyError::Unsupported { needs: NEEDS_DESTROY });
                }
                Ending::Refused(Errno::EPERM | Errno::EACCES) => {
                    return Err(DestroyError::Denied { capability: "CAP_NET_ADMIN" });
                }
                Ending::Refused(errno) => {
                    let failed =
                        SockDiagError::Failed { operation: "destroying a socket", source: errno.into() };
                    return Err(failed.into());
                }
            }
        }
        Err(DestroyError::NotAddressable)
    }
}

/// Which rows of the table are wanted, by the local port.
#[derive(Clone, Copy)]
enum Rows<'a> {
    All,
    OnPort(Port),
    /// The kernel chooses.
    OnFew(&'a [Port]),
    /// The kernel shows all.
    OnAnyOf(&'a BTreeSet<Port>),
}

impl Rows<'_> {
    fn ports_for_the_kernel(self) -> Vec<u16> {
        match self {
            Self::OnPort(port) => vec![port.get()],
            Self::OnFew(ports) => ports.iter().map(|port| port.get()).collect(),
            Self::All | Self::OnAnyOf(_) => Vec::new(),
        }
    }

    fn include(self, port: Port) -> bool {
        match self {
            Self::All => true,
            Self::OnPort(wanted) => port == wanted,
            Self::OnFew(wanted) => wanted.contains(&port),
            Self::OnAnyOf(wanted) => wanted.contains(&port),
        }
    }
}

/// A socket that moved during the walk shows twice: the later row is the truth.
fn keep_latest(sockets: &mut Vec<Socket>, places: &mut BTreeMap<SocketCookie, usize>, socket: Socket) {
    let place = socket.cookie.map(|cookie| *places.entry(cookie).or_insert(sockets.len()));
    match place.and_then(|place| sockets.get_mut(place)) {
        Some(known) => *known = socket,
        None => sockets.push(socket),
    }
}

fn refused(errno: Errno) -> SockDiagError {
    let source = io::Error::from(errno);
    match errno {
        Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EINVAL => {
            SockDiagError::Unsupported { needs: NEEDS_DIAG, source }
        }
        Errno::EPERM | Errno::EACCES => SockDiagError::Denied { operation: "a dump", source },
        _ => SockDiagError::Failed { operation: "a dump", source },
    }
}

/// An IPv4 address that an AF_INET6 socket shows as `::ffff:a.b.c.d`.
fn unmapped(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => address.to_ipv4_mapped().map(IpAddr::V4),
    }
}
