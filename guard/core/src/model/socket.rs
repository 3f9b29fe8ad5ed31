use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::{Ancestor, Instant, Port, Process, ProcessId, SocketCookie, SocketInode, Tgid, Uid};

/// TCP states by the kernel's numbers (`include/net/tcp_states.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TcpState {
    /// 1
    Established,
    /// 2
    SynSent,
    /// 3
    SynRecv,
    /// 4
    FinWait1,
    /// 5
    FinWait2,
    /// 6
    TimeWait,
    /// 7
    Close,
    /// 8
    CloseWait,
    /// 9
    LastAck,
    /// 10
    Listen,
    /// 11
    Closing,
    /// 12: a request socket; it holds no bind bucket of its own.
    NewSynRecv,
    /// 13: bound, neither listening nor connected. A pseudo-state that only
    /// `sock_diag` uses, since Linux 6.8.
    BoundInactive,
    /// A number this version does not know.
    Other(u8),
}

impl TcpState {
    /// From the kernel's number.
    pub const fn from_kernel(state: u8) -> Self {
        match state {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            13 => Self::BoundInactive,
            other => Self::Other(other),
        }
    }

    /// The kernel's own name, e.g. `LISTEN` or `TIME_WAIT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
            Self::NewSynRecv => "NEW_SYN_RECV",
            Self::BoundInactive => "BOUND_INACTIVE",
            Self::Other(_) => "UNKNOWN",
        }
    }
}

/// One row of the kernel's socket table whose local port is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Local address. An IPv4 connection of a dual-stack socket shows here as
    /// its IPv4 address with `mapped` set.
    pub address: IpAddr,
    /// The socket is AF_INET6 but this address was IPv4-mapped (`::ffff:a.b.c.d`).
    pub mapped: bool,
    /// Local port.
    pub port: Port,
    /// Remote address and port, for connections.
    pub remote: Option<(IpAddr, u16)>,
    /// `IPV6_V6ONLY`; `None` for AF_INET or when the kernel did not say.
    pub v6only: Option<bool>,
    /// Interface index the socket is bound to, else 0.
    pub device: u32,
    /// State.
    pub state: TcpState,
    /// User id of the socket; TIME_WAIT sockets show 0.
    pub uid: Uid,
    /// `None` when no file refers to the socket: TIME_WAIT, orphaned or not
    /// yet accepted connections.
    pub inode: Option<SocketInode>,
    /// `None` when the source does not give cookies (`/proc/net/tcp`).
    pub cookie: Option<SocketCookie>,
    /// Remaining life of a TIME_WAIT socket at the time of the snapshot.
    pub expires: Option<Duration>,
    /// `SO_REUSEADDR`; neither `sock_diag` nor `/proc/net/tcp` carries it.
    pub reuse_address: Option<bool>,
    /// `SO_REUSEPORT`; neither `sock_diag` nor `/proc/net/tcp` carries it.
    pub reuse_port: Option<bool>,
    /// For a listener: connections waiting to be accepted.
    pub accept_queue: Option<u32>,
    /// For a listener: `listen()`'s backlog.
    pub backlog: Option<u32>,
}

/// Why the owners of a socket could not all be seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unseen {
    /// Some processes' descriptors may not be read by the guard's user.
    NotPermitted,
    /// A security module closes these processes even to a guard with
    /// `CAP_SYS_PTRACE`.
    Closed(Vec<Tgid>),
    /// The guard runs in a child PID namespace: an owner may live outside.
    OtherPidNamespace,
    /// `/proc` could not be read at all, in words.
    Failed(String),
}

impl Unseen {
    /// Only PID 1 is closed. In a child PID namespace this is never the
    /// answer, so it is the machine's init.
    pub fn is_only_init(&self) -> bool {
        matches!(self, Self::Closed(closed) if closed.as_slice() == [Tgid(1)])
    }
}

/// The processes that hold a descriptor for a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Every process was looked at: these and no others. Empty means that the
    /// socket is *kernel-held* (in flight over a Unix socket, registered with
    /// io_uring, or dying with its process).
    All(Vec<ProcessId>),
    /// These were seen, but there may be more.
    Some(Vec<ProcessId>, Unseen),
    /// The socket has no file: TIME_WAIT, orphaned or not yet accepted.
    NoFile,
}

impl Owners {
    /// The processes seen, in ascending order.
    pub fn seen(&self) -> &[ProcessId] {
        match self {
            Self::All(owners) | Self::Some(owners, _) => owners,
            Self::NoFile => &[],
        }
    }

    /// What keeps every owner out of sight, when nobody is seen and somebody
    /// who matters may be there. Init does not matter: a closed PID 1 is the
    /// guard's own ancestor, so nothing would be done to it in any case.
    pub fn hidden(&self) -> Option<&Unseen> {
        match self {
            Self::Some(seen, why) if seen.is_empty() && !why.is_only_init() => Some(why),
            _ => None,
        }
    }

    /// Nobody who can be looked into has a descriptor: see [`Owners::All`].
    pub fn is_kernel_held(&self) -> bool {
        match self {
            Self::All(owners) => owners.is_empty(),
            Self::Some(owners, why) => owners.is_empty() && why.is_only_init(),
            Self::NoFile => false,
        }
    }
}

/// What the kernel showed at one moment: the sockets on the watched ports, and
/// the processes that own them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// When the snapshot was begun: it can show nothing older.
    pub begun: Instant,
    /// When the last row was read.
    pub ended: Instant,
    /// The sockets, each with its owners.
    pub sockets: Vec<(Socket, Owners)>,
    /// Evidence on every owner and on whoever else was asked about, by thread group id.
    pub processes: BTreeMap<Tgid, Process>,
    /// Who is above them; who is one of them need not be here.
    pub ancestors: BTreeMap<Tgid, Ancestor>,
}

impl Snapshot {
    /// Who has this number, whether it was asked about or is above somebody who was.
    pub fn ancestor(&self, tgid: Tgid) -> Option<Ancestor> {
        let asked_about = self.processes.get(&tgid).map(Ancestor::from);
        asked_about.or_else(|| self.ancestors.get(&tgid).cloned())
    }
}
