//! A bind that failed because somebody has the port: what the hooks that see it share.

use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns};
use guard_common::{
    BIND_FAILED_BY_LISTEN, BindFailedEvent, KIND_BIND_FAILED, LOSER_PAUSE_NS, Loser, LoserKey, LostReason,
    WatchKey,
};

use crate::emit::{emit_if_roomy, header};
use crate::settings::{known, setting};
use crate::skip::{Skip, count};
use crate::sock::Sock;
use crate::socket::{Socket, bytes, netns, read};
use crate::{current, maps};

const IPPROTO_TCP: u16 = 6;

/// `EADDRINUSE` of `include/uapi/asm-generic/errno.h`.
pub(crate) const EADDRINUSE: i32 = 98;

/// What somebody asked for in vain.
pub(crate) struct Attempt {
    pub(crate) family: u16,
    pub(crate) port: u16,
    /// As in [`Details`](crate::socket::Details).
    pub(crate) address: [u64; 2],
    pub(crate) by_listen: bool,
}

/// Reports the current process's failure on `sock`, unless it was reported just
/// now or the guard failed itself.
#[inline(always)]
pub(crate) fn report(sock: &Sock, attempt: &Attempt) -> Result<(), Skip> {
    if sock.protocol()? != IPPROTO_TCP {
        return Err(Skip::Unrelated);
    }
    let key = WatchKey::new(netns(sock.0)?, attempt.port);
    // SAFETY: only the presence matters.
    if unsafe { maps::WATCHED.get(key) }.is_none() {
        return Err(Skip::Unrelated);
    }
    let tgid = current::ids().map_or(0, |ids| ids.tgid);
    if tgid != 0 && tgid == setting!(own_tgid) {
        return Err(Skip::Unrelated);
    }
    let attempts = count_attempt(attempt.port)?;
    // SAFETY: the helper has no requirements.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    emit_if_roomy(BindFailedEvent {
        header: header::<BindFailedEvent>(KIND_BIND_FAILED),
        start_ns: start_time(),
        cgroup,
        netns: key.netns,
        tgid,
        uid: bpf_get_current_uid_gid() as u32,
        attempts,
        errno: EADDRINUSE,
        flags: if attempt.by_listen { BIND_FAILED_BY_LISTEN } else { 0 },
        port: attempt.port,
        family: attempt.family,
        pad: 0,
        local_addr: bytes(attempt.address),
        comm: current::comm(),
    })
}

/// How often the current process failed on `port` since it was last reported.
/// Threads that fail at the same moment may be counted as one.
#[inline(always)]
fn count_attempt(port: u16) -> Result<u32, Skip> {
    // SAFETY: the helper has no requirements.
    let now = unsafe { bpf_ktime_get_ns() };
    let key = LoserKey { tgid: (bpf_get_current_pid_tgid() >> 32) as u32, port, pad: 0 };
    let Some(loser) = maps::LOSERS.get_ptr_mut(key) else {
        // Not being remembered costs one report more.
        let _forgotten = maps::LOSERS.insert(key, Loser { reported_ns: now, since: 0 }, 0);
        return Ok(1);
    };
    // SAFETY: the entry may be given to another key meanwhile, but stays memory of
    // this map; every bit pattern is a valid number.
    unsafe {
        let since = (*loser).since + 1;
        if now.wrapping_sub((*loser).reported_ns) < LOSER_PAUSE_NS {
            (*loser).since = since;
            return Err(Skip::Unrelated);
        }
        *loser = Loser { reported_ns: now, since: 0 };
        Ok(since as u32)
    }
}

/// When the current thread group began, or 0.
#[inline(always)]
fn start_time() -> u64 {
    let (Some(leader), Some(start)) = (known(setting!(task_leader)), known(setting!(task_start))) else {
        return 0;
    };
    // SAFETY: the helper has no requirements.
    let task = unsafe { bpf_get_current_task() };
    read::<u64>(task, leader).and_then(|leader| read(leader, start)).unwrap_or_else(|_| {
        count(LostReason::ReadBind);
        0
    })
}
