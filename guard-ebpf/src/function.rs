//! What programs with typed arguments (fentry, fexit, tp_btf) have in common.

use aya_ebpf::EbpfContext;
use guard_common::LostReason;

use crate::skip::Skip;
use crate::socket::read;

/// Loads word `N` of the context: argument `N`, or after the last one, at a
/// function's exit, what it returned.
///
/// # Safety
///
/// The function has that many arguments, and the word is a number.
#[inline(always)]
pub(crate) unsafe fn number<const N: usize>(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the caller's promise. Volatile keeps it one load at a constant place.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<u64>().add(N)) }
}

/// Copies argument `N`, a pointer, as a plain address: what the verifier knows as
/// a pointer to a structure takes no offset that it cannot look up itself.
#[inline(always)]
pub(crate) fn address<const N: usize>(ctx: &impl EbpfContext) -> Result<u64, Skip> {
    read(ctx.as_ptr() as u64, N * size_of::<u64>()).map_err(|_| Skip::Lost(LostReason::ReadSocket))
}
