//! Exit of `inet_csk_get_port`, which decides about every TCP `bind()` and, once
//! more, about every `listen()`.

use aya_ebpf::macros::fexit;
use aya_ebpf::programs::FExitContext;
use guard_common::TCP_LISTEN;

use crate::function::{address, number};
use crate::lost_bind::{Attempt, report};
use crate::settings::setting;
use crate::skip::{Skip, settle};
use crate::sock::Sock;
use crate::socket::{Socket, port_is_watched, read};

#[fexit(function = "inet_csk_get_port")]
fn pg_get_port(ctx: FExitContext) {
    settle(try_get_port(&ctx));
}

/// The socket has the address that was asked for until the caller takes it back.
#[inline(always)]
fn try_get_port(ctx: &FExitContext) -> Result<(), Skip> {
    // SAFETY: the guard found two parameters in BTF, of which the second is the
    // port; what it returns comes after them.
    let (port, refused) = unsafe { (number::<1>(ctx) as u16, number::<2>(ctx) as i32 != 0) };
    if !refused || !port_is_watched(port) {
        return Err(Skip::Unrelated);
    }
    let sock = Sock(address::<0>(ctx)?);
    let state: u8 =
        read(sock.0, setting!(sock_state) as usize).map_err(|_| guard_common::LostReason::ReadBind)?;
    let details = sock.details();
    let (family, address) = (details.family, details.local_addr);
    report(&sock, &Attempt { family, port, address, by_listen: state == TCP_LISTEN })
}
