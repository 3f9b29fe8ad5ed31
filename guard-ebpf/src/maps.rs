//! The maps, under the names of [`guard_common::map`].

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use guard_common::{
    CLOSING_ENTRIES, Closing, KNOWN_ENTRIES, LEAVING_ENTRIES, LOSERS_ENTRIES, Loser, LoserKey, LostReason,
    OWNERS_ENTRIES, PORT_WORDS, WANTED_ENTRIES, WATCHED_ENTRIES, WatchKey,
};

/// The guard sets the size before load.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Written by the guard alone.
#[map]
pub(crate) static WATCHED: HashMap<WatchKey, u32> = HashMap::with_max_entries(WATCHED_ENTRIES, 0);

/// Written by the guard alone. Array lookups are inlined into the program, so
/// a socket on another port costs a few instructions.
#[map]
pub(crate) static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// A plain hash and not an LRU one: an LRU map forgets silently, and early on
/// machines with many CPUs, while a full hash is counted. Entries leave when
/// their socket listens again or is destroyed on a watched port; one of a port
/// that is no longer watched may stay, and costs a hint too many at most.
#[map]
pub(crate) static CLOSING: HashMap<u64, Closing> = HashMap::with_max_entries(CLOSING_ENTRIES, 0);

/// Written by the guard alone, before it takes the program on state changes away.
#[map]
pub(crate) static KNOWN: HashMap<u64, WatchKey> = HashMap::with_max_entries(KNOWN_ENTRIES, 0);

/// Entries live from a function's entry to its exit.
#[map]
pub(crate) static LEAVING: HashMap<u64, WatchKey> = HashMap::with_max_entries(LEAVING_ENTRIES, 0);

/// Written by the guard and by the programs.
#[map]
pub(crate) static OWNERS: HashMap<u32, u32> = HashMap::with_max_entries(OWNERS_ENTRIES, 0);

/// Written by the guard alone.
#[map]
pub(crate) static WANTED: HashMap<u64, u32> = HashMap::with_max_entries(WANTED_ENTRIES, 0);

/// An LRU hash: whoever is forgotten is merely reported again.
#[map]
pub(crate) static LOSERS: LruHashMap<LoserKey, Loser> = LruHashMap::with_max_entries(LOSERS_ENTRIES, 0);

/// One element of all counters, so that the guard reads them in one call.
#[map]
pub(crate) static LOST: PerCpuArray<[u64; LostReason::ALL.len()]> = PerCpuArray::with_max_entries(1, 0);
