//! Exit of `inet_put_port`: a socket has given its port back.

use aya_ebpf::macros::fexit;
use aya_ebpf::programs::FExitContext;
use guard_common::KIND_PORT_PUT;

use crate::function::address;
use crate::maps;
use crate::skip::{Skip, settle};
use crate::sock::Sock;
use crate::tcp_destroy_sock::report_release;

#[fexit(function = "inet_put_port")]
fn pg_put_port(ctx: FExitContext) {
    settle(try_put_port(&ctx));
}

/// Its number is 0 by now: the port is the one under which its end of LISTEN was
/// remembered. Every other socket ends here.
#[inline(always)]
fn try_put_port(ctx: &FExitContext) -> Result<(), Skip> {
    let skaddr = address::<0>(ctx)?;
    // SAFETY: the value is copied at once; only this socket's own end removes its entry.
    let Some(key) = unsafe { maps::CLOSING.get(skaddr) }.map(|closing| closing.key) else {
        return Err(Skip::Unrelated);
    };
    // It is there, so this hardly fails; an entry left behind costs one hint too many.
    let _removed = maps::CLOSING.remove(skaddr);
    // SAFETY: only the presence matters.
    if unsafe { maps::WATCHED.get(key) }.is_none() {
        return Err(Skip::Unrelated);
    }
    report_release(KIND_PORT_PUT, &Sock(skaddr), key, true)
}
