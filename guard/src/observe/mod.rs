//! World → facts: one file per tier, and the one that picks the tier.

mod ebpf;
mod exits;
mod help;
mod learned;
mod listeners;
mod look;
mod losers;
mod losses;
mod netlink;
mod owners;
mod tier;
mod tuning;

pub use exits::ExitWatch;
pub use listeners::listeners_of;
pub use look::{LookError, Looker, Wanted, is_listened_on, read_table};
pub use netlink::NetlinkError;
pub use owners::OwnerSource;
pub use tier::{Observer, Tier, TierChoice, TierError, Watched};
pub use tuning::Tuning;

/// So many events are taken from a source at once: a port's connections may end faster than anybody reads of it.
const MOST_AT_ONCE: usize = 256;
