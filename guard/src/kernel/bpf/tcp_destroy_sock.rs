//! User side of `tcp:tcp_destroy_sock`.

use guard_common::tcp_destroy_sock::EVENT;
use guard_common::{KIND_PORT_PUT, Settings, SocketEvent, TCP_LISTEN};

use super::BpfError;
use super::event::{Actor, KernelSocket, Malformed, Released, instant};
use super::hook::{address, optional};
use super::load::Way;
use super::settings::KernelTypes;

/// Compares the tracepoint with what the program relies on, and notes what may
/// differ between kernels. Old kernels have no `family` there; the socket has.
pub(super) fn fit(way: Way<'_>, types: &KernelTypes, settings: &mut Settings) -> Result<(), BpfError> {
    let Way::Classic(tracefs) = way else {
        types.arguments(&EVENT)?;
        types.resolve_sock(&EVENT, settings)?;
        settings.observe_release = 1;
        return Ok(());
    };
    let format = tracefs.format(&EVENT)?;
    format.check(&EVENT)?;
    settings.ctx_destroy_local = address(&format, &EVENT, "saddr_v6")?;
    settings.ctx_destroy_remote = address(&format, &EVENT, "daddr_v6")?;
    settings.ctx_destroy_cookie = optional(&format, "sock_cookie", 8);
    settings.ctx_destroy_family = optional(&format, "family", 2);
    if settings.ctx_destroy_family == 0 {
        settings.sock_family = types.family();
    }
    settings.observe_release = 1;
    Ok(())
}

pub(super) fn decode(event: &SocketEvent) -> Result<Released, Malformed> {
    Ok(Released {
        at: instant(&event.header),
        exact: event.header.kind == KIND_PORT_PUT,
        socket: KernelSocket::decode(event)?,
        was_listener: event.old_state == TCP_LISTEN,
        actor: Actor::decode(event),
    })
}
