//! One run of the engine.

use std::collections::BTreeSet;

use guard_core::follow::{Follow, follow};
use guard_core::gate::{Action, Gate, Outcome};
use guard_core::model::{Instant, Port, ProcessId, Snapshot, Tgid};
use tokio::sync::oneshot;

use super::batch::Asked;
use super::service::{Refused, RunInfo, RunNumber, Service, Waited};
use super::unit::UnitRun;
use crate::runtime::doors::Doors;
use crate::runtime::now;

/// A run that is under way.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) info: RunInfo,
    pub(super) ports: Vec<Port>,
    pub(super) gate: Gate,
    /// How many entries of its timeline were told.
    pub(super) told: usize,
    /// Whose exits its gate waits for.
    pub(super) watched: BTreeSet<ProcessId>,
    pub(super) waiters: Vec<oneshot::Sender<Result<Waited, Refused>>>,
    /// Set once the gate is open and the command was started.
    pub(super) starting: Option<Starting>,
    /// Its service is a unit, which its manager stops and starts.
    pub(super) unit: Option<Box<UnitRun>>,
    pub(super) span: tracing::Span,
}

/// The service was started and is to listen.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) command: Tgid,
    pub(super) deadline: Instant,
    /// A look that began before this shows the port as it was.
    pub(super) since: Instant,
    /// The next reading of the table.
    pub(super) look_at: Instant,
    /// A snapshot is being taken.
    pub(super) looking: bool,
}

impl Run {
    /// The run's gate has not ended.
    pub(super) const fn at_gate(&self) -> bool {
        self.gate.outcome().is_none()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if let Some(unit) = &self.unit {
            let gate = unit.is_at_gate().then(|| self.gate.next_deadline()).flatten();
            return gate.into_iter().chain(unit.next_deadline()).min();
        }
        match &self.starting {
            None => self.gate.next_deadline(),
            Some(starting) if starting.looking => Some(starting.deadline),
            Some(starting) => Some(starting.deadline.min(starting.look_at)),
        }
    }

    /// Somebody began to listen on one of its ports, maybe.
    pub(super) fn hasten(&mut self) {
        if let Some(starting) = &mut self.starting {
            starting.look_at = now();
        }
        if let Some(unit) = &mut self.unit {
            unit.hasten(now());
        }
    }

    /// Whom a look found listening in the service's place.
    pub(super) fn found(&self, snapshot: &Snapshot) -> Option<Follow> {
        let starting = self.starting.as_ref()?;
        match follow(snapshot, &self.info.service.endpoints, starting.command) {
            Follow::NotYet => None,
            found => Some(found),
        }
    }

    /// Whoever listens neither descends from the command nor is recognised as the service.
    pub(super) fn stranger(&self, snapshot: &Snapshot, found: Follow) -> Option<String> {
        let Follow::Other(process) = found else { return None };
        let seen = snapshot.processes.get(&process.tgid).filter(|seen| seen.id == process);
        let ours = seen.is_some_and(|seen| (self.info.service.rules)().recognises(seen));
        (!ours).then(|| format!("pid {process} listens, which is not the service"))
    }

    /// Nobody waits for it any more.
    pub(super) fn is_deserted(&mut self) -> bool {
        self.waiters.retain(|waiter| !waiter.is_closed());
        self.waiters.is_empty()
    }

    /// Answers everybody who waits for the gate.
    pub(super) fn answer(&mut self, waited: &Waited) {
        for waiter in self.waiters.drain(..) {
            // Whoever went away needs no answer.
            let _gone = waiter.send(Ok(waited.clone()));
        }
    }
}

/// Lets `gate` do what it wants to do now.
pub(super) fn drive<K: Clone>(
    gate: &mut Gate,
    service: &Service,
    asked: &Asked<K>,
    doors: &mut Doors,
    watched: &mut BTreeSet<ProcessId>,
    mut ask: impl FnMut(Asked<K>),
) {
    while let Some(action) = gate.next_action() {
        if let Action::TakeSnapshot { also, learn, everybody } = action {
            ask(Asked { also, learn: learn && asked.learn, everybody, ..asked.clone() });
            continue;
        }
        if let Action::Watch(process) = action {
            watched.insert(process);
        }
        if let Some(fact) = doors.perform(action, &service.endpoints, &asked.ports) {
            gate.observe(fact, now());
            doors.taken_in();
        }
    }
}

/// What a run that ended at its gate tells those who waited for it.
pub(super) fn waited(number: RunNumber, outcome: &Outcome) -> Waited {
    match outcome {
        Outcome::Opened(proof) => Ok(super::Opened { number, proof: proof.clone() }),
        other => Err(other.clone()),
    }
}
