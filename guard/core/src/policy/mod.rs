//! Who may be ended and who may not, and why.
//!
//! The answer is a class together with the evidence that led to it, never a
//! bare boolean: the same reasons are printed by `status` and `--dry-run`, and
//! carried in the JSON events. In doubt a process is not stale.

use std::collections::BTreeSet;
use std::fmt;

use crate::model::{Process, ProcessId, Seen, StartTime, Uid};

/// What an owner is to the run that looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Recognised as the service and older than the request: may be ended.
    Stale,
    /// Started after the request: never ended, it may be the successor.
    Newcomer,
    /// Not recognised as the service: named, never ended.
    Foreign,
    /// May not be ended whatever it is recognised as.
    Protected,
}

impl Class {
    /// The word used in events and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Newcomer => "newcomer",
            Self::Foreign => "foreign",
            Self::Protected => "protected",
        }
    }
}

/// The part of a process that a rule looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The command name.
    Comm,
    /// The executable's path.
    Exe,
    /// The arguments, joined by single spaces.
    Argv,
    /// The effective user id.
    Uid,
}

impl Field {
    /// The kernel's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Comm => "comm",
            Self::Exe => "exe",
            Self::Argv => "argv",
            Self::Uid => "uid",
        }
    }
}

/// One piece of evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is portguard itself.
    Itself,
    /// It is portguard's ancestor, this many generations up.
    Ancestor(usize),
    /// It may be portguard's ancestor: not all of them can be seen.
    AncestryHidden,
    /// It is the kernel's own thread.
    KernelThread,
    /// It lives in the same service's cgroup as portguard: ending it makes the
    /// service manager end portguard too.
    SameServiceCgroup(String),
    /// It started after the request.
    StartedAfterRequest,
    /// A rule recognised it.
    Matched {
        /// Where.
        field: Field,
        /// The rule as the user wrote it.
        rule: String,
    },
    /// `--any-owner`: recognition was waived.
    AnyOwner,
    /// The executable was replaced or removed since the process started.
    ExecutableDeleted,
    /// No rule of this kind recognised it.
    NotMatched {
        /// Where the rule looked.
        field: Field,
        /// The rules as the user wrote them.
        rules: String,
    },
    /// A rule needs this field and the guard may not read it.
    FieldHidden(Field),
    /// Only its comm is recognised, which any process may choose for itself.
    CommAlone(String),
    /// There is no rule at all, so nobody is recognised.
    NoRules,
    /// The evidence could not be read before the process was gone, or it went
    /// before the process: see [`judge`] on dying processes.
    NoEvidence,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("it is portguard itself"),
            Self::Ancestor(1) => f.write_str("it is portguard's parent"),
            Self::Ancestor(generations) => {
                write!(f, "it is portguard's ancestor, {generations} generations up")
            }
            Self::AncestryHidden => {
                f.write_str("it may be portguard's ancestor: /proc hides some of them (hidepid)")
            }
            Self::KernelThread => f.write_str("it is a kernel thread"),
            Self::SameServiceCgroup(path) => write!(f, "it shares portguard's own service cgroup {path}"),
            Self::StartedAfterRequest => f.write_str("it started after the request"),
            Self::Matched { field, rule } => write!(f, "{} matches {rule}", field.name()),
            Self::AnyOwner => f.write_str("--any-owner waives recognition"),
            Self::ExecutableDeleted => f.write_str("its executable was replaced or deleted since it started"),
            Self::NotMatched { field: Field::Argv, rules } => {
                write!(f, "neither comm, exe nor argv matches {rules}")
            }
            Self::NotMatched { field, rules } => write!(f, "{} is not {rules}", field.name()),
            Self::FieldHidden(field) => write!(f, "{} is not readable for this user", field.name()),
            Self::CommAlone(comm) => {
                write!(
                    f,
                    "only its comm ({comm}) matches, which any process may choose; add --exe, --uid or a --match on its argv"
                )
            }
            Self::NoRules => {
                f.write_str("no rule recognises it (give --match, --exe, --comm, --uid or --any-owner)")
            }
            Self::NoEvidence => f.write_str("nothing about it could be read"),
        }
    }
}

/// A class and the evidence for it, strongest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The class.
    pub class: Class,
    /// Why; never empty.
    pub reasons: Vec<Reason>,
}

impl Judgement {
    /// Nothing is known about the process because it is dying or dead.
    pub fn is_for_want_of_evidence(&self) -> bool {
        self.reasons.contains(&Reason::NoEvidence)
    }
}

/// A text rule of the service, such as a regular expression. The core only
/// asks; the engine lives outside.
pub trait Pattern: fmt::Debug + Send + Sync {
    /// Whether the text is recognised.
    fn is_match(&self, text: &str) -> bool;
    /// The rule as the user wrote it.
    fn source(&self) -> &str;
}

