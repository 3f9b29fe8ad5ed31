//! Who asks, and what its words mean on this machine.

use guard_core::model::Tgid;
use guard_core::policy::Asker;

pub use crate::kernel::bind::ipv6_available;
use crate::kernel::features;
pub use crate::kernel::names::{interface_index, user_id};
use crate::kernel::procfs::{self, ProcError};

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

/// This process, its ancestors and its rights, as of now.
///
/// # Errors
///
/// See [`AskerError`].
pub fn asker() -> Result<Asker, AskerError> {
    let requested = super::request_tick();
    let own = Tgid(std::process::id());
    let this = procfs::process(own)?.ok_or(AskerError::OtherProc)?;
    let ancestors = procfs::ancestors(own)?;
    Ok(Asker {
        process: this.id,
        ancestors: ancestors.seen.iter().map(|process| process.id).collect(),
        ancestry_hidden: ancestors.hidden.is_some(),
        cgroup: this.cgroup,
        uid: this.uid,
        may_signal_others: features::may_signal_others(),
        requested,
    })
}
