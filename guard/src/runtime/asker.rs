//! Who asks, and what its words mean on this machine.

use std::sync::OnceLock;

use guard_core::model::{ProcessId, StartTime, Tgid};
use guard_core::policy::Asker;
use tracing::debug;

pub use crate::kernel::bind::ipv6_available;
use crate::kernel::features;
pub use crate::kernel::features::service_manager_runs;
pub use crate::kernel::names::{group_id, interface_index, user_id};
use crate::kernel::procfs::{self, Ancestors, ProcError};
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

/// The ancestors of this process, and whether there are more.
///
/// They are read once where the first process of the PID namespace is among them: whoever loses its parent becomes the
/// child of that one, or of a nearer ancestor that asked for it (`find_new_reaper()`), so they only ever become fewer, and
/// one that is gone protects nobody. A shell that somebody has opened in a container has a parent outside: when it ends,
/// its children get an ancestor that they never had.
fn ancestors(own: ProcessId) -> Result<(Vec<ProcessId>, bool), ProcError> {
    /// Of whom; a copy of this process would have one more.
    static KNOWN: OnceLock<(ProcessId, Vec<ProcessId>)> = OnceLock::new();
    if let Some((_, known)) = KNOWN.get().filter(|(of, _)| *of == own) {
        return Ok((known.clone(), false));
    }
    let Ancestors { seen, hidden } = procfs::ancestors(own.tgid)?;
    let ids: Vec<ProcessId> = seen.iter().map(|ancestor| ancestor.id).collect();
    if is_final(&ids, hidden) {
        // Whoever was first has read the same.
        let _known = KNOWN.set((own, ids.clone()));
    }
    Ok((ids, hidden.is_some()))
}

/// Nobody can become an ancestor who is none of these.
fn is_final(ancestors: &[ProcessId], hidden: Option<Tgid>) -> bool {
    hidden.is_none() && ancestors.last().is_some_and(|top| top.tgid == Tgid(1))
}

/// This process, its ancestors and its rights, as of now.
///
/// # Errors
///
/// See [`AskerError`].
pub fn asker() -> Result<Asker, AskerError> {
    let requested = super::request_tick();
    let (process, cgroup) = procfs::own()?.ok_or(AskerError::OtherProc)?;
    let (ancestors, ancestry_hidden) = ancestors(process)?;
    Ok(Asker {
        process,
        ancestors,
        ancestry_hidden,
        cgroup,
        uid: super::own_uid(),
        may_signal_others: features::may_signal_others(),
        requested,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_that_were_read_once_are_told_again() {
        let first = asker().unwrap();
        let now: Vec<ProcessId> =
            procfs::ancestors(first.process.tgid).unwrap().seen.iter().map(|ancestor| ancestor.id).collect();
        assert!(!first.ancestry_hidden);
        assert_eq!(first.ancestors, now);
        assert_eq!(asker().unwrap().ancestors, now);
        let copy = ProcessId { tgid: Tgid(now[0].tgid.0), ..first.process };
        assert_ne!(ancestors(copy).unwrap().0, now, "another process has others");
    }

    /// The gateway is PID 1 of its container, and portguard was started there from a shell that has ended.
    #[test]
    fn who_may_still_get_another_ancestor_is_asked_again() {
        let chain = |numbers: &[u32]| {
            let id = |&number| ProcessId { tgid: Tgid(number), start: StartTime(1) };
            numbers.iter().map(id).collect::<Vec<_>>()
        };
        assert!(is_final(&chain(&[20, 1]), None));
        assert!(!is_final(&chain(&[20]), None), "its parent is outside of the namespace");
        assert!(!is_final(&[], None));
        assert!(!is_final(&chain(&[20, 1]), Some(Tgid(7))));
    }
}