/// How the service's processes are recognised.
///
/// Rules of one kind are alternatives, rules of different kinds must all hold:
/// `--match a --match b --uid 7` reads (a or b) and uid 7. With no rule at all
/// nobody is recognised, and a comm alone recognises nobody.
#[derive(Debug, Default)]
pub struct Rules {
    /// Looked for in comm, exe and argv.
    pub patterns: Vec<Box<dyn Pattern>>,
    /// Paths of the executable, compared whole.
    pub exe: Vec<String>,
    /// Command names, compared whole; the kernel keeps 15 bytes.
    pub comm: Vec<String>,
    /// Effective user ids.
    pub uid: Vec<Uid>,
    /// Everybody is recognised. Protection still holds.
    pub any_owner: bool,
}

impl Rules {
    /// No rule at all: nobody will be recognised.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
            && self.exe.is_empty()
            && self.comm.is_empty()
            && self.uid.is_empty()
            && !self.any_owner
    }

    /// The evidence for or against `process` being the service, and whether it is.
    fn recognise(&self, process: &Process) -> (bool, Vec<Reason>) {
        if self.any_owner {
            return (true, vec![Reason::AnyOwner]);
        }
        if self.is_empty() {
            return (false, vec![Reason::NoRules]);
        }
        let kinds =
            [self.by_pattern(process), self.by_exe(process), self.by_comm(process), self.by_uid(process)];
        let asked: Vec<(bool, Reason)> = kinds.into_iter().flatten().collect();
        let recognised = asked.iter().all(|(matched, _)| *matched);
        let reasons: Vec<Reason> = asked
            .into_iter()
            .filter(|(matched, _)| *matched == recognised)
            .map(|(_, reason)| reason)
            .collect();
        if recognised
            && reasons.iter().all(|reason| matches!(reason, Reason::Matched { field: Field::Comm, .. }))
        {
            return (false, vec![Reason::CommAlone(process.comm.clone())]);
        }
        (recognised, reasons)
    }

    fn by_pattern(&self, process: &Process) -> Option<(bool, Reason)> {
        if self.patterns.is_empty() {
            return None;
        }
        let argv = process.argv.known().map(|argv| argv.join(" "));
        let fields = [
            (Field::Argv, argv.as_deref()),
            (Field::Exe, process.exe.known().map(String::as_str)),
            (Field::Comm, Some(process.comm.as_str())),
        ];
        for (field, text) in fields {
            let Some(text) = text else { continue };
            if let Some(pattern) = self.patterns.iter().find(|pattern| pattern.is_match(text)) {
                return Some((true, Reason::Matched { field, rule: format!("/{}/", pattern.source()) }));
            }
        }
        if process.argv == Seen::Hidden {
            return Some((false, Reason::FieldHidden(Field::Argv)));
        }
        if process.exe == Seen::Hidden {
            return Some((false, Reason::FieldHidden(Field::Exe)));
        }
        let rules: Vec<String> =
            self.patterns.iter().map(|pattern| format!("/{}/", pattern.source())).collect();
        Some((false, Reason::NotMatched { field: Field::Argv, rules: rules.join(" or ") }))
    }

    fn by_exe(&self, process: &Process) -> Option<(bool, Reason)> {
        if self.exe.is_empty() {
            return None;
        }
        Some(match &process.exe {
            Seen::Known(exe) if self.exe.contains(exe) => {
                (true, Reason::Matched { field: Field::Exe, rule: exe.clone() })
            }
            Seen::Hidden => (false, Reason::FieldHidden(Field::Exe)),
            Seen::Known(_) | Seen::Absent => {
                (false, Reason::NotMatched { field: Field::Exe, rules: self.exe.join(" or ") })
            }
        })
    }

    fn by_comm(&self, process: &Process) -> Option<(bool, Reason)> {
        if self.comm.is_empty() {
            return None;
        }
        Some(if self.comm.contains(&process.comm) {
            (true, Reason::Matched { field: Field::Comm, rule: process.comm.clone() })
        } else {
            (false, Reason::NotMatched { field: Field::Comm, rules: self.comm.join(" or ") })
        })
    }

    fn by_uid(&self, process: &Process) -> Option<(bool, Reason)> {
        if self.uid.is_empty() {
            return None;
        }
        Some(if self.uid.contains(&process.uid) {
            (true, Reason::Matched { field: Field::Uid, rule: process.uid.to_string() })
        } else {
            let rules: Vec<String> = self.uid.iter().map(Uid::to_string).collect();
            (false, Reason::NotMatched { field: Field::Uid, rules: rules.join(" or ") })
        })
    }
}

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
        return Judgement { class: Class::Newcomer, reasons: vec![Reason::StartedAfterRequest] };
    }
    let (recognised, mut reasons) = rules.recognise(process);
    if recognised && process.exe_deleted {
        reasons.push(Reason::ExecutableDeleted);
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
