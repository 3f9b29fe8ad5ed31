//! From what was seen to a verdict on each endpoint.

use crate::conflict::{Conflict, conflict};
use crate::model::{BindOutcome, Holder, UnknownReason, Verdict};

use super::assessment::Assessment;
use super::machine::Probe;
use super::{Goal, Plan};

/// Everything that a verdict is made of.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) plan: &'a Plan,
    pub(super) assessment: Option<&'a Assessment>,
    pub(super) probe: Option<&'a Probe>,
    /// Nothing that was heard since contradicts the probe.
    pub(super) probe_stands: bool,
    pub(super) failure: Option<&'a str>,
}

impl Seen<'_> {
    pub(super) fn verdict(&self, index: usize) -> Verdict {
        let holders = self.holders(index);
        match self.probe.and_then(|probe| probe.outcomes.get(index)) {
            Some(BindOutcome::Bindable) if self.probe_stands => Verdict::Free,
            Some(BindOutcome::InUse) if !self.only_tables() => self.busy(holders),
            // The table is enough to say "busy", never to say "free".
            _ if holders.iter().any(|holder| holder.certain) => self.busy(holders),
            Some(other) => Verdict::Unknown { reason: unknown(other), holders },
            None => Verdict::Unknown { reason: self.unlooked(), holders },
        }
    }

    /// What the probe says was read off a table: of a strict plan one endpoint
    /// may be in use, and then none is probed.
    fn only_tables(&self) -> bool {
        self.probe.is_some_and(|probe| probe.by_table)
    }

    /// What keeps the guard from calling the port busy, when the time is over.
    pub(super) fn doubt(&self) -> Option<UnknownReason> {
        let Some(probe) = self.probe else { return Some(self.unlooked()) };
        let unproven = probe
            .outcomes
            .iter()
            .find(|outcome| !matches!(outcome, BindOutcome::Bindable | BindOutcome::InUse))
            .map(unknown);
        let never_looked = self.plan.goal == Goal::Free && self.assessment.is_none();
        unproven.or_else(|| (never_looked && self.failure.is_some()).then(|| self.unlooked()))
    }

    fn holders(&self, index: usize) -> Vec<Holder> {
        let spec = &self.plan.endpoints[index];
        let judged = self.assessment.iter().flat_map(|assessment| &assessment.holders);
        judged
            .filter_map(|judged| {
                let certain = match conflict(spec, &judged.holder.socket) {
                    Conflict::None => return None,
                    Conflict::Possible => false,
                    Conflict::Certain => true,
                };
                Some(Holder { certain, ..judged.holder.clone() })
            })
            .collect()
    }

    fn busy(&self, holders: Vec<Holder>) -> Verdict {
        let any_certain = holders.iter().any(|holder| holder.certain);
        let hidden = holders.iter().filter(|holder| holder.certain == any_certain).find_map(|holder| {
            let why = holder.owners.hidden()?.clone();
            Some(UnknownReason::OwnerHidden { uid: holder.socket.uid, why })
        });
        match hidden {
            Some(reason) => Verdict::Unknown { reason, holders },
            None if holders.is_empty() && self.failure.is_some() => {
                Verdict::Unknown { reason: self.unlooked(), holders }
            }
            None => Verdict::Busy { holders },
        }
    }

    fn unlooked(&self) -> UnknownReason {
        match self.failure {
            Some(why) => UnknownReason::SnapshotFailed(why.to_owned()),
            None => UnknownReason::NotYetObserved,
        }
    }
}

fn unknown(outcome: &BindOutcome) -> UnknownReason {
    match outcome {
        BindOutcome::NotPermitted => UnknownReason::ProbeNotPermitted,
        BindOutcome::AddressMissing | BindOutcome::FamilyMissing => UnknownReason::AddressMissing,
        BindOutcome::Failed(why) => UnknownReason::ProbeFailed(why.clone()),
        BindOutcome::Bindable | BindOutcome::InUse => UnknownReason::NotYetObserved,
    }
}

/// What no waiting will change.
pub(super) fn permanently_unknown(outcome: &BindOutcome) -> Option<UnknownReason> {
    matches!(outcome, BindOutcome::NotPermitted | BindOutcome::FamilyMissing).then(|| unknown(outcome))
}
