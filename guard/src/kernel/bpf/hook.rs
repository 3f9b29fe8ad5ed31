//! What the hooks have in common.

use aya::Ebpf;
use aya::programs::{Program, ProgramError, RawTracePoint, TracePoint};
use guard_common::{Event, program};

use super::lost::Misses;
use super::{AttachedBy, BpfError};
use crate::kernel::bpf::tracefs::{Format, TracefsError};

/// A tracepoint and the two programs of which one is attached to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) event: Event,
    raw: &'static str,
    classic: &'static str,
}

pub(super) static SET_STATE: Hook = Hook {
    event: guard_common::inet_sock_set_state::EVENT,
    raw: program::RAW_SET_STATE,
    classic: program::SET_STATE,
};
pub(super) static DESTROY_SOCK: Hook = Hook {
    event: guard_common::tcp_destroy_sock::EVENT,
    raw: program::RAW_DESTROY_SOCK,
    classic: program::DESTROY_SOCK,
};
pub(super) static PROCESS_EXIT: Hook = Hook {
    event: guard_common::sched_process_exit::EVENT,
    raw: program::RAW_PROCESS_EXIT,
    classic: program::PROCESS_EXIT,
};

impl Hook {
    /// Has the kernel verify the program of this kind; the other one stays unknown to it.
    pub(super) fn load(&self, ebpf: &mut Ebpf, by: AttachedBy) -> Result<(), BpfError> {
        let loaded = match by {
            AttachedBy::Raw => self.program::<RawTracePoint>(ebpf, by)?.load(),
            AttachedBy::Classic => self.program::<TracePoint>(ebpf, by)?.load(),
        };
        loaded.map_err(|error| BpfError::sort("load", self.subject(by), error))
    }

    /// Attaches the loaded program of this kind. The link stays in `ebpf` and is
    /// detached when that is dropped.
    pub(super) fn attach(&self, ebpf: &mut Ebpf, by: AttachedBy) -> Result<Option<Misses>, BpfError> {
        let refused = |error| BpfError::sort("attach", self.subject(by), error);
        let fd = match by {
            AttachedBy::Raw => {
                let program = self.program::<RawTracePoint>(ebpf, by)?;
                let _link = program.attach(self.event.name).map_err(refused)?;
                program.fd()
            }
            AttachedBy::Classic => {
                let program = self.program::<TracePoint>(ebpf, by)?;
                let _link = program.attach(self.event.category, self.event.name).map_err(refused)?;
                program.fd()
            }
        };
        Ok(fd.ok().and_then(Misses::of))
    }

    fn subject(&self, by: AttachedBy) -> String {
        match by {
            AttachedBy::Raw => format!("the program on the raw tracepoint {}", self.event.name),
            AttachedBy::Classic => format!("the program on {}:{}", self.event.category, self.event.name),
        }
    }

    fn program<'a, P>(&self, ebpf: &'a mut Ebpf, by: AttachedBy) -> Result<&'a mut P, BpfError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let name = match by {
            AttachedBy::Raw => self.raw,
            AttachedBy::Classic => self.classic,
        };
        let program = ebpf.program_mut(name).ok_or(BpfError::missing("program", name))?;
        program.try_into().map_err(|error| BpfError::sort("use", self.subject(by), error))
    }
}

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
