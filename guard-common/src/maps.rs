use core::mem::{offset_of, size_of};

/// Watched (network namespace, port) pairs at most.
pub const WATCHED_ENTRIES: u32 = 4096;
/// Listeners known by their cookie at most. Where there are more of them, the guard does not rest.
pub const KNOWN_ENTRIES: u32 = 2 * WATCHED_ENTRIES;
/// Listeners between the end of LISTEN and their release at most. One that was
/// shut down and is kept open stays remembered, so this is not about time.
pub const CLOSING_ENTRIES: u32 = 1024;
/// Mini-sockets on their way out at most: each CPU works on one at a time, but
/// for the moment of a preemption.
pub const LEAVING_ENTRIES: u32 = 1024;
/// Thread groups whose exit is reported at most.
pub const OWNERS_ENTRIES: u32 = 4096;
/// Processes whose failed binds are counted at a time. The map forgets whoever
/// failed the longest ago, who is then reported once more than needed.
pub const LOSERS_ENTRIES: u32 = 1024;
/// A process that fails again on the same port within this time is only counted:
/// one that spins on `bind()` would otherwise fill the ring buffer.
pub const LOSER_PAUSE_NS: u64 = 1_000_000_000;
/// 64-bit words of the bitmap of watched ports, one bit per port number.
pub const PORT_WORDS: u32 = 65_536 / 64;

/// Flags of a watched port: the values of the watched map.
pub mod watch {
    /// Report the listeners: every watched port has this one.
    pub const LISTENERS: u32 = 1 << 0;
    /// Also report the release of connections.
    pub const CONNECTIONS: u32 = 1 << 1;
}

/// Key of the watched map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchKey {
    /// Inode number of the network namespace. 0 means that the programs cannot
    /// tell namespaces apart on this kernel: the port is watched in all of them.
    pub netns: u32,
    /// Host byte order.
    pub port: u16,
    /// Zero: map keys are compared as bytes.
    pub pad: u16,
}

const _: () = assert!(size_of::<WatchKey>() == 8);
const _: () = assert!(offset_of!(WatchKey, port) == 4);
const _: () = assert!(offset_of!(WatchKey, pad) == 6);

impl WatchKey {
    /// The key of `port` (host byte order) in the namespace `netns`.
    #[inline(always)]
    pub const fn new(netns: u32, port: u16) -> Self {
        Self { netns, port, pad: 0 }
    }
}

/// What is remembered, by socket address, of a listener that left LISTEN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The port it listened on, as it was watched.
    pub key: WatchKey,
}

const _: () = assert!(size_of::<Closing>() == 8);

/// Who failed to bind, and on what: key of the losers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoserKey {
    /// The thread group, by the kernel's own number.
    pub tgid: u32,
    /// Host byte order.
    pub port: u16,
    /// Zero: map keys are compared as bytes.
    pub pad: u16,
}

const _: () = assert!(size_of::<LoserKey>() == 8);
const _: () = assert!(offset_of!(LoserKey, port) == 4);
const _: () = assert!(offset_of!(LoserKey, pad) == 6);

/// What is remembered of somebody who failed to bind.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loser {
    /// When it was last reported.
    pub reported_ns: u64,
    /// Failures since.
    pub since: u64,
}

const _: () = assert!(size_of::<Loser>() == 16);
