//! How the service's processes are recognised.

use std::fmt;

use crate::model::{Manager, Process, Seen, Uid, Unit, UnitId, UnitName};

use super::{CgroupGlob, Field, Reason};

/// A text rule of the service, such as a regular expression. The core only
/// asks; the engine lives outside.
pub trait Pattern: fmt::Debug + Send + Sync {
    /// Whether the text is recognised.
    fn is_match(&self, text: &str) -> bool;
    /// The rule as the user wrote it.
    fn source(&self) -> &str;
}

/// The same rule is the one that is written the same.
impl PartialEq for dyn Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source() == other.source()
    }
}

/// What the service manager says about a unit that a rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// No service manager runs here, so nobody has the unit in hand.
    NoManager,
    /// It could not be asked, in words: its processes are not ended.
    Unknown(String),
    /// What it says.
    Known(Unit),
}

/// A unit whose processes are the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitRule {
    /// Its name.
    pub name: UnitName,
    /// Whose unit it is; `None` takes any manager's unit of that name.
    pub manager: Option<Manager>,
    /// Whether it runs, and as what.
    pub state: UnitState,
    /// The request is to restart this unit, so its processes are not to be kept.
    pub restarted: bool,
}

impl UnitRule {
    /// A unit of which only the name is known, on a machine without a service manager.
    pub fn named(name: &str) -> Self {
        Self { name: UnitName::new(name), manager: None, state: UnitState::NoManager, restarted: false }
    }

    /// The unit that `process` is a part of, when it is this one.
    fn has(&self, process: &Process) -> Option<UnitId> {
        if let UnitState::Known(unit) = &self.state {
            let by_path = process.cgroup.as_deref().is_some_and(|path| unit.has_cgroup(path));
            if by_path || unit.main_pid == Some(process.id) {
                return Some(unit.id());
            }
        }
        let unit = process.unit()?;
        let its_manager = self.manager.is_none_or(|manager| manager == unit.manager);
        (unit.name == self.name && its_manager).then_some(unit)
    }
}

/// How the service's processes are recognised.
///
/// Rules of one kind are alternatives, rules of different kinds must all hold:
/// `--match a --match b --uid 7` reads (a or b) and uid 7. With no rule at all
/// nobody is recognised, and a comm alone recognises nobody.
///
/// A unit that is to be restarted needs no other rule: its manager stops whoever
/// is in it. The other rules are for who is outside.
///
/// A unit goes further: who is in another service is never recognised, and who
/// is in no service at all (a login session, a terminal, the root cgroup) is
/// recognised when everything else fits and its argv or exe is among that. It
/// was respawned outside its unit.
#[derive(Debug, Default, PartialEq)]
pub struct Rules {
    /// Looked for in comm, exe and argv.
    pub patterns: Vec<Box<dyn Pattern>>,
    /// Paths of the executable, compared whole.
    pub exe: Vec<String>,
    /// Command names, compared whole; the kernel keeps 15 bytes.
    pub comm: Vec<String>,
    /// Effective user ids.
    pub uid: Vec<Uid>,
    /// Paths of the cgroup.
    pub cgroups: Vec<CgroupGlob>,
    /// Units, and what their manager says about them.
    pub units: Vec<UnitRule>,
    /// Everybody is recognised. Protection still holds.
    pub any_owner: bool,
    /// Nobody in the cgroup of a service that is not restarted is recognised,
    /// whatever the other rules say: nothing stops that unit first, and its
    /// manager would start a rival.
    pub spare_services: bool,
}

/// What one kind of rule says: whether it recognises the process, and why.
type Answer = Option<(bool, Reason)>;

