//! `tcp:tcp_destroy_sock`: the kernel begins to destroy a socket, and releases
//! its bind bucket right after.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use guard_common::tcp_destroy_sock::{DPORT, SKADDR, SPORT};
use guard_common::{COMM_LEN, KIND_RELEASED, SocketEvent, TCP_LISTEN, WatchKey, watch};

use crate::emit::{emit, header};
use crate::settings::setting;
use crate::skip::{Skip, settle};
use crate::socket::{address, context, field, netns, port_is_watched};
use crate::{current, maps};

#[tracepoint]
fn pg_destroy_sock(ctx: TracePointContext) {
    settle(try_destroy_sock(&ctx));
}

/// Listeners are matched by socket address. Their port proves nothing: an
/// aborted connection has remote port 0 by now and looks just like them.
#[inline(always)]
fn try_destroy_sock(ctx: &TracePointContext) -> Result<(), Skip> {
    // SAFETY: these fields are in the table that the guard compares with tracefs.
    let skaddr = unsafe { field::<u64, { SKADDR.offset }>(ctx) };
    // SAFETY: the value is copied at once; only this program removes this socket's entry.
    let listener = unsafe { maps::CLOSING.get(skaddr) }.copied();
    let (key, was_listener) = if let Some(closing) = listener {
        // It is there, so this cannot fail.
        let _removed = maps::CLOSING.remove(skaddr);
        (closing.key, true)
    } else {
        // SAFETY: as above.
        let local_port = unsafe { field::<u16, { SPORT.offset }>(ctx) };
        if !port_is_watched(local_port) {
            return Err(Skip::Unrelated);
        }
        (WatchKey::new(netns(skaddr)?, local_port), false)
    };
    // SAFETY: the value is one aligned word; a removal meanwhile costs one event more or less.
    let Some(&flags) = (unsafe { maps::WATCHED.get(key) }) else {
        return Err(Skip::Unrelated);
    };
    if !was_listener && flags & watch::CONNECTIONS == 0 {
        return Err(Skip::Unrelated);
    }

    let (mut tgid, mut comm) = (0, [0; COMM_LEN]);
    if was_listener && let Some(ids) = current::ids() {
        tgid = ids.tgid;
        comm = current::comm();
    }
    emit(SocketEvent {
        header: header::<SocketEvent>(KIND_RELEASED),
        skaddr,
        cookie: context(ctx, setting!(ctx_destroy_cookie), 0),
        netns: key.netns,
        tgid,
        family: context(ctx, setting!(ctx_destroy_family), 0),
        local_port: key.port,
        // SAFETY: as above.
        remote_port: unsafe { field::<u16, { DPORT.offset }>(ctx) },
        old_state: if was_listener { TCP_LISTEN } else { 0 },
        new_state: 0,
        local_addr: address(ctx, setting!(ctx_destroy_local)),
        remote_addr: address(ctx, setting!(ctx_destroy_remote)),
        comm,
    })?;
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(ctx, "sock 0x{:x} port {}: released", skaddr, key.port);
    Ok(())
}
