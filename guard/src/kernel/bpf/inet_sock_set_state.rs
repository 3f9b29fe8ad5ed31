//! User side of `sock:inet_sock_set_state`.

use guard_common::inet_sock_set_state::{EVENT, PROTOCOL_OFFSET};
use guard_common::{Settings, SocketEvent};
use guard_core::model::TcpState;

use super::BpfError;
use super::event::{Actor, KernelSocket, Malformed, StateChanged, instant};
use super::hook::address;
use super::load::Way;
use super::settings::KernelTypes;

/// Compares the tracepoint with what the program relies on, and notes what may
/// differ between kernels.
pub(super) fn fit(way: Way<'_>, types: &KernelTypes, settings: &mut Settings) -> Result<(), BpfError> {
    let Way::Classic(tracefs) = way else {
        types.arguments(&EVENT)?;
        return types.resolve_sock(&EVENT, settings);
    };
    let format = tracefs.format(&EVENT)?;
    format.check(&EVENT)?;
    let protocol_size = format.expect(&EVENT, "protocol", PROTOCOL_OFFSET, &[1, 2])?;
    settings.ctx_protocol_size = if protocol_size == 1 { 1 } else { 2 };
    settings.ctx_state_local = address(&format, &EVENT, "saddr_v6")?;
    settings.ctx_state_remote = address(&format, &EVENT, "daddr_v6")?;
    Ok(())
}

pub(super) fn decode(event: &SocketEvent) -> Result<StateChanged, Malformed> {
    Ok(StateChanged {
        at: instant(&event.header),
        socket: KernelSocket::decode(event)?,
        old: TcpState::from_kernel(event.old_state),
        new: TcpState::from_kernel(event.new_state),
        actor: Actor::decode(event),
    })
}
