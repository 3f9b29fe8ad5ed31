//! Classes, and the evidence that leads to them.

use std::fmt;

use crate::model::{ActiveState, ProcessId, UnitId, UnitName};

/// What an owner is to the run that looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Recognised as the service and older than the request: may be ended.
    Stale,
    /// The running instance of a unit that this request is not to restart: its
    /// service manager has it in hand, and it is never ended.
    Current,
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
            Self::Current => "current",
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
    /// The title that the process has written over its arguments.
    Title,
    /// The effective user id.
    Uid,
    /// The systemd unit whose cgroup it is in.
    Unit,
    /// The path of its cgroup.
    Cgroup,
}

impl Field {
    /// The kernel's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Comm => "comm",
            Self::Exe => "exe",
            Self::Argv => "argv",
            Self::Title => "title",
            Self::Uid => "uid",
            Self::Unit => "unit",
            Self::Cgroup => "cgroup",
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
    /// It is the main process of this running unit.
    MainProcess(UnitId),
    /// It is in the cgroup of this running unit.
    InRunningUnit(UnitId),
    /// It is in this unit's cgroup, and whether that is the running instance
    /// could not be asked, because of this.
    UnitStateUnknown(UnitId, String),
    /// It is in this unit's cgroup, and the request is to restart that unit.
    UnitIsRestarted(UnitId),
    /// It is in the cgroup of this unit, which does not run.
    UnitDoesNotRun(UnitId, ActiveState),
    /// It runs in this service, which the rules do not ask for: who started it,
    /// and would start it again.
    RunsIn(UnitId),
    /// It runs in this service, and whoever asks cannot stop units:
    /// see [`Rules::spare_services`](super::Rules::spare_services).
    ServiceIsSpared(UnitId),
    /// It is recognised, and lives outside of its unit: it was started, or went
    /// on, behind the service manager's back.
    OutsideItsUnit {
        /// The unit that the rules name.
        unit: UnitName,
        /// Where it is instead.
        cgroup: String,
    },
    /// A rule recognised it.
    Matched {
        /// Where.
        field: Field,
        /// The rule as the user wrote it.
        rule: String,
        /// What the process shows there.
        value: String,
    },
    /// It descends from this stale owner, and `--tree` reaches it.
    DescendsFrom(ProcessId),
    /// It is in the process group that this stale owner leads, and `--tree` reaches it.
    InGroupOf(ProcessId),
    /// It was moved after SIGTERM into a cgroup that somebody else has in hand.
    Moved {
        /// Its cgroup when SIGTERM was sent.
        from: String,
        /// Its cgroup now.
        to: String,
    },
    /// Its cgroup, which `--cgroup-kill` would end, is shared with strangers by
    /// its nature: a login session's, a user manager's, the root.
    CgroupIsShared(String),
    /// `--any-owner`: recognition was waived.
    AnyOwner,
    /// The executable was replaced or removed since the process started; its path.
    ExecutableDeleted(String),
    /// No rule of this kind recognised it.
    NotMatched {
        /// Where the rule looked.
        field: Field,
        /// The rules as the user wrote them.
        rules: String,
        /// What the process shows there, where it shows anything.
        value: Option<String>,
    },
    /// A rule needs this field and the guard may not read it.
    FieldHidden(Field),
    /// Only its comm is recognised, which any process may choose for itself.
    CommAlone(String),
    /// There is no rule at all, so nobody is recognised.
    NoRules,
    /// The evidence could not be read before the process was gone, or it went
    /// before the process: see [`judge`](super::judge) on dying processes.
    NoEvidence,
}

