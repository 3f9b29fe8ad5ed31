use aya_ebpf::bindings::BPF_RB_AVAIL_DATA;
use aya_ebpf::bindings::BPF_RB_RING_SIZE;
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

/// As [`emit`], for a record that nothing depends on: it takes no room from the
/// others, and is left out of a ring that is half full.
#[inline(always)]
pub(crate) fn emit_if_roomy<T: 'static>(record: T) -> Result<(), Skip> {
    let (waiting, size) =
        (maps::EVENTS.query(BPF_RB_AVAIL_DATA.into()), maps::EVENTS.query(BPF_RB_RING_SIZE.into()));
    if waiting > size / 2 {
        return Err(LostReason::BindCrowdedOut.into());
    }
    emit(record)
}
