//! User side of `sched:sched_process_exit`.

use guard_common::sched_process_exit::{ARG_GROUP_DEAD, EVENT};
use guard_common::{EXIT_STATUS_KNOWN, ExitEvent, Settings};
use guard_core::model::{ExitStatus, Tgid};

use super::BpfError;
use super::event::{Exited, comm, instant};
use super::hook::optional;
use super::load::Way;
use super::settings::KernelTypes;

/// Notes whether the tracepoint says that the whole group is dead.
pub(super) fn fit(way: Way<'_>, types: &KernelTypes, settings: &mut Settings) -> Result<(), BpfError> {
    match way {
        Way::Raw => settings.raw_group_dead = u8::from(types.arguments(&EVENT)? > ARG_GROUP_DEAD),
        Way::Classic(tracefs) => {
            let format = tracefs.format(&EVENT)?;
            format.check(&EVENT)?;
            settings.ctx_group_dead = optional(&format, "group_dead", 1);
        }
    }
    settings.observe_exit = 1;
    Ok(())
}

pub(super) fn decode(event: &ExitEvent) -> Exited {
    let known = event.flags & EXIT_STATUS_KNOWN != 0;
    Exited {
        at: instant(&event.header),
        tgid: Tgid(event.tgid),
        status: known.then(|| ExitStatus::from_wait_status(event.status)),
        comm: comm(&event.comm),
    }
}