impl Reason {
    /// The stable word for this reason in events.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Itself => "itself",
            Self::Ancestor(_) => "ancestor",
            Self::AncestryHidden => "ancestry_hidden",
            Self::KernelThread => "kernel_thread",
            Self::SameServiceCgroup(_) => "same_service_cgroup",
            Self::StartedAfterRequest => "started_after_request",
            Self::MainProcess(_) => "main_process",
            Self::InRunningUnit(_) => "in_running_unit",
            Self::UnitStateUnknown(..) => "unit_state_unknown",
            Self::UnitIsRestarted(_) => "unit_is_restarted",
            Self::UnitDoesNotRun(..) => "unit_does_not_run",
            Self::RunsIn(_) => "runs_in",
            Self::ServiceIsSpared(_) => "service_is_spared",
            Self::OutsideItsUnit { .. } => "outside_its_unit",
            Self::Matched { .. } => "matched",
            Self::DescendsFrom(_) => "descends_from",
            Self::InGroupOf(_) => "in_group_of",
            Self::Moved { .. } => "moved",
            Self::CgroupIsShared(_) => "cgroup_is_shared",
            Self::AnyOwner => "any_owner",
            Self::ExecutableDeleted(_) => "executable_deleted",
            Self::NotMatched { .. } => "not_matched",
            Self::FieldHidden(_) => "field_hidden",
            Self::CommAlone(_) => "comm_alone",
            Self::NoRules => "no_rules",
            Self::NoEvidence => "no_evidence",
        }
    }

    /// What the evidence is about: `unit`, `cgroup`, `main_pid`, `exe`, `argv`,
    /// `title`, `comm`, `uid`, `start_time`, `ancestor`, `group`. `None` where it is
    /// about no part of the process.
    pub const fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Self::Itself | Self::Ancestor(_) | Self::AncestryHidden | Self::DescendsFrom(_) => "ancestor",
            Self::InGroupOf(_) => "group",
            Self::StartedAfterRequest => "start_time",
            Self::MainProcess(_) => "main_pid",
            Self::InRunningUnit(_)
            | Self::UnitStateUnknown(..)
            | Self::UnitIsRestarted(_)
            | Self::UnitDoesNotRun(..)
            | Self::RunsIn(_)
            | Self::ServiceIsSpared(_) => "unit",
            Self::SameServiceCgroup(_)
            | Self::OutsideItsUnit { .. }
            | Self::Moved { .. }
            | Self::CgroupIsShared(_) => "cgroup",
            Self::Matched { field, .. } | Self::NotMatched { field, .. } | Self::FieldHidden(field) => {
                field.name()
            }
            Self::ExecutableDeleted(_) => "exe",
            Self::CommAlone(_) => "comm",
            Self::KernelThread | Self::AnyOwner | Self::NoRules | Self::NoEvidence => return None,
        })
    }

    /// What the process shows there.
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Ancestor(generations) => Some(generations.to_string()),
            Self::SameServiceCgroup(cgroup)
            | Self::OutsideItsUnit { cgroup, .. }
            | Self::Moved { to: cgroup, .. }
            | Self::CgroupIsShared(cgroup) => Some(cgroup.clone()),
            Self::DescendsFrom(root) | Self::InGroupOf(root) => Some(root.to_string()),
            Self::MainProcess(unit)
            | Self::InRunningUnit(unit)
            | Self::UnitStateUnknown(unit, _)
            | Self::UnitIsRestarted(unit)
            | Self::UnitDoesNotRun(unit, _)
            | Self::RunsIn(unit)
            | Self::ServiceIsSpared(unit) => Some(unit.name.to_string()),
            Self::Matched { value, .. } => Some(value.clone()),
            Self::NotMatched { value, .. } => value.clone(),
            Self::ExecutableDeleted(path) => Some(format!("{path} (deleted)")),
            Self::CommAlone(comm) => Some(comm.clone()),
            Self::Itself
            | Self::AncestryHidden
            | Self::KernelThread
            | Self::StartedAfterRequest
            | Self::AnyOwner
            | Self::FieldHidden(_)
            | Self::NoRules
            | Self::NoEvidence => None,
        }
    }

    /// The rule that it was held against, as the user wrote it.
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Matched { rule, .. } => Some(rule),
            Self::NotMatched { rules, .. } => Some(rules),
            Self::OutsideItsUnit { unit, .. } => Some(unit.as_str()),
            _ => None,
        }
    }
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
            Self::MainProcess(unit) => {
                write!(f, "it is the main process of {unit}, which runs; stop or restart the unit instead")
            }
            Self::InRunningUnit(unit) => {
                write!(f, "it belongs to {unit}, which runs; stop or restart the unit instead")
            }
            Self::UnitStateUnknown(unit, why) => {
                write!(f, "it may be the running instance of {unit}, which could not be asked: {why}")
            }
            Self::UnitIsRestarted(unit) => write!(f, "it belongs to {unit}, which is to be restarted"),
            Self::UnitDoesNotRun(unit, state) => {
                write!(f, "it is a leftover of {unit}, which is {}", state.name())
            }
            Self::RunsIn(unit) => write!(f, "it runs in {unit}"),
            Self::ServiceIsSpared(unit) => write!(
                f,
                "it runs in {unit}, which its service manager has in hand: portguard restart {} does it",
                unit.name
            ),
            Self::OutsideItsUnit { unit, cgroup } => {
                write!(f, "its cgroup {cgroup} is not that of {unit}: it was started outside its unit")
            }
            Self::Matched { field: Field::Unit | Field::Cgroup, value, .. } => write!(f, "it is in {value}"),
            Self::Matched { field, rule, .. } => write!(f, "{} matches {rule}", field.name()),
            Self::DescendsFrom(root) => write!(f, "it descends from pid {root}, and --tree reaches it"),
            Self::InGroupOf(leader) => {
                write!(f, "it is in the process group that pid {leader} leads, and --tree reaches it")
            }
            Self::Moved { from, to } => {
                write!(
                    f,
                    "it was moved from cgroup {from} to {to} meanwhile, which somebody else has in hand"
                )
            }
            Self::CgroupIsShared(cgroup) => write!(
                f,
                "its cgroup {cgroup} is not a service's own, so --cgroup-kill would reach everybody else in it"
            ),
            Self::AnyOwner => f.write_str("--any-owner waives recognition"),
            Self::ExecutableDeleted(_) => {
                f.write_str("its executable was replaced or deleted since it started")
            }
            Self::NotMatched { field: Field::Argv, rules, .. } => {
                write!(f, "neither comm, exe nor argv matches {rules}")
            }
            Self::NotMatched { field, rules, value } => {
                let shown = value.as_deref().map(|value| format!(" {value}")).unwrap_or_default();
                write!(f, "{}{shown} is not {rules}", field.name())
            }
            Self::FieldHidden(field) => write!(f, "{} is not readable for this user", field.name()),
            Self::CommAlone(comm) => {
                write!(
                    f,
                    "only its comm ({comm}) matches, which any process may choose; add --unit, --cgroup, --exe, --uid or a --match on its argv"
                )
            }
            Self::NoRules => f.write_str(
                "no rule recognises it (give --match, --unit, --cgroup, --exe, --comm, --uid or --any-owner)",
            ),
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
