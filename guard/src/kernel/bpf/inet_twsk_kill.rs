//! User side of the entry and the exit of `inet_twsk_kill`.

use guard_common::{INET_TWSK_KILL, Settings, TimeWaitEvent};
use guard_core::model::{Instant, NetnsInode, Port};

use super::BpfError;
use super::event::{Malformed, instant};
use super::settings::KernelTypes;

/// A TIME_WAIT or FIN_WAIT2 mini-socket on a watched port is gone, and with it
/// its claim on the port: by time, by `SOCK_DESTROY`, or because the same
/// connection was made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeWaitEnded {
    /// When.
    pub at: Instant,
    /// `None` on a kernel that does not tell the programs.
    pub netns: Option<NetnsInode>,
    /// Local port.
    pub port: Port,
}

/// Notes where a mini-socket has its port.
///
/// # Errors
///
/// When the kernel lets nobody hook the function, or its types are unknown.
pub(super) fn fit(types: &KernelTypes, settings: &mut Settings) -> Result<(), BpfError> {
    types.hook_function(&INET_TWSK_KILL)?;
    types.resolve_functions(&INET_TWSK_KILL, settings)
}

pub(super) fn decode(event: &TimeWaitEvent) -> Result<TimeWaitEnded, Malformed> {
    Ok(TimeWaitEnded {
        at: instant(&event.header),
        netns: (event.netns != 0).then_some(NetnsInode(event.netns.into())),
        port: Port::new(event.port).ok_or(Malformed)?,
    })
}
