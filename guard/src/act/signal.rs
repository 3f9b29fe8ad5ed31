//! Delivering a signal to exactly one process.

use guard_core::gate::{Fact, SignalFailure};
use guard_core::model::{ProcessId, Signal};

use crate::kernel::pidfd::{PidFd, PidFdError};

/// Delivers `signal` through `pidfd`, or through a fresh one when there is
/// none, and says what came of it. Never sends by PID.
pub fn signal(process: ProcessId, pidfd: Option<&PidFd>, signal: Signal) -> Fact {
    let sent = match pidfd {
        Some(pidfd) => pidfd.signal(signal),
        None => PidFd::open(process).and_then(|pidfd| pidfd.signal(signal)),
    };
    match sent {
        Ok(()) => Fact::SignalDelivered { process, signal },
        Err(error) => Fact::SignalFailed { process, signal, failure: failure(&error) },
    }
}

fn failure(error: &PidFdError) -> SignalFailure {
    match error {
        PidFdError::Gone(_) => SignalFailure::Gone,
        PidFdError::IdentityChanged { .. } => SignalFailure::IdentityChanged,
        PidFdError::Denied { .. } => SignalFailure::NotPermitted,
        PidFdError::Unsupported { .. } | PidFdError::Failed { .. } | PidFdError::Unrecognised { .. } => {
            SignalFailure::Failed(error.to_string())
        }
    }
}
