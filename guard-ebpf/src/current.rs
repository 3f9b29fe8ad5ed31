//! The current task, as the guard's PID namespace numbers it.

use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};
use guard_common::COMM_LEN;

use crate::settings::setting;
use crate::socket::bytes;

/// Ids of the current thread.
pub(crate) struct Ids {
    pub(crate) tgid: u32,
    pub(crate) pid: u32,
}

/// `None` for a task outside the guard's PID namespace.
#[inline(always)]
pub(crate) fn ids() -> Option<Ids> {
    let inode = setting!(pidns_ino);
    if inode == 0 {
        let both = bpf_get_current_pid_tgid();
        return Some(Ids { tgid: (both >> 32) as u32, pid: both as u32 });
    }
    let mut info = bpf_pidns_info { pid: 0, tgid: 0 };
    let size = size_of::<bpf_pidns_info>() as u32;
    let device = setting!(pidns_dev);
    // SAFETY: `info` is a valid buffer of `size` bytes.
    let failed = unsafe { generated::bpf_get_ns_current_pid_tgid(device, inode, &raw mut info, size) };
    if failed == 0 { Some(Ids { tgid: info.tgid, pid: info.pid }) } else { None }
}

/// The current thread's `comm`. The helper cannot fail on a buffer of this size.
#[inline(always)]
pub(crate) fn comm() -> [u8; COMM_LEN] {
    let mut words = [0u64; 2];
    // SAFETY: `words` is a valid buffer of `COMM_LEN` bytes.
    let _cannot_fail = unsafe { generated::bpf_get_current_comm((&raw mut words).cast(), COMM_LEN as u32) };
    bytes(words)
}
