//! What looks and probes have shown.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Gate, LOOK_AGAIN, Probe};
use crate::gate::assessment::{Assessment, for_the_record, same_story, worst_conflict};
use crate::gate::{Action, Goal, Rival};
use crate::model::{BindOutcome, Instant, ProcessId, Snapshot, Socket};
use crate::timeline::Entry;

/// The table is read for a quarter of the time at most while nothing has told of the port.
const REST: u32 = 3;

/// What seems to have taken longer was an interruption of this process.
const LONGEST_REST: Duration = Duration::from_millis(250);

impl Gate {
    pub(super) fn take_in(&mut self, snapshot: Snapshot, now: Instant) {
        let took = snapshot.ended.since(snapshot.begun);
        if self.assessment.is_none() {
            self.seen_at_request = snapshot.processes.values().map(|process| process.id).collect();
        }
        let begun = snapshot.begun;
        self.count_expiring(snapshot.sockets.iter().map(|(socket, _)| socket));
        let assessment = Assessment::new(snapshot, &self.plan, &self.seen_at_request);
        let owners: BTreeSet<ProcessId> =
            assessment.holders.iter().flat_map(|holder| &holder.owners).map(|owner| owner.id).collect();
        for owner in owners {
            if self.plan.goal != Goal::Look && self.watched.insert(owner) {
                self.queue.push_back(Action::Watch(owner));
            }
        }
        let known =
            self.assessment.as_ref().is_some_and(|last| same_story(&last.holders, &assessment.holders));
        if !known {
            let (holders, left_out) = for_the_record(&assessment.holders);
            self.timeline.record(begun, Entry::Looked { holders, left_out, took });
        }
        self.past.claimed.extend(assessment.claimers());
        self.claim_stands = assessment.is_claimed();
        self.lingers_on = assessment.lingers_on(&self.plan, self.probe.as_ref());
        self.expiry_at = assessment.last_expiry(&self.plan).filter(|&at| at > now);
        let mut newcomers = assessment.newcomers();
        // The service's own unit is no rival: that it starts again is what is wanted.
        newcomers.retain(|newcomer| {
            assessment.process(newcomer.id).is_none_or(|process| self.plan.rules.own_unit(process).is_none())
        });
        self.count_round(newcomers);
        self.looked_after_loss(begun, now);
        if self.is_strict() {
            let clear = !assessment.holders.iter().any(|holder| holder.holder.certain);
            self.note_table(clear, begun);
        }
        self.assessment = Some(assessment);
        self.explain_failed_binds();
        if self.plan.goal != Goal::Look {
            self.look_again_at = Some(now + LOOK_AGAIN);
        }
        // Nothing is decided on a look that the port has outlived.
        self.check_port();
        self.spare_moved(now);
        self.kill_after_look(begun, now);
    }

    /// Newcomers that share the port, such as a server and its workers, are one round.
    fn count_round(&mut self, newcomers: Vec<Rival>) {
        let known = |newcomer: &Rival| self.rivals.iter().any(|rival| rival.id == newcomer.id);
        if !newcomers.is_empty() && !newcomers.iter().any(known) {
            self.rounds += 1;
        }
        let fresh: Vec<Rival> = newcomers.into_iter().filter(|newcomer| !known(newcomer)).collect();
        self.rivals.extend(fresh);
    }

    pub(super) fn read_table(&mut self, sockets: &[Socket], begun: Instant, now: Instant) {
        // The kernel walks all of its sockets for it. Whoever reads without a break, ahead of all ordinary
        // threads, keeps the owner from its own exit.
        if self.settle >= self.plan.recheck {
            let rest = (now.since(begun) * REST).min(LONGEST_REST);
            self.recheck_at = self.recheck_at.max(now + rest);
        }
        self.count_expiring(sockets.iter());
        let clear = !sockets.iter().any(|socket| worst_conflict(&self.plan, socket) == Some(true));
        self.note_table(clear, begun);
        self.want.snapshot |= !clear && self.assessment.is_none() && !self.asked.snapshot;
        if let Some(expires) = sockets
            .iter()
            .filter(|socket| worst_conflict(&self.plan, socket).is_some())
            .filter_map(|socket| socket.expires)
            .max()
        {
            self.expiry_at = Some(begun + expires).filter(|&at| at > now);
        }
    }

    fn note_table(&mut self, clear: bool, begun: Instant) {
        // A snapshot takes longer than a table, so answers overtake each other.
        if self.last_table.is_some_and(|last| last > begun) {
            return;
        }
        self.last_table = Some(begun);
        self.clear_since =
            clear.then(|| self.clear_since.filter(|&since| since >= self.doubted).unwrap_or(begun));
        self.want.probe = clear;
        if !clear {
            let outcomes = vec![BindOutcome::InUse; self.plan.endpoints.len()];
            self.note_probe(Probe { begun, by_table: true, outcomes });
        }
    }

    fn note_probe(&mut self, probe: Probe) {
        let last = self.probe.as_ref();
        if last.is_some_and(|last| last.begun > probe.begun) {
            return;
        }
        if !probe.all_bindable() {
            // Whoever holds the port now need not be the one whom the last look saw.
            let changed = last.is_some_and(|last| last.outcomes != probe.outcomes);
            let first = self.assessment.is_none() && self.failure.is_none();
            self.want.snapshot |= (changed || first) && !self.asked.snapshot;
        }
        self.probe = Some(probe);
    }

    pub(super) fn take_probe(&mut self, outcomes: Vec<BindOutcome>, begun: Instant, now: Instant) {
        debug_assert_eq!(outcomes.len(), self.plan.endpoints.len(), "one outcome per endpoint");
        let changed = self.probe.as_ref().is_none_or(|last| last.outcomes != outcomes);
        if changed || self.record_probe {
            let took = now.since(begun);
            self.timeline.record(begun, Entry::Probed { outcomes: outcomes.clone(), took });
            self.record_probe = false;
        }
        self.note_probe(Probe { begun, by_table: false, outcomes });
        if self.only_waits_for_owners() {
            // Their end brings the probe that counts. Whoever probes until then, ahead of all ordinary threads, keeps
            // them from it.
            self.settle = self.plan.recheck;
            self.recheck_at = now + self.settle;
        }
    }

    /// The port is bindable, and somebody who was sent a signal has not ended yet.
    fn only_waits_for_owners(&self) -> bool {
        let bindable = self.probe.as_ref().is_some_and(|probe| self.stands(probe) && probe.all_bindable());
        bindable && !self.plan.port_only && !self.escalation.all_over()
    }
}
