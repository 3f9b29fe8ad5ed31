//! Destroying exactly one socket.

use guard_core::gate::{EvictionFailure, Fact};
use guard_core::model::Socket;

use crate::kernel::sock_diag::{DestroyError, SockDiag};

/// Destroys `socket`, recognised by its cookie, in the network namespace of the
/// calling thread, and says what came of it.
pub fn evict(socket: Socket) -> Fact {
    let destroyed = SockDiag::open().map_err(DestroyError::from).and_then(|mut diag| diag.destroy(&socket));
    let failure = match destroyed {
        Ok(()) => return Fact::Evicted(socket),
        Err(DestroyError::Gone) => EvictionFailure::Gone,
        Err(error @ DestroyError::Denied { .. }) => EvictionFailure::NotPermitted(error.to_string()),
        Err(
            error @ (DestroyError::Unsupported { .. }
            | DestroyError::NotAddressable
            | DestroyError::NoCookie
            | DestroyError::Request(_)),
        ) => EvictionFailure::Failed(error.to_string()),
    };
    Fact::EvictionFailed { socket, failure }
}
