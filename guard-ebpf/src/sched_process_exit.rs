//! `sched:sched_process_exit`: a thread exits; its descriptors are still open.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_task;
use aya_ebpf::macros::{raw_tracepoint, tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use guard_common::sched_process_exit::ARG_GROUP_DEAD;
use guard_common::{EXIT_STATUS_KNOWN, ExitEvent, KIND_EXITED, LostReason};

use crate::emit::{emit, header};
use crate::settings::{known, setting};
use crate::skip::{Skip, count, settle};
use crate::socket::{argument, read};
use crate::{current, maps};

/// `SIGNAL_GROUP_EXIT` of `include/linux/sched/signal.h`: the whole group was
/// told to exit, and its exit code is the group's.
const SIGNAL_GROUP_EXIT: u32 = 0x4;

/// No status word: `wait(2)` knows 16 bits. A plain number and no `Option`: before Linux 6.3 the verifier refuses a
/// program in which a value is carried along that only some of its ways have set.
const UNTOLD: i32 = -1;

/// `ENOENT`, as a helper answers.
const ABSENT: i32 = -2;

#[raw_tracepoint]
fn pg_raw_exit(ctx: RawTracePointContext) {
    // SAFETY: the guard found the argument in BTF, else this is not even loaded.
    let told =
        || (setting!(raw_group_dead) == 1).then(|| unsafe { argument::<ARG_GROUP_DEAD>(&ctx) } as u8 != 0);
    settle(try_process_exit(&ctx, told));
}

#[tracepoint]
fn pg_process_exit(ctx: TracePointContext) {
    let told = || {
        let dead: Result<u8, _> = read(ctx.as_ptr() as u64, known(setting!(ctx_group_dead))?);
        dead.inspect_err(|_| count(LostReason::ReadTask)).ok().map(|dead| dead != 0)
    };
    settle(try_process_exit(&ctx, told));
}

/// `told` gives what the tracepoint itself tells: whether the whole group is dead.
#[inline(always)]
#[cfg_attr(not(feature = "log"), expect(unused_variables, reason = "only the log takes the context"))]
fn try_process_exit(ctx: &impl EbpfContext, told: impl FnOnce() -> Option<bool>) -> Result<(), Skip> {
    let Some(ids) = current::ids() else {
        return Err(Skip::Unrelated);
    };
    // SAFETY: only the presence matters.
    if unsafe { maps::OWNERS.get(ids.tgid) }.is_none() || !told().unwrap_or_else(|| group_is_dead(&ids)) {
        return Err(Skip::Unrelated);
    }
    // Two last threads may both find that nobody is alive: the one that takes
    // the entry out speaks for the group.
    // Any other failure leaves it in, and a second report is better than none.
    if maps::OWNERS.remove(ids.tgid) == Err(ABSENT) {
        return Err(Skip::Unrelated);
    }
    let status = wait_status();
    emit(ExitEvent {
        header: header::<ExitEvent>(KIND_EXITED),
        tgid: ids.tgid,
        status: if status == UNTOLD { 0 } else { status },
        flags: if status == UNTOLD { 0 } else { EXIT_STATUS_KNOWN },
        pad: 0,
        comm: current::comm(),
    })?;
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(ctx, "tgid {} exits, status {}", ids.tgid, status);
    Ok(())
}

/// Whether no thread of the current thread's group is alive any more, where
/// the tracepoint does not tell.
///
/// Where BTF does not either, the leader stands for the group; it may exit
/// before the others do.
#[inline(always)]
fn group_is_dead(ids: &current::Ids) -> bool {
    if let Some(offset) = known(setting!(signal_live)) {
        if let Some(live) = signal().and_then(|signal| read::<i32>(signal, offset).ok()) {
            return live == 0;
        }
        count(LostReason::ReadTask);
    }
    ids.pid == ids.tgid
}

/// The status word that `wait(2)` will report: the group's exit code once the
/// group was told to exit (a fatal signal, `exit_group`, and since 5.17 the last
/// thread's own exit), else the leader's. The kernel's `wait_task_zombie()`
/// chooses in the same way. [`UNTOLD`] where BTF does not show the fields, or one cannot be read.
#[inline(always)]
fn wait_status() -> i32 {
    let (Some(flags_offset), Some(group_offset), Some(leader_offset), Some(code_offset)) = (
        known(setting!(signal_flags)),
        known(setting!(signal_exit_code)),
        known(setting!(task_leader)),
        known(setting!(task_exit_code)),
    ) else {
        return UNTOLD;
    };
    let status = (|| {
        let signal = signal()?;
        if read::<u32>(signal, flags_offset).ok()? & SIGNAL_GROUP_EXIT != 0 {
            return read::<i32>(signal, group_offset).ok();
        }
        let leader: u64 = read(current_task(), leader_offset).ok()?;
        read::<i32>(leader, code_offset).ok()
    })();
    status.unwrap_or_else(|| {
        count(LostReason::ReadTask);
        UNTOLD
    })
}

/// The current task's `struct signal_struct`, shared by its thread group.
#[inline(always)]
fn signal() -> Option<u64> {
    read(current_task(), known(setting!(task_signal))?).ok()
}

#[inline(always)]
fn current_task() -> u64 {
    // SAFETY: the helper has no requirements.
    unsafe { bpf_get_current_task() }
}
