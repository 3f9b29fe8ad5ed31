//! User side of `sched:sched_process_exit`.

use guard_common::sched_process_exit::EVENT;
use guard_common::{EXIT_STATUS_KNOWN, ExitEvent, Settings};
use guard_core::model::{ExitStatus, Tgid};

use super::event::{Exited, comm, instant};
use super::hook::optional;
use crate::kernel::tracefs::{Tracefs, TracefsError};

/// Notes whether the tracepoint says that the whole group is dead.
pub(super) fn fit(tracefs: &Tracefs, settings: &mut Settings) -> Result<(), TracefsError> {
    let format = tracefs.format(&EVENT)?;
    format.check(&EVENT)?;
    settings.ctx_group_dead = optional(&format, "group_dead", 1);
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
