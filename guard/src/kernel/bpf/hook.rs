//! What the hooks have in common.

use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{
    BtfTracePoint, FEntry, FExit, Program, ProgramError, ProgramFd, RawTracePoint, TracePoint,
};
use aya::{Btf, Ebpf};
use guard_common::{Event, Function, program};

use super::lost::Misses;
use super::numbered::Named;
use super::{AttachedBy, BpfError};
use crate::kernel::bpf::tracefs::{Format, TracefsError};

/// Where programs are attached. Each is optional but the one on state changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// A tracepoint and the two programs of which one is attached to it.
    Tracepoint { event: Event, raw: &'static str, classic: &'static str },
    /// The same, where the verifier knows the types of the raw one's arguments (`tp_btf`).
    Typed { event: Event, raw: &'static str, classic: &'static str },
    /// A tracepoint with a program on the raw one only.
    Raw { event: Event, program: &'static str },
    /// A kernel function and the programs on its entry and its exit.
    Function { function: Function, entry: Option<&'static str>, exit: &'static str },
}

/// What attaching leaves behind.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// Where the kernel counts the runs that it skipped.
    pub(super) misses: Vec<Misses>,
    /// What a typed raw tracepoint is detached by.
    pub(super) link: Option<BtfTracePointLinkId>,
}

pub(super) static SET_STATE: Hook = Hook::Typed {
    event: guard_common::inet_sock_set_state::EVENT,
    raw: program::RAW_SET_STATE,
    classic: program::SET_STATE,
};
pub(super) static DESTROY_SOCK: Hook = Hook::Typed {
    event: guard_common::tcp_destroy_sock::EVENT,
    raw: program::RAW_DESTROY_SOCK,
    classic: program::DESTROY_SOCK,
};
pub(super) static PROCESS_EXIT: Hook = Hook::Tracepoint {
    event: guard_common::sched_process_exit::EVENT,
    raw: program::RAW_PROCESS_EXIT,
    classic: program::PROCESS_EXIT,
};
pub(super) static SYS_EXIT: Hook =
    Hook::Raw { event: guard_common::sys_exit::EVENT, program: program::RAW_SYS_EXIT };
pub(super) static PUT_PORT: Hook =
    Hook::Function { function: guard_common::INET_PUT_PORT, entry: None, exit: program::PUT_PORT };
pub(super) static TWSK_KILL: Hook = Hook::Function {
    function: guard_common::INET_TWSK_KILL,
    entry: Some(program::TWSK_ENTER),
    exit: program::TWSK_EXIT,
};
pub(super) static GET_PORT: Hook =
    Hook::Function { function: guard_common::INET_CSK_GET_PORT, entry: None, exit: program::GET_PORT };

