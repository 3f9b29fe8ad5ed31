//! What the BPF programs and the guard agree on.
//!
//! Both sides compile this crate: the programs for the BPF target, the guard
//! for the host. Everything that crosses the border between them is defined
//! here once: the records in the ring buffer, the keys and values of the maps,
//! the settings fixed before load, the names by which the loader finds them,
//! and the tracepoint fields whose place the programs rely on.
//!
//! Layouts are `#[repr(C)]` with fixed-width integers and byte arrays, padding
//! is named and zero, and size and offsets are asserted at compile time.
#![no_std]

mod function;
mod lost;
mod maps;
mod names;
mod owner;
mod settings;
mod tracepoint;
mod wire;

pub use function::{Function, INET_CSK_GET_PORT, INET_PUT_PORT, INET_TWSK_KILL};
pub use lost::LostReason;
pub use maps::{
    CLOSING_ENTRIES, Closing, KNOWN_ENTRIES, LEAVING_ENTRIES, LOSER_PAUSE_NS, LOSERS_ENTRIES, Loser,
    LoserKey, OWNERS_ENTRIES, PORT_WORDS, WATCHED_ENTRIES, WatchKey, watch,
};
pub use names::{map, program, symbol};
pub use owner::{OWNER_IS_LEADER, OwnerOffsets, OwnerRecord, WANTED_ENTRIES};
pub use settings::Settings;
pub use tracepoint::{Event, Field, inet_sock_set_state, sched_process_exit, sys_exit, tcp_destroy_sock};
pub use wire::{
    ABI, BIND_FAILED_BY_LISTEN, BindFailedEvent, COMM_LEN, EXIT_STATUS_KNOWN, ExitEvent, Header,
    KIND_BIND_FAILED, KIND_EXITED, KIND_PORT_PUT, KIND_RELEASED, KIND_STATE_CHANGED, KIND_TIME_WAIT_ENDED,
    SocketEvent, TCP_CLOSE, TCP_LISTEN, TimeWaitEvent,
};
