use super::{Owners, Socket};

/// A socket that stands, or may stand, in the way of the service's bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The socket.
    pub socket: Socket,
    /// Who has a descriptor for it.
    pub owners: Owners,
    /// The conflict rules need no flag that the kernel did not show: this
    /// socket blocks the bind for certain.
    pub certain: bool,
}

/// Why the guard cannot tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnknownReason {
    /// A socket holds the port and its owner is not visible.
    OwnerHidden {
        /// User id of the socket.
        uid: super::Uid,
        /// What keeps the owner out of sight.
        why: super::Unseen,
    },
    /// The guard may not bind the address, so no probe can prove anything.
    ProbeNotPermitted,
    /// The address is on no interface, or its family is missing.
    AddressMissing,
    /// The probe failed for another reason, in words.
    ProbeFailed(String),
    /// The socket table could not be read, in words.
    SnapshotFailed(String),
    /// Nothing was looked at yet.
    NotYetObserved,
}

impl UnknownReason {
    /// It may go away by itself while the guard waits.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::AddressMissing | Self::ProbeFailed(_) | Self::SnapshotFailed(_) | Self::NotYetObserved
        )
    }
}

/// What is known about one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A bind probe succeeded after the last event that could contradict it.
    Free,
    /// The service's bind fails. `holders` may be empty: the kernel says
    /// "in use" and shows nobody in this network namespace.
    Busy {
        /// The sockets in the way.
        holders: Vec<Holder>,
    },
    /// The guard cannot tell; never to be read as free.
    Unknown {
        /// Why.
        reason: UnknownReason,
        /// The sockets in the way that it does see.
        holders: Vec<Holder>,
    },
}
