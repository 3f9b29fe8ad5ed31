//! `tcp:tcp_destroy_sock`: the kernel begins to destroy a socket, and releases
//! its bind bucket right after.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, TracePointContext};
use guard_common::tcp_destroy_sock::{ARG_SK, DPORT, SKADDR, SPORT};
use guard_common::{COMM_LEN, KIND_RELEASED, LostReason, SocketEvent, TCP_LISTEN, WatchKey, watch};

use crate::emit::{emit, header};
use crate::function::address;
use crate::inet_sock_set_state::report_end_of_listen;
use crate::settings::setting;
use crate::skip::{Skip, settle};
use crate::sock::{Sock, Typed};
use crate::socket::{
    CONNECTIONS, Details, Socket, argument, bytes, context, cookie, field, member, netns, port_is_watched,
    read,
};
use crate::{current, maps};

#[btf_tracepoint(function = "tcp_destroy_sock")]
fn pg_raw_destroy(ctx: BtfTracePointContext) {
    // SAFETY: the guard compared the number of arguments with BTF.
    let sock = Typed(unsafe { argument::<ARG_SK>(&ctx) } as *const u8);
    // Nearly all sockets of the host end here. A listener whose port the kernel chose has none any more, but the usual
    // socket without a port is a client's.
    let number = sock.number();
    let watched =
        if number == 0 { !sock.has_peer() || port_is_watched(CONNECTIONS) } else { port_is_watched(number) };
    if watched {
        if !sock.has_peer() {
            end_of_known(ctx.as_ptr());
        }
        of_watched(ctx.as_ptr());
    }
}

/// A function of its own, as for `inet_sock_set_state`.
#[inline(never)]
fn of_watched(ctx: *mut c_void) {
    let ctx = BtfTracePointContext::new(ctx);
    // SAFETY: the guard compared the number of arguments with BTF.
    let sock = unsafe { argument::<ARG_SK>(&ctx) };
    // Whoever has its port and a peer may have listened before.
    // SAFETY: only the presence matters.
    let left_listen = || unsafe { maps::CLOSING.get(sock) }.is_some();
    if !port_is_watched(CONNECTIONS) && !left_listen() {
        return;
    }
    settle(address::<ARG_SK>(&ctx).and_then(|sk| try_destroy_sock(&ctx, &Sock(sk))));
}

/// While no program is on `inet_sock_set_state`, nothing was told of the end of LISTEN, nor remembered: both is made up
/// for here, for a listener that the guard has entered. Not called by [`of_watched`], so that their stacks do not add up.
#[inline(never)]
fn end_of_known(ctx: *mut c_void) {
    let ctx = BtfTracePointContext::new(ctx);
    // SAFETY: the guard compared the number of arguments with BTF; and of `CLOSING` only the presence matters.
    let told = unsafe { maps::CLOSING.get(argument::<ARG_SK>(&ctx)) }.is_some();
    if told {
        return;
    }
    settle(address::<ARG_SK>(&ctx).and_then(|sk| {
        // SAFETY: the value is copied at once, and the guard changes none that is there.
        let key = unsafe { maps::KNOWN.get(cookie(sk)) }.copied().ok_or(Skip::Unrelated)?;
        report_end_of_listen(&Sock(sk), key)
    }));
}

#[tracepoint]
fn pg_destroy_sock(ctx: TracePointContext) {
    settle(try_destroy_sock(&ctx, &Record(&ctx)));
}

/// Listeners are matched by socket address. Their port proves nothing: an
/// aborted connection has remote port 0 by now and looks just like them.
#[inline(always)]
#[cfg_attr(not(feature = "log"), expect(unused_variables, reason = "only the log takes the context"))]
fn try_destroy_sock(ctx: &impl EbpfContext, socket: &impl Socket) -> Result<(), Skip> {
    let skaddr = socket.skaddr();
    // SAFETY: the value is copied at once; only this program removes this socket's entry.
    let listener = unsafe { maps::CLOSING.get(skaddr) }.copied();
    let (key, was_listener) = if let Some(closing) = listener {
        if setting!(observe_put) == 1 && has_bucket(skaddr)? {
            // It is about to be put, which is the moment that counts.
            return Err(Skip::Unrelated);
        }
        // It is there, so this hardly fails; an entry left behind costs one hint too many.
        let _removed = maps::CLOSING.remove(skaddr);
        (closing.key, true)
    } else {
        let local_port = socket.local_port()?;
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

    report_release(KIND_RELEASED, socket, key, was_listener)?;
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(ctx, "sock 0x{:x} port {}: released", skaddr, key.port);
    Ok(())
}

/// Whether the socket still has its port.
#[inline(always)]
fn has_bucket(skaddr: u64) -> Result<bool, Skip> {
    let bucket: u64 =
        read(skaddr, setting!(sock_bucket) as usize).map_err(|_| Skip::Lost(LostReason::ReadSocket))?;
    Ok(bucket != 0)
}

/// Tells of a release as a record of this `kind`.
#[inline(always)]
pub(crate) fn report_release(
    kind: u16,
    socket: &impl Socket,
    key: WatchKey,
    was_listener: bool,
) -> Result<(), Skip> {
    let (mut tgid, mut comm) = (0, [0; COMM_LEN]);
    if was_listener && let Some(ids) = current::ids() {
        tgid = ids.tgid;
        comm = current::comm();
    }
    let details = socket.details();
    emit(SocketEvent {
        header: header::<SocketEvent>(kind),
        skaddr: socket.skaddr(),
        cookie: details.cookie,
        netns: key.netns,
        tgid,
        family: details.family,
        local_port: key.port,
        remote_port: details.remote_port,
        old_state: if was_listener { TCP_LISTEN } else { 0 },
        new_state: 0,
        local_addr: bytes(details.local_addr),
        remote_addr: bytes(details.remote_addr),
        comm,
    })
}

/// The classic tracepoint's record.
struct Record<'a>(&'a TracePointContext);

impl Socket for Record<'_> {
    #[inline(always)]
    fn skaddr(&self) -> u64 {
        // SAFETY: this field is in the table that the guard compares with tracefs.
        unsafe { field::<u64, { SKADDR.offset }>(self.0) }
    }

    #[inline(always)]
    fn local_port(&self) -> Result<u16, Skip> {
        // SAFETY: as above.
        Ok(unsafe { field::<u16, { SPORT.offset }>(self.0) })
    }

    #[inline(always)]
    fn details(&self) -> Details {
        Details {
            family: if setting!(ctx_destroy_family) == 0 {
                member(self.skaddr(), setting!(sock_family))
            } else {
                context(self.0, setting!(ctx_destroy_family), 0)
            },
            // SAFETY: this field is in the table that the guard compares with tracefs.
            remote_port: unsafe { field::<u16, { DPORT.offset }>(self.0) },
            cookie: context(self.0, setting!(ctx_destroy_cookie), 0),
            local_addr: context(self.0, setting!(ctx_destroy_local), [0; 2]),
            remote_addr: context(self.0, setting!(ctx_destroy_remote), [0; 2]),
        }
    }
}
