//! `sock:inet_sock_set_state`: a socket is about to change its TCP state.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use guard_common::inet_sock_set_state::{DPORT, FAMILY, NEWSTATE, OLDSTATE, PROTOCOL_OFFSET, SKADDR, SPORT};
use guard_common::{
    COMM_LEN, Closing, KIND_STATE_CHANGED, LostReason, SocketEvent, TCP_CLOSE, TCP_LISTEN, WatchKey, watch,
};

use crate::emit::{emit, header};
use crate::settings::setting;
use crate::skip::{Skip, count, settle};
use crate::socket::{address, cookie, field, netns, port_is_watched};
use crate::{current, maps};

const IPPROTO_TCP: u16 = 6;

#[tracepoint]
fn pg_set_state(ctx: TracePointContext) {
    settle(try_set_state(&ctx));
}

#[inline(always)]
fn try_set_state(ctx: &TracePointContext) -> Result<(), Skip> {
    // SAFETY: these fields are in the table that the guard compares with tracefs.
    let local_port = unsafe { field::<u16, { SPORT.offset }>(ctx) };
    if !port_is_watched(local_port) || protocol(ctx) != IPPROTO_TCP {
        return Err(Skip::Unrelated);
    }
    // SAFETY: as above.
    let skaddr = unsafe { field::<u64, { SKADDR.offset }>(ctx) };
    let key = WatchKey::new(netns(skaddr)?, local_port);
    // SAFETY: the value is one aligned word; a removal meanwhile costs one event more or less.
    let Some(&flags) = (unsafe { maps::WATCHED.get(key) }) else {
        return Err(Skip::Unrelated);
    };
    // SAFETY: as above.
    let (old_state, new_state) = unsafe {
        (field::<i32, { OLDSTATE.offset }>(ctx) as u8, field::<i32, { NEWSTATE.offset }>(ctx) as u8)
    };
    let enters = new_state == TCP_LISTEN;
    // A connection begins as a copy of its listener, so its first change reads
    // LISTEN → SYN_RECV. The listener itself leaves LISTEN to CLOSE only.
    let leaves = old_state == TCP_LISTEN && new_state == TCP_CLOSE;
    if !enters && !leaves && flags & watch::CONNECTIONS == 0 {
        return Err(Skip::Unrelated);
    }

    let (mut tgid, mut comm) = (0, [0; COMM_LEN]);
    if enters || leaves {
        if let Some(ids) = current::ids() {
            tgid = ids.tgid;
            comm = current::comm();
        }
        remember(skaddr, key, tgid, enters);
    }
    emit(SocketEvent {
        header: header::<SocketEvent>(KIND_STATE_CHANGED),
        skaddr,
        cookie: cookie(skaddr),
        netns: key.netns,
        tgid,
        // SAFETY: as above.
        family: unsafe { field::<u16, { FAMILY.offset }>(ctx) },
        local_port,
        // SAFETY: as above.
        remote_port: unsafe { field::<u16, { DPORT.offset }>(ctx) },
        old_state,
        new_state,
        local_addr: address(ctx, setting!(ctx_state_local)),
        remote_addr: address(ctx, setting!(ctx_state_remote)),
        comm,
    })?;
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        ctx,
        "sock 0x{:x} port {}: state {} -> {}",
        skaddr,
        local_port,
        old_state,
        new_state
    );
    Ok(())
}

/// The `protocol` field has one byte on old kernels and two on newer ones.
#[inline(always)]
fn protocol(ctx: &TracePointContext) -> u16 {
    if setting!(ctx_protocol_size) == 1 {
        // SAFETY: the guard compared the offset with tracefs and set the size from there.
        u16::from(unsafe { field::<u8, PROTOCOL_OFFSET>(ctx) })
    } else {
        // SAFETY: as above.
        unsafe { field::<u16, PROTOCOL_OFFSET>(ctx) }
    }
}

/// Keeps the book of owners and of listeners on their way out, before the
/// event is sent: a reader that sees the event also sees what was lost here.
#[inline(always)]
fn remember(skaddr: u64, key: WatchKey, tgid: u32, enters: bool) {
    if enters {
        // A shut down listener may listen again. Not being remembered is the usual case.
        let _absent = maps::CLOSING.remove(skaddr);
        if setting!(observe_exit) == 1 && tgid != 0 && maps::OWNERS.insert(tgid, 1, 0).is_err() {
            count(LostReason::OwnersFull);
        }
    } else if setting!(observe_release) == 1 && maps::CLOSING.insert(skaddr, Closing { key }, 0).is_err() {
        count(LostReason::ClosingFull);
    }
}
