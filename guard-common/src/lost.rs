/// Why a program could not report something: the index into the array
/// of counters that every CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LostReason {
    /// The ring buffer had no room: the reader is too slow.
    RingFull = 0,
    /// Too many listeners left LISTEN and are still open: a release will go unreported.
    ClosingFull = 1,
    /// Too many owners: the exit of one will go unreported.
    OwnersFull = 2,
    /// A socket's network namespace could not be read, so nobody knows
    /// whether its port is watched there.
    ReadNetns = 3,
    /// A socket's addresses or cookie could not be read, and the event was sent
    /// without; or not even its port, and nobody knows whether it is watched.
    ReadSocket = 4,
    /// A task's exit status or thread count could not be read; the exit was
    /// reported without status.
    ReadTask = 5,
    /// Of a failed bind: the address that the process passed could not be read
    /// (its page was not in memory), or the socket behind its descriptor.
    ReadBind = 6,
    /// Of a failed bind: the ring buffer was half full, and what is left is for
    /// what a gate waits for.
    BindCrowdedOut = 7,
}

impl LostReason {
    /// Every reason, in the order of its index.
    pub const ALL: [Self; 8] = [
        Self::RingFull,
        Self::ClosingFull,
        Self::OwnersFull,
        Self::ReadNetns,
        Self::ReadSocket,
        Self::ReadTask,
        Self::ReadBind,
        Self::BindCrowdedOut,
    ];

    /// Whether what was lost may have told of a change on the port. A failed
    /// bind changes nothing, and any process can make one fail as it likes:
    /// nobody may hold a gate up by that.
    pub const fn concerns_the_port(self) -> bool {
        !matches!(self, Self::ReadBind | Self::BindCrowdedOut)
    }

    /// The index into the counters.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// A word for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::ClosingFull => "closing_full",
            Self::OwnersFull => "owners_full",
            Self::ReadNetns => "read_netns",
            Self::ReadSocket => "read_socket",
            Self::ReadTask => "read_task",
            Self::ReadBind => "read_bind",
            Self::BindCrowdedOut => "bind_crowded_out",
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < LostReason::ALL.len() {
        assert!(LostReason::ALL[index].index() == index);
        index += 1;
    }
};
