//! What the kernel says, and whom it concerns.

use std::sync::Arc;

use guard_core::gate::{Fact, Hint};
use guard_core::model::{Instant, Port, ProcessId};
use guard_core::timeline::Entry;
use tracing::debug;

use super::run::Run;
use super::{Engine, Witness};
use crate::runtime::now;

impl<W: Witness> Engine<W> {
    pub(super) fn dispatch(&mut self, fact: &Fact) {
        let at = now();
        match fact {
            Fact::Hinted { hint: Hint::OwnerExiting { process, .. }, .. } => {
                let watching = self.runs.values_mut().filter(|run| run.watched.contains(process));
                watching.for_each(|run| run.gate.observe(fact.clone(), at));
            }
            Fact::Hinted { hint, at: when } => self.hinted(*hint, *when, fact),
            Fact::EventsLost { count } => self.all(fact, at, &Entry::EventsLost(*count)),
            Fact::TierChanged { tier, .. } => {
                self.all(fact, at, &Entry::TierChanged(tier));
                self.witness.tier(self.doors.observer.tier(), self.doors.observer.shortfall());
            }
            Fact::BindFailed { bind, at } => {
                for run in self.runs.values_mut().filter(|run| run.ports.contains(&bind.port)) {
                    run.gate.observe(fact.clone(), now());
                }
                let entry = Entry::BindFailed { bind: bind.clone(), holders: Vec::new(), looked: None };
                self.tell_outside_runs(bind.port, *at, &entry);
            }
            other => debug!(?other, "a fact that no source of events states"),
        }
    }

    pub(super) fn all(&mut self, fact: &Fact, at: Instant, entry: &Entry) {
        for run in self.runs.values_mut() {
            run.gate.observe(fact.clone(), at);
            run.hasten();
        }
        for standing in self.services.values_mut() {
            standing.outdated = true;
        }
        self.witness.happened_to_all(at, entry);
    }

    pub(super) fn hinted(&mut self, hint: Hint, when: Instant, fact: &Fact) {
        let Some(port) = port(&hint) else { return };
        for run in self.runs.values_mut().filter(|run| run.ports.contains(&port)) {
            run.gate.observe(fact.clone(), now());
            if matches!(hint, Hint::ListenerOpened { .. }) {
                run.hasten();
            }
        }
        if matches!(hint, Hint::ConnectionReleased { .. } | Hint::ConnectionAborted { .. }) {
            return;
        }
        self.tell_outside_runs(port, when, &Entry::Event(hint));
        for standing in self.services.values_mut().filter(|standing| standing.ports.contains(&port)) {
            standing.outdated = true;
        }
    }

    /// Tells what happened on `port`, of the services whose runs do not tell it.
    pub(super) fn tell_outside_runs(&mut self, port: Port, at: Instant, entry: &Entry) {
        for (name, standing) in self.services.iter().filter(|(_, standing)| standing.ports.contains(&port)) {
            let tells = |run: &Run| run.info.service.name == *name && run.at_gate();
            if !self.runs.values().any(tells) {
                self.witness.happened(&standing.service, at, entry);
            }
        }
    }

    pub(super) fn gone(&mut self, process: ProcessId, fact: &Fact) {
        let at = now();
        let mut told: Vec<Arc<str>> = Vec::new();
        for run in self.runs.values_mut().filter(|run| run.watched.contains(&process)) {
            if run.at_gate() {
                told.push(Arc::clone(&run.info.service.name));
            }
            run.gate.observe(fact.clone(), at);
        }
        let Fact::OwnerGone { status, .. } = fact else { return };
        for (name, standing) in &mut self.services {
            if standing.owners.remove(&process) {
                standing.outdated = true;
                if !told.contains(name) {
                    self.witness.happened(
                        &standing.service,
                        at,
                        &Entry::Gone { process, status: *status, answered: None },
                    );
                }
            }
        }
        self.doors.observer.forget_owner(process);
    }
}

const fn port(hint: &Hint) -> Option<Port> {
    match hint {
        Hint::ListenerOpened { port, .. }
        | Hint::ListenerClosed { port, .. }
        | Hint::SocketReleased { port, .. }
        | Hint::ConnectionReleased { port }
        | Hint::ConnectionAborted { port }
        | Hint::TimeWaitEnded { port } => Some(*port),
        Hint::OwnerExiting { .. } => None,
    }
}