impl Hook {
    /// The tracepoint's or the function's.
    #[cfg(test)]
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Tracepoint { event, .. } | Self::Typed { event, .. } | Self::Raw { event, .. } => {
                event.name
            }
            Self::Function { function, .. } => function.name,
        }
    }

    /// What its programs are put on by number.
    pub(super) const fn numbered(&self, by: AttachedBy) -> Option<Named> {
        match (self, by) {
            (Self::Typed { event, .. }, AttachedBy::Raw) => Some(Named::Typedef(event.prototype)),
            (Self::Function { function, .. }, _) => Some(Named::Function(function.name)),
            _ => None,
        }
    }

    /// Has the kernel verify the programs of this kind; the others stay unknown to
    /// it. `numbers` has those of [`Hook::numbered`].
    pub(super) fn load(&self, ebpf: &mut Ebpf, by: AttachedBy, numbers: &Btf) -> Result<(), BpfError> {
        let refused = |error| BpfError::sort("load", self.subject(by), error);
        match (self, by) {
            (Self::Tracepoint { raw: name, .. }, AttachedBy::Raw) | (Self::Raw { program: name, .. }, _) => {
                self.program::<RawTracePoint>(ebpf, by, name)?.load().map_err(refused)
            }
            (Self::Typed { event, raw, .. }, AttachedBy::Raw) => {
                self.program::<BtfTracePoint>(ebpf, by, raw)?.load(event.name, numbers).map_err(refused)
            }
            (Self::Tracepoint { classic, .. } | Self::Typed { classic, .. }, AttachedBy::Classic) => {
                self.program::<TracePoint>(ebpf, by, classic)?.load().map_err(refused)
            }
            (Self::Function { function, entry, exit }, _) => {
                if let Some(entry) = entry {
                    self.program::<FEntry>(ebpf, by, entry)?.load(function.name, numbers).map_err(refused)?;
                }
                self.program::<FExit>(ebpf, by, exit)?.load(function.name, numbers).map_err(refused)
            }
        }
    }

    /// Attaches the loaded programs of this kind. The links stay in `ebpf` and are
    /// detached when that is dropped.
    pub(super) fn attach(&self, ebpf: &mut Ebpf, by: AttachedBy) -> Result<Attached, BpfError> {
        let refused = |error| BpfError::sort("attach", self.subject(by), error);
        let misses = |fd: Result<&ProgramFd, ProgramError>| fd.ok().and_then(Misses::of);
        let mut link_to_typed = None;
        let all = match (self, by) {
            (Self::Tracepoint { event, raw, .. }, AttachedBy::Raw) => {
                let program = self.program::<RawTracePoint>(ebpf, by, raw)?;
                let _link = program.attach(event.name).map_err(refused)?;
                misses(program.fd()).into_iter().collect()
            }
            (Self::Typed { raw, .. }, AttachedBy::Raw) => {
                let program = self.program::<BtfTracePoint>(ebpf, by, raw)?;
                link_to_typed = Some(program.attach().map_err(refused)?);
                misses(program.fd()).into_iter().collect()
            }
            (
                Self::Tracepoint { event, classic, .. } | Self::Typed { event, classic, .. },
                AttachedBy::Classic,
            ) => {
                let program = self.program::<TracePoint>(ebpf, by, classic)?;
                let _link = program.attach(event.category, event.name).map_err(refused)?;
                misses(program.fd()).into_iter().collect()
            }
            // Its misses are not counted: a failed bind changes nothing on the port.
            (Self::Raw { event, program }, _) => {
                let _link =
                    self.program::<RawTracePoint>(ebpf, by, program)?.attach(event.name).map_err(refused)?;
                Vec::new()
            }
            // The exit first: an entry without one would leave something behind.
            (Self::Function { entry, exit, .. }, _) => {
                let program = self.program::<FExit>(ebpf, by, exit)?;
                let _link = program.attach().map_err(refused)?;
                let mut all: Vec<Misses> = misses(program.fd()).into_iter().collect();
                if let Some(entry) = entry {
                    let program = self.program::<FEntry>(ebpf, by, entry)?;
                    let _link = program.attach().map_err(refused)?;
                    all.extend(misses(program.fd()));
                }
                all
            }
        };
        Ok(Attached { misses: all, link: link_to_typed })
    }

    /// Detaches the program from a typed raw tracepoint. It stays loaded, and can be attached again.
    pub(super) fn detach(&self, ebpf: &mut Ebpf, link: BtfTracePointLinkId) -> Result<(), BpfError> {
        let by = AttachedBy::Raw;
        let refused = |error| BpfError::sort("detach", self.subject(by), error);
        match self {
            Self::Typed { raw, .. } => {
                self.program::<BtfTracePoint>(ebpf, by, raw)?.detach(link).map_err(refused)
            }
            // Nobody else has such a link.
            _ => Ok(()),
        }
    }

    fn subject(&self, by: AttachedBy) -> String {
        match (self, by) {
            (Self::Tracepoint { event, .. } | Self::Typed { event, .. }, AttachedBy::Raw)
            | (Self::Raw { event, .. }, _) => {
                format!("the program on the raw tracepoint {}", event.name)
            }
            (Self::Tracepoint { event, .. } | Self::Typed { event, .. }, AttachedBy::Classic) => {
                format!("the program on {}:{}", event.category, event.name)
            }
            (Self::Function { function, .. }, _) => format!("the programs on the function {}", function.name),
        }
    }

    fn program<'a, P>(
        &self,
        ebpf: &'a mut Ebpf,
        by: AttachedBy,
        name: &'static str,
    ) -> Result<&'a mut P, BpfError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
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
