//! What the hooks have in common.

use guard_common::{Event, program};

use crate::kernel::tracefs::{Format, TracefsError};

/// A program and the tracepoint that it is attached to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) program: &'static str,
    pub(super) event: Event,
}

pub(super) static SET_STATE: Hook =
    Hook { program: program::SET_STATE, event: guard_common::inet_sock_set_state::EVENT };
pub(super) static DESTROY_SOCK: Hook =
    Hook { program: program::DESTROY_SOCK, event: guard_common::tcp_destroy_sock::EVENT };
pub(super) static PROCESS_EXIT: Hook =
    Hook { program: program::PROCESS_EXIT, event: guard_common::sched_process_exit::EVENT };

/// Offset of an IPv6 address that may be anywhere in the record.
pub(super) fn address(format: &Format, event: &Event, field: &'static str) -> Result<u32, TracefsError> {
    let place = format.field(field).filter(|place| place.size == 16);
    place.and_then(|place| u32::try_from(place.offset).ok()).ok_or_else(|| TracefsError::Mismatch {
        category: event.category,
        event: event.name,
        field,
        expected: "with 16 bytes".into(),
        found: format.field(field).map_or_else(|| "no such field".into(), |place| format!("it {place}")),
    })
}

/// Offset of a field that some kernels do not have, else 0.
pub(super) fn optional(format: &Format, field: &str, size: usize) -> u32 {
    let place = format.field(field).filter(|place| place.size == size);
    place.and_then(|place| u32::try_from(place.offset).ok()).unwrap_or(0)
}
