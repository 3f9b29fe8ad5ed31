//! Looks at services that nothing is under way for.

use std::sync::Arc;

use guard_core::gate::{Budgets, Fact, Gate, Goal};
use guard_core::model::ProcessId;
use tracing::{info, warn};

use super::batch::{Asked, part};
use super::standing::Standing;
use super::{Engine, LOOK_BUDGET, Witness, plan};
use crate::runtime::{asker, now};

impl<W: Witness> Engine<W> {
    pub(super) fn begin_standing_looks(&mut self) {
        let at = now();
        let due: Vec<Arc<str>> = self
            .services
            .iter()
            .filter(|(name, standing)| standing.due(self.is_busy(name)).is_some_and(|due| due <= at))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        if due.is_empty() {
            return;
        }
        let asker = match asker::asker() {
            Ok(asker) => asker,
            Err(error) => {
                let due = |(name, _): &(&Arc<str>, &mut Standing)| due.contains(*name);
                self.services.iter_mut().filter(due).for_each(|(_, standing)| standing.put_off(at));
                // Once, however long it lasts.
                if !std::mem::replace(&mut self.blind, true) {
                    warn!(%error, "cannot look at the services; trying again every second");
                }
                return;
            }
        };
        if std::mem::take(&mut self.blind) {
            info!("looking at the services again");
        }
        let recheck = self.doors.observer.recheck();
        for name in &due {
            let Some(standing) = self.services.get_mut(name) else { continue };
            let budgets =
                Budgets { total: Some(LOOK_BUDGET), ..standing.service.budgets(standing.unit.as_deref()) };
            let rules = standing.service.rules_with(standing.unit.as_deref());
            let plan = plan(&standing.service, Goal::Look, budgets, recheck, asker.clone(), rules);
            standing.begin(Gate::new(plan, at), at);
        }
    }

    pub(super) fn take_standing_looks(&mut self, asked: &[Asked<Arc<str>>], fact: &Fact) {
        for asked in asked {
            let fact = part(fact, asked);
            if let Fact::SnapshotTaken(snapshot) = &fact {
                self.doors.observer.look(snapshot, &asked.ports);
            }
            if let Some(gate) = self.services.get_mut(&asked.key).and_then(|standing| standing.gate.as_mut())
            {
                gate.observe(fact, now());
            }
        }
    }

    pub(super) fn standing_ended(&mut self, name: &Arc<str>) {
        let Some(standing) = self.services.get_mut(name) else { return };
        let Some(gate) = standing.gate.take() else { return };
        let at = now();
        let since = standing.began.unwrap_or(at);
        standing.see(&gate);
        self.witness.looked(&standing.service, &gate, self.doors.observer.tier(), since, at);
        let claims = gate.holders().iter().filter(|holder| !holder.lingers());
        let owners: Vec<ProcessId> = claims.flat_map(|holder| &holder.owners).map(|owner| owner.id).collect();
        for owner in owners {
            if standing.owners.insert(owner) && self.doors.watch(owner).is_some() {
                // It is gone already: what was seen is no longer so.
                standing.owners.remove(&owner);
                standing.outdated = true;
            }
        }
        standing.end(now());
    }
}
