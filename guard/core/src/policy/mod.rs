//! Who may be ended and who may not, and why.
//!
//! The answer is a class together with the evidence that led to it, never a
//! bare boolean: the same reasons are printed by `status` and `--dry-run`, and
//! carried in the JSON events. In doubt a process is not stale.

use std::collections::BTreeSet;

use crate::model::{Process, ProcessId, Seen, StartTime, Uid, UnitId};

mod glob;
mod reason;
mod rules;

pub use glob::CgroupGlob;
pub use reason::{Class, Field, Judgement, Reason};
pub use rules::{Pattern, Rules, UnitRule, UnitState};

/// Who asks: what the protection rules compare an owner with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// portguard itself.
    pub process: ProcessId,
    /// Its ancestors, parent first.
    pub ancestors: Vec<ProcessId>,
    /// Some of its ancestors are hidden, so anybody may be one of them.
    pub ancestry_hidden: bool,
    /// Its own cgroup.
    pub cgroup: Option<String>,
    /// Its effective user id.
    pub uid: Uid,
    /// It may signal processes of other users (`CAP_KILL`).
    pub may_signal_others: bool,
    /// When it was asked, on the scale of process start times.
    pub requested: StartTime,
}

impl Asker {
    /// Whether the kernel would let this asker signal `process`. Read from the
    /// effective user id alone, so a process that changed its saved user id may
    /// be refused although the kernel would allow it.
    pub fn may_signal(&self, process: &Process) -> bool {
        self.may_signal_others || process.uid == self.uid
    }
}

/// Judges one owner.
///
/// `seen_at_request` holds the owners that the run's first look at the port
/// found: start times have a resolution of one clock tick (10 ms), and within
/// the request's own tick only a process that was already there counts as old.
///
/// A dying process that no rule recognises is foreign for want of evidence
/// ([`Reason::NoEvidence`]), as is one that was gone before it could be read:
/// neither is a reason to signal anybody, nor one to give up.
pub fn judge(
    process: &Process,
    rules: &Rules,
    asker: &Asker,
    seen_at_request: &BTreeSet<ProcessId>,
) -> Judgement {
    if let Some(reason) = protection(process, asker) {
        return Judgement { class: Class::Protected, reasons: vec![reason] };
    }
    let start = process.id.start;
    if start > asker.requested || (start == asker.requested && !seen_at_request.contains(&process.id)) {
        let service = process.unit().filter(UnitId::is_service).map(Reason::RunsIn);
        let reasons = std::iter::once(Reason::StartedAfterRequest).chain(service).collect();
        return Judgement { class: Class::Newcomer, reasons };
    }
    if let Some((certain, reason)) = rules.running_instance(process) {
        let class = if certain { Class::Current } else { Class::Protected };
        return Judgement { class, reasons: vec![reason] };
    }
    let (recognised, mut reasons) = rules.recognise(process);
    if recognised
        && process.exe_deleted
        && let Seen::Known(path) = &process.exe
    {
        reasons.push(Reason::ExecutableDeleted(path.clone()));
    }
    let named = reasons.iter().any(|reason| {
        matches!(reason, Reason::NotMatched { field: Field::Unit, .. } | Reason::ServiceIsSpared(_))
    });
    if !recognised
        && !named
        && let Some(service) = process.unit().filter(UnitId::is_service)
    {
        reasons.push(Reason::RunsIn(service));
    }
    if !recognised && is_exiting(process) {
        reasons = vec![Reason::NoEvidence];
    }
    Judgement { class: if recognised { Class::Stale } else { Class::Foreign }, reasons }
}

/// The process is on its way out: `do_exit()` gives up the address space, and
/// with it `exe` and `argv`, before the descriptors. In between (measured: 40 ms
/// for 600 MB resident on 6.18) it owns sockets and shows nothing by which it
/// could be recognised.
fn is_exiting(process: &Process) -> bool {
    !process.kernel_thread && process.exe == Seen::Absent
}

/// An owner of which only the identity is known is foreign.
pub fn judge_unread() -> Judgement {
    Judgement { class: Class::Foreign, reasons: vec![Reason::NoEvidence] }
}

fn protection(process: &Process, asker: &Asker) -> Option<Reason> {
    if process.id == asker.process {
        return Some(Reason::Itself);
    }
    if let Some(position) = asker.ancestors.iter().position(|ancestor| *ancestor == process.id) {
        return Some(Reason::Ancestor(position + 1));
    }
    if asker.ancestry_hidden {
        return Some(Reason::AncestryHidden);
    }
    if process.kernel_thread {
        return Some(Reason::KernelThread);
    }
    let theirs = process.cgroup.as_deref().and_then(service_cgroup)?;
    let ours = asker.cgroup.as_deref().and_then(service_cgroup)?;
    (theirs == ours).then(|| Reason::SameServiceCgroup(ours.to_owned()))
}

/// The cgroup of the service that `path` lies in, whose end is decided as a
/// whole by a service manager; a service may divide its own cgroup further.
/// Sharing a login session's scope, a slice or the root cgroup means nothing:
/// everything that a shell starts shares them.
fn service_cgroup(path: &str) -> Option<&str> {
    let mut end = path.len();
    for part in path.split('/').rev() {
        if part.ends_with(".service") {
            return path.get(..end);
        }
        if part.ends_with(".scope") || part.ends_with(".slice") {
            return None;
        }
        end = end.saturating_sub(part.len() + 1);
    }
    None
}

#[cfg(test)]
mod tests;