impl Rules {
    /// No rule at all: nobody will be recognised.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
            && self.exe.is_empty()
            && self.comm.is_empty()
            && self.uid.is_empty()
            && self.cgroups.is_empty()
            && self.units.is_empty()
            && !self.any_owner
    }

    /// Why the process is, or may be, the running instance of a unit that is not
    /// to be restarted; whatever else the rules say about it. The flag tells
    /// whether that is certain.
    pub(super) fn running_instance(&self, process: &Process) -> Option<(bool, Reason)> {
        let rules = self.units.iter().filter(|rule| !rule.restarted);
        rules
            .filter_map(|rule| {
                let id = rule.has(process)?;
                match &rule.state {
                    UnitState::NoManager => None,
                    UnitState::Unknown(why) => Some((false, Reason::UnitStateUnknown(id, why.clone()))),
                    UnitState::Known(unit) if unit.main_pid == Some(process.id) => {
                        Some((true, Reason::MainProcess(id)))
                    }
                    UnitState::Known(unit) => {
                        unit.active_state.has_instance().then_some((true, Reason::InRunningUnit(id)))
                    }
                }
            })
            .next()
    }

    /// The unit among those that the rules name which the process is a part of.
    pub fn own_unit(&self, process: &Process) -> Option<UnitId> {
        self.units.iter().find_map(|rule| rule.has(process))
    }

    /// Whether `process` is the service, by these rules alone; whoever a service
    /// manager has in hand counts too.
    pub fn recognises(&self, process: &Process) -> bool {
        self.by_rules(process).0
    }

    /// The evidence for or against `process` being the service, and whether it is.
    pub(super) fn recognise(&self, process: &Process) -> (bool, Vec<Reason>) {
        if self.spare_services
            && let Some(unit) = process.unit().filter(UnitId::is_service)
            && self.by_stop(process).is_none()
        {
            return (false, vec![Reason::ServiceIsSpared(unit)]);
        }
        self.by_rules(process)
    }

    fn by_rules(&self, process: &Process) -> (bool, Vec<Reason>) {
        if self.any_owner {
            return (true, vec![Reason::AnyOwner]);
        }
        if self.is_empty() {
            return (false, vec![Reason::NoRules]);
        }
        if let Some(by_stop) = self.by_stop(process) {
            return (true, by_stop);
        }
        let kinds = [
            self.by_pattern(process),
            self.by_exe(process),
            self.by_cgroup(process),
            self.by_comm(process),
            self.by_uid(process),
        ];
        let mut asked: Vec<(bool, Reason)> = kinds.into_iter().flatten().collect();
        if let Some(by_unit) = self.by_unit(process, &asked) {
            asked.insert(0, by_unit);
        }
        let recognised = asked.iter().all(|(matched, _)| *matched);
        let mut reasons: Vec<Reason> = asked
            .into_iter()
            .filter(|(matched, _)| *matched == recognised)
            .map(|(_, reason)| reason)
            .collect();
        if recognised
            && reasons.iter().all(|reason| matches!(reason, Reason::Matched { field: Field::Comm, .. }))
        {
            return (false, vec![Reason::CommAlone(process.comm.clone())]);
        }
        if recognised {
            reasons.extend(self.about_its_unit(process));
        }
        (recognised, reasons)
    }

    /// Its unit is to be restarted, so its manager stops it, whatever the other rules say.
    fn by_stop(&self, process: &Process) -> Option<Vec<Reason>> {
        let rules = self.units.iter().filter(|rule| rule.restarted);
        let id = rules.filter_map(|rule| rule.has(process)).next()?;
        let (rule, value) = (id.name.to_string(), id.to_string());
        Some(vec![Reason::Matched { field: Field::Unit, rule, value }, Reason::UnitIsRestarted(id)])
    }

    fn about_its_unit(&self, process: &Process) -> Option<Reason> {
        let (rule, id) = self.units.iter().find_map(|rule| Some((rule, rule.has(process)?)))?;
        match &rule.state {
            UnitState::Known(unit) => Some(Reason::UnitDoesNotRun(id, unit.active_state.clone())),
            UnitState::NoManager | UnitState::Unknown(_) => None,
        }
    }

    /// `others` is what the other kinds of rule say.
    fn by_unit(&self, process: &Process, others: &[(bool, Reason)]) -> Answer {
        if self.units.is_empty() {
            return None;
        }
        let rule = || {
            let names: Vec<&str> = self.units.iter().map(|rule| rule.name.as_str()).collect();
            names.join(" or ")
        };
        if let Some(unit) = self.own_unit(process) {
            let value = unit.to_string();
            return Some((true, Reason::Matched { field: Field::Unit, rule: rule(), value }));
        }
        let theirs = process.unit();
        let looks_like_it = others.iter().all(|(matched, _)| *matched)
            && others.iter().any(|(_, reason)| {
                matches!(
                    reason,
                    Reason::Matched { field: Field::Argv | Field::Title | Field::Exe | Field::Cgroup, .. }
                )
            });
        if looks_like_it
            && process.is_unsupervised()
            && let Some(first) = self.units.first()
        {
            let cgroup = process.cgroup.clone().unwrap_or_else(|| "(none)".to_owned());
            return Some((true, Reason::OutsideItsUnit { unit: first.name.clone(), cgroup }));
        }
        let value = theirs.map(|unit| unit.to_string()).or_else(|| process.cgroup.clone());
        Some((false, Reason::NotMatched { field: Field::Unit, rules: rule(), value }))
    }

    fn by_pattern(&self, process: &Process) -> Answer {
        if self.patterns.is_empty() {
            return None;
        }
        let argv = process.argv.known().map(|argv| argv.join(" "));
        let field = if process.title().is_some() { Field::Title } else { Field::Argv };
        let fields = [
            (field, argv.as_deref()),
            (Field::Exe, process.exe.known().map(String::as_str)),
            (Field::Comm, Some(process.comm.as_str())),
        ];
        for (field, text) in fields {
            let Some(text) = text else { continue };
            if let Some(pattern) = self.patterns.iter().find(|pattern| pattern.is_match(text)) {
                let rule = format!("/{}/", pattern.source());
                return Some((true, Reason::Matched { field, rule, value: text.to_owned() }));
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
        Some((false, Reason::NotMatched { field: Field::Argv, rules: rules.join(" or "), value: argv }))
    }

    fn by_exe(&self, process: &Process) -> Answer {
        if self.exe.is_empty() {
            return None;
        }
        Some(match &process.exe {
            Seen::Known(exe) if self.exe.contains(exe) => {
                (true, Reason::Matched { field: Field::Exe, rule: exe.clone(), value: exe.clone() })
            }
            Seen::Hidden => (false, Reason::FieldHidden(Field::Exe)),
            Seen::Known(_) | Seen::Absent => {
                let value = process.exe.known().cloned();
                (false, Reason::NotMatched { field: Field::Exe, rules: self.exe.join(" or "), value })
            }
        })
    }

    fn by_cgroup(&self, process: &Process) -> Answer {
        if self.cgroups.is_empty() {
            return None;
        }
        let value = process.cgroup.clone();
        // One that could not be read matches nothing, not even `*`.
        let matching = |path: &String| self.cgroups.iter().find(|glob| glob.is_match(path));
        if let Some((glob, path)) = value.as_ref().and_then(|path| Some((matching(path)?, path))) {
            let (rule, value) = (glob.to_string(), path.clone());
            return Some((true, Reason::Matched { field: Field::Cgroup, rule, value }));
        }
        let rules: Vec<String> = self.cgroups.iter().map(CgroupGlob::to_string).collect();
        Some((false, Reason::NotMatched { field: Field::Cgroup, rules: rules.join(" or "), value }))
    }

    fn by_comm(&self, process: &Process) -> Answer {
        if self.comm.is_empty() {
            return None;
        }
        let value = process.comm.clone();
        Some(if self.comm.contains(&value) {
            (true, Reason::Matched { field: Field::Comm, rule: value.clone(), value })
        } else {
            let rules = self.comm.join(" or ");
            (false, Reason::NotMatched { field: Field::Comm, rules, value: Some(value) })
        })
    }

    fn by_uid(&self, process: &Process) -> Answer {
        if self.uid.is_empty() {
            return None;
        }
        let value = process.uid.to_string();
        Some(if self.uid.contains(&process.uid) {
            (true, Reason::Matched { field: Field::Uid, rule: value.clone(), value })
        } else {
            let rules: Vec<String> = self.uid.iter().map(Uid::to_string).collect();
            (false, Reason::NotMatched { field: Field::Uid, rules: rules.join(" or "), value: Some(value) })
        })
    }
}
