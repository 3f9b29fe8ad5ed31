//! What was checked when the kernel says "in use" and shows nobody.

use crate::model::{NetnsInode, Socket, Tgid, Unseen};

/// Where the socket table came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableSource {
    /// `sock_diag`.
    SockDiag {
        /// Whether it lists sockets that are bound and neither listen nor are
        /// connected (Linux 6.8); `None` when that could not be found out.
        bound_only: Option<bool>,
    },
    /// `/proc/net/tcp` and `/proc/net/tcp6`, which show no bound-only sockets.
    Procfs {
        /// Why not `sock_diag`, in words.
        why: String,
    },
}

impl TableSource {
    /// A socket that is only bound would have been listed.
    pub const fn lists_bound_only(&self) -> bool {
        matches!(self, Self::SockDiag { bound_only: Some(true) })
    }
}

/// A socket on the port in another network namespace. It cannot be in the way of a
/// bind in this one; but it may be the one that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Which namespace.
    pub netns: NetnsInode,
    /// A process that lives in it: its `/proc/PID/ns/net` leads there.
    pub resident: Tgid,
    /// The listener.
    pub socket: Socket,
    /// Who has a descriptor for it, with their comm, as far as it can be seen.
    pub owners: Vec<(Tgid, String)>,
}

/// The other network namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Others {
    /// Listeners on the port.
    pub listeners: Vec<Elsewhere>,
    /// How many namespaces were looked into.
    pub looked: usize,
    /// Why not into all there are, in words.
    pub missed: Option<String>,
}

/// The checks that were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// Where the socket table came from.
    pub table: TableSource,
    /// Whose descriptors could not be read; `None` when everybody's could.
    pub unseen: Option<Unseen>,
    /// What is on the port in other network namespaces.
    pub others: Others,
}
