//! `sock:inet_sock_set_state`: a socket is about to change its TCP state. Only beginning to listen and its end are
//! reported: what becomes of connections, their destruction tells.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, TracePointContext};
use guard_common::inet_sock_set_state::{
    ARG_NEWSTATE, ARG_OLDSTATE, ARG_SK, DPORT, FAMILY, NEWSTATE, OLDSTATE, PROTOCOL_OFFSET, SKADDR, SPORT,
};
use guard_common::{
    COMM_LEN, Closing, KIND_STATE_CHANGED, LostReason, SocketEvent, TCP_CLOSE, TCP_LISTEN, WatchKey,
};

use crate::emit::{emit, header};
use crate::function::address;
use crate::settings::setting;
use crate::skip::{Skip, count, settle};
use crate::sock::{Sock, Typed};
use crate::socket::{Details, Socket, argument, bytes, context, cookie, field, netns, port_is_watched};
use crate::{current, maps};

const IPPROTO_TCP: u16 = 6;

#[btf_tracepoint(function = "inet_sock_set_state")]
fn pg_raw_state(ctx: BtfTracePointContext) {
    // SAFETY: the guard compared the number of arguments with BTF.
    let (old_state, new_state) =
        unsafe { (argument::<ARG_OLDSTATE>(&ctx) as u8, argument::<ARG_NEWSTATE>(&ctx) as u8) };
    // Every change of every connection on the host ends here, before anything of the socket is read.
    if change(old_state, new_state).is_some() {
        of_listener(ctx.as_ptr());
    }
}

/// A function of its own, so that what every change on the host goes through is a few instructions in one place, without
/// the stack and the registers that the rest needs.
#[inline(never)]
fn of_listener(ctx: *mut c_void) {
    let ctx = BtfTracePointContext::new(ctx);
    // SAFETY: the guard compared the number of arguments with BTF.
    let sock = Typed(unsafe { argument::<ARG_SK>(&ctx) } as *const u8);
    // SAFETY: as above.
    let states = || unsafe { (argument::<ARG_OLDSTATE>(&ctx) as u8, argument::<ARG_NEWSTATE>(&ctx) as u8) };
    let number = sock.number();
    if number != 0 && !port_is_watched(number) {
        return;
    }
    settle(address::<ARG_SK>(&ctx).and_then(|sk| try_set_state(&ctx, &Sock(sk), states)));
}

#[tracepoint]
fn pg_set_state(ctx: TracePointContext) {
    // SAFETY: these fields are in the table that the guard compares with tracefs.
    let states = || unsafe {
        (field::<i32, { OLDSTATE.offset }>(&ctx) as u8, field::<i32, { NEWSTATE.offset }>(&ctx) as u8)
    };
    settle(try_set_state(&ctx, &Record(&ctx), states));
}

/// What becomes of a listener.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    Opens,
    Closes,
}

/// A connection begins as a copy of its listener, so its first change reads
/// LISTEN → SYN_RECV. The listener itself leaves LISTEN to CLOSE only.
#[inline(always)]
fn change(old_state: u8, new_state: u8) -> Option<Change> {
    match (old_state, new_state) {
        (_, TCP_LISTEN) => Some(Change::Opens),
        (TCP_LISTEN, TCP_CLOSE) => Some(Change::Closes),
        _ => None,
    }
}

/// `states` gives the state left and the state entered.
#[inline(always)]
#[cfg_attr(not(feature = "log"), expect(unused_variables, reason = "only the log takes the context"))]
fn try_set_state(
    ctx: &impl EbpfContext,
    socket: &impl Socket,
    states: impl FnOnce() -> (u8, u8),
) -> Result<(), Skip> {
    let (old_state, new_state) = states();
    let Some(change) = change(old_state, new_state) else {
        return Err(Skip::Unrelated);
    };
    let local_port = socket.local_port()?;
    if !port_is_watched(local_port) || socket.protocol()? != IPPROTO_TCP {
        return Err(Skip::Unrelated);
    }
    let skaddr = socket.skaddr();
    let key = WatchKey::new(netns(skaddr)?, local_port);
    // SAFETY: only the presence matters.
    if unsafe { maps::WATCHED.get(key) }.is_none() {
        return Err(Skip::Unrelated);
    }

    report_change(socket, key, change, (old_state, new_state))?;
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

/// Tells of a change, and remembers what follows from it.
#[inline(always)]
fn report_change(
    socket: &impl Socket,
    key: WatchKey,
    change: Change,
    (old_state, new_state): (u8, u8),
) -> Result<(), Skip> {
    let skaddr = socket.skaddr();
    let (mut tgid, mut comm) = (0, [0; COMM_LEN]);
    if let Some(ids) = current::ids() {
        tgid = ids.tgid;
        comm = current::comm();
    }
    remember(skaddr, key, tgid, change);
    let details = socket.details();
    emit(SocketEvent {
        header: header::<SocketEvent>(KIND_STATE_CHANGED),
        skaddr,
        cookie: details.cookie,
        netns: key.netns,
        tgid,
        family: details.family,
        local_port: key.port,
        remote_port: details.remote_port,
        old_state,
        new_state,
        local_addr: bytes(details.local_addr),
        remote_addr: bytes(details.remote_addr),
        comm,
    })
}

/// The end of a listener that nobody told of when it came, because this file's programs were not attached: the listener
/// is being destroyed, in process context too.
#[inline(always)]
pub(crate) fn report_end_of_listen(socket: &impl Socket, key: WatchKey) -> Result<(), Skip> {
    report_change(socket, key, Change::Closes, (TCP_LISTEN, TCP_CLOSE))
}

/// Keeps the book of owners and of listeners on their way out, before the
/// event is sent: a reader that sees the event also sees what was lost here.
#[inline(always)]
fn remember(skaddr: u64, key: WatchKey, tgid: u32, change: Change) {
    if change == Change::Opens {
        // A shut down listener may listen again. Not being remembered is the usual case.
        let _absent = maps::CLOSING.remove(skaddr);
        if setting!(observe_exit) == 1 && tgid != 0 && maps::OWNERS.insert(tgid, 1, 0).is_err() {
            count(LostReason::OwnersFull);
        }
    } else if setting!(observe_release) == 1 && maps::CLOSING.insert(skaddr, Closing { key }, 0).is_err() {
        count(LostReason::ClosingFull);
    }
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

    /// The field has one byte on old kernels and two on newer ones.
    #[inline(always)]
    fn protocol(&self) -> Result<u16, Skip> {
        Ok(if setting!(ctx_protocol_size) == 1 {
            // SAFETY: the guard compared the offset with tracefs and set the size from there.
            u16::from(unsafe { field::<u8, PROTOCOL_OFFSET>(self.0) })
        } else {
            // SAFETY: as above.
            unsafe { field::<u16, PROTOCOL_OFFSET>(self.0) }
        })
    }

    #[inline(always)]
    fn details(&self) -> Details {
        Details {
            // SAFETY: these fields are in the table that the guard compares with tracefs.
            family: unsafe { field::<u16, { FAMILY.offset }>(self.0) },
            // SAFETY: as above.
            remote_port: unsafe { field::<u16, { DPORT.offset }>(self.0) },
            cookie: cookie(self.skaddr()),
            local_addr: context(self.0, setting!(ctx_state_local), [0; 2]),
            remote_addr: context(self.0, setting!(ctx_state_remote), [0; 2]),
        }
    }
}
