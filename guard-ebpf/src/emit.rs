use aya_ebpf::helpers::bpf_ktime_get_ns;
use guard_common::{ABI, Header, LostReason};

use crate::maps;
use crate::skip::Skip;

/// The header of a record of type `T`.
#[inline(always)]
pub(crate) fn header<T>(kind: u16) -> Header {
    // SAFETY: the helper has no requirements.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    Header { abi: ABI, kind, size: size_of::<T>() as u32, ktime_ns }
}

/// Sends `record`, waking the reader if it had caught up.
#[inline(always)]
pub(crate) fn emit<T: 'static>(record: T) -> Result<(), Skip> {
    let Some(mut entry) = maps::EVENTS.reserve::<T>(0) else {
        return Err(LostReason::RingFull.into());
    };
    entry.write(record);
    entry.submit(0);
    Ok(())
}
