use core::arch::asm;

use guard_common::LostReason;

use crate::maps;

/// Why a program ended without sending an event.
pub(crate) enum Skip {
    /// The event is about a socket or a process that nobody watches.
    Unrelated,
    /// It may be about a watched one, and could not be reported.
    Lost(LostReason),
}

impl From<LostReason> for Skip {
    fn from(reason: LostReason) -> Self {
        Self::Lost(reason)
    }
}

/// Turns the outcome of a `try_` function into the counters.
#[inline(always)]
pub(crate) fn settle(outcome: Result<(), Skip>) {
    if let Err(Skip::Lost(reason)) = outcome {
        count(reason);
    }
}

/// Counts one loss on this CPU. Atomically: a program on a raw tracepoint may
/// interrupt another one on the same CPU.
#[inline(always)]
pub(crate) fn count(reason: LostReason) {
    let counters = maps::LOST.get_ptr_mut(0).map(<*mut [u64; _]>::cast::<u64>);
    if let Some(counters) = counters {
        // SAFETY: the reason is a valid index; the counters are aligned, outlive the
        // program, and are written in no other way. `core` has no atomic addition for
        // this target; the instruction is as old as BPF.
        unsafe {
            let counter = counters.add(reason.index());
            asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1u64);
        }
    }
}
