//! What can be known before the unit is stopped.

use std::time::Duration;

use super::UnitDetails;
use crate::gate::{Decision, Gate};
use crate::model::{ProcessId, Unit, UnknownReason, Verdict};
use crate::policy::{Asker, Judgement};

/// What the look before the stop says about the time after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Whoever holds the port is the unit's, may be ended, or will go.
    Clear,
    /// Somebody holds the port who may not be ended.
    Refused(Vec<(ProcessId, Judgement)>),
    /// Somebody holds the port who may be ended, but not by this user.
    NotPermitted(Vec<ProcessId>),
    /// It cannot be told who holds the port.
    Unknown(UnknownReason),
}

impl Ahead {
    /// Read off a [`crate::gate::Goal::Look`] run. What the manager ends when it
    /// stops the unit needs no permission of ours.
    pub fn of(gate: &Gate, unit: &Unit) -> Self {
        let is_unit_s = |process: &ProcessId| {
            let owners = gate.holders().iter().flat_map(|holder| &holder.owners);
            let evidence =
                owners.filter(|owner| owner.id == *process).find_map(|owner| owner.process.as_ref());
            let cgroup = evidence.and_then(|process| process.cgroup.as_deref());
            cgroup.is_some_and(|path| unit.has_cgroup(path))
        };
        match gate.decision() {
            Some(Decision::Refuse(refused)) => Self::Refused(refused),
            Some(Decision::NotPermitted(processes)) => {
                let others: Vec<ProcessId> = processes.into_iter().filter(|id| !is_unit_s(id)).collect();
                if others.is_empty() { Self::Clear } else { Self::NotPermitted(others) }
            }
            Some(Decision::CannotTell(reason)) => Self::Unknown(reason),
            Some(Decision::Wait | Decision::End(_) | Decision::Evict(_)) => Self::Clear,
            None => gate
                .verdicts()
                .into_iter()
                .find_map(|verdict| match verdict {
                    Verdict::Unknown { reason, .. } => Some(Self::Unknown(reason)),
                    Verdict::Free | Verdict::Busy { .. } => None,
                })
                .unwrap_or(Self::Clear),
        }
    }
}

/// Why a unit cannot be restarted, or not from where portguard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// This `.socket` unit starts it: systemd holds its port all the time.
    Socket(String),
    /// The stop of the unit would end portguard half way.
    Inside {
        /// The unit that portguard is in.
        unit: String,
        /// Its cgroup.
        cgroup: String,
        /// It is stopped along with the one that is to be restarted.
        along: bool,
    },
}

/// What keeps `unit` from being restarted by `asker`, if anything does.
pub fn obstacle(unit: &Unit, details: &UnitDetails, asker: &Asker) -> Option<Obstacle> {
    if let Some(socket) = details.sockets.first() {
        return Some(Obstacle::Socket(socket.clone()));
    }
    let cgroup = asker.cgroup.clone()?;
    if unit.has_cgroup(&cgroup) {
        return Some(Obstacle::Inside { unit: unit.name.to_string(), cgroup, along: false });
    }
    let path = format!("{cgroup}/");
    let along = details.stopped_along.iter().find(|other| path.contains(&format!("/{other}/")))?.clone();
    Some(Obstacle::Inside { unit: along, cgroup, along: true })
}

/// Where systemd itself takes no limit for a stop.
const LONGEST_STOP: Duration = Duration::from_secs(600);

/// From SIGTERM to SIGKILL for what `unit` leaves behind: the time that it grants
/// its own processes.
pub fn drain(unit: &Unit) -> Duration {
    unit.timeout_stop.unwrap_or(LONGEST_STOP)
}

/// The longest that a stop of `unit` may take: `TimeoutStopSec=` holds for
/// SIGTERM and again for what follows.
pub fn longest_stop(unit: &Unit) -> Duration {
    let slack = Duration::from_secs(10);
    unit.timeout_stop.map_or(LONGEST_STOP, |timeout| timeout.saturating_mul(2).saturating_add(slack))
}
