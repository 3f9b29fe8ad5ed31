//! Who asks, and what its words mean on this machine.

use guard_core::model::{ProcessId, StartTime, Tgid};
use guard_core::policy::Asker;
use tracing::debug;

pub use crate::kernel::bind::ipv6_available;
use crate::kernel::features;
pub use crate::kernel::features::service_manager_runs;
pub use crate::kernel::names::{group_id, interface_index, user_id};
use crate::kernel::procfs::{self, ProcError};
use crate::kernel::sock_diag::DestroyError;

/// It cannot be told who portguard itself is, so nobody can be ended safely.
#[derive(Debug, thiserror::Error)]
pub enum AskerError {
    /// `/proc` could not be read.
    #[error("cannot find portguard and its ancestors in /proc, so nobody could be ended safely: {0}")]
    Proc(#[from] ProcError),
    /// `/proc` shows other processes.
    #[error("/proc does not show portguard itself: it belongs to another PID namespace; mount the right one")]
    OtherProc,
}

/// Sockets cannot be destroyed.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// This user may not.
    #[error("--evict is not possible for this user: {0}")]
    Denied(DestroyError),
    /// This kernel cannot.
    #[error("--evict is not possible here: {0}")]
    Impossible(DestroyError),
}

/// Makes sure that sockets can be destroyed in this network namespace, by
/// destroying one of portguard's own. Where there is no port left for that, the
/// run goes on and ends at the first refusal.
///
/// # Errors
///
/// See [`EvictError`].
pub fn may_evict() -> Result<(), EvictError> {
    match features::rehearse_destroy() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error @ DestroyError::Denied { .. })) => Err(EvictError::Denied(error)),
        Ok(Err(error)) => Err(EvictError::Impossible(error)),
        Err(why) => {
            debug!(why, "could not try to destroy a socket");
            Ok(())
        }
    }
}

/// Who only waits: a bind probe needs no `/proc`, and nobody is judged. Where `/proc` shows what
/// [`asker`] needs, it is the same; else everybody would be protected.
pub fn bystander() -> Asker {
    asker().unwrap_or_else(|error| {
        debug!(%error, "nobody can be judged");
        Asker {
            process: ProcessId { tgid: Tgid(std::process::id()), start: StartTime(0) },
            ancestors: Vec::new(),
            ancestry_hidden: true,
            cgroup: None,
            uid: super::own_uid(),
            may_signal_others: false,
            requested: super::request_tick(),
        }
    })
}

/// This process, its ancestors and its rights, as of now.
///
/// # Errors
///
/// See [`AskerError`].
pub fn asker() -> Result<Asker, AskerError> {
    let requested = super::request_tick();
    let (process, cgroup) = procfs::own()?.ok_or(AskerError::OtherProc)?;
    let ancestors = procfs::ancestors(process.tgid)?;
    Ok(Asker {
        process,
        ancestors: ancestors.seen.iter().map(|ancestor| ancestor.id).collect(),
        ancestry_hidden: ancestors.hidden.is_some(),
        cgroup,
        uid: super::own_uid(),
        may_signal_others: features::may_signal_others(),
        requested,
    })
}
