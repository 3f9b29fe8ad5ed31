//! The restart of a unit: the core says what comes next, the unit's manager and
//! the run's gate do it. The loop waits for neither.

use std::sync::Arc;

use guard_core::follow::{Follow, follow_unit};
use guard_core::gate::{self, Budgets, Gate, Goal, Outcome};
use guard_core::model::{Instant, UnitId};
use guard_core::restart::{Action, Ahead, Fact, Plan, Restart, Step, longest_stop, obstacle};
use tokio::sync::mpsc;

use super::batch::Asked;
use super::service::{End, RunNumber, UnitStart, Witness};
use super::{Engine, LOOK_BUDGET, look_for_listener, plan};
use crate::act::systemd::SystemdError;
use crate::runtime::now;
use crate::runtime::units::{Line, Seen, Told, Units};

/// What is under way.
#[derive(Debug)]
enum Stage {
    /// The manager is asked what it knows.
    Opening,
    /// The run's gate looks at the port before the stop.
    Looking,
    /// The run's gate frees the port.
    Freeing,
    /// The gate did not open: whether the unit runs again is asked first.
    Shut(Outcome),
    /// The manager has something to do.
    Waiting,
    /// It was started and is to listen.
    Following(Following),
}

#[derive(Debug)]
struct Following {
    /// A look that began before this shows the port as it was.
    since: Instant,
    /// The next reading of the table.
    look_at: Instant,
    /// A snapshot is being taken.
    looking: bool,
    /// When the unit changed; it is read after a look that began later. Who
    /// listens comes first: a unit that gave up may have lost to a rival.
    changed: Option<Instant>,
    /// The unit has ended, as was read then. It is told after a look that began later, for the same reason.
    over: Option<(Instant, Box<Seen>)>,
}

/// A unit's restart that is under way.
#[derive(Debug)]
pub(super) struct UnitRun {
    line: Line,
    stage: Stage,
    /// The unit as it was at first, and its restart.
    restart: Option<(Box<Seen>, Restart)>,
    /// What frees the port once the unit has stopped.
    free: Option<gate::Plan>,
    /// How many steps were told.
    told: usize,
    /// Readings that are under way.
    reading: u32,
}

impl UnitRun {
    /// Asks the unit's manager; what it says comes through `told`.
    pub(super) fn begin(
        unit: &UnitStart,
        units: &Units,
        number: RunNumber,
        told: mpsc::UnboundedSender<(RunNumber, Told)>,
    ) -> Self {
        let tell = move |what| told.send((number, what)).is_ok();
        let line = units.open(unit.manager, unit.name.clone(), tell);
        Self { line, stage: Stage::Opening, restart: None, free: None, told: 0, reading: 0 }
    }

    /// The run's gate is what is under way.
    pub(super) const fn is_at_gate(&self) -> bool {
        matches!(self.stage, Stage::Looking | Stage::Freeing)
    }

    /// It was started, and looks are for it.
    pub(super) const fn is_following(&self) -> bool {
        matches!(self.stage, Stage::Following(_))
    }

    /// The unit, when it is stopped and would stay so.
    pub(super) fn left_stopped(&self) -> Option<UnitId> {
        let (seen, restart) = self.restart.as_ref()?;
        let last = restart.steps().iter().rev().map(|(_, step)| step).find_map(|step| match step {
            Step::Stopping => Some(true),
            Step::Starting | Step::StartedElsewhere => Some(false),
            _ => None,
        });
        (last == Some(true)).then(|| seen.0.id())
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match &self.stage {
            // The manager's answers and the gates have their own deadlines.
            Stage::Opening | Stage::Looking | Stage::Freeing | Stage::Shut(_) => None,
            Stage::Waiting => self.restart.as_ref()?.1.next_deadline(),
            Stage::Following(following) => {
                let look = (!following.looking).then_some(following.look_at);
                look.into_iter().chain(self.restart.as_ref()?.1.next_deadline()).min()
            }
        }
    }

    pub(super) fn on_deadline(&mut self, now: Instant) {
        if let Some((_, restart)) = &mut self.restart {
            restart.on_deadline(now);
        }
    }

    /// Somebody began to listen, maybe.
    pub(super) const fn hasten(&mut self, now: Instant) {
        if let Stage::Following(following) = &mut self.stage {
            following.look_at = now;
        }
    }

    fn read(&mut self) {
        self.reading += 1;
        self.line.read();
    }

    fn observe(&mut self, fact: Fact) {
        if let Some((_, restart)) = &mut self.restart {
            restart.observe(fact, now());
        }
    }

    /// Takes in what the manager says after the opening.
    fn take(&mut self, told: Told) {
        match told {
            Told::Opened(_) => {}
            Told::JobOver(result) => self.observe(Fact::JobOver(result)),
            Told::JobRefused(error) => {
                let denied = matches!(error, SystemdError::Denied { .. });
                self.observe(Fact::JobRefused { why: error.to_string(), denied });
            }
            Told::FailureReset(reset) => self.observe(Fact::FailureReset(reset)),
            Told::Seen { asked, seen } => {
                self.reading -= u32::from(asked && self.reading > 0);
                if let Some(seen) = seen {
                    self.unit_seen(seen);
                }
                if self.reading == 0
                    && let Stage::Shut(outcome) = &self.stage
                {
                    let outcome = outcome.clone();
                    self.stage = Stage::Waiting;
                    self.observe(Fact::Freed(outcome));
                }
            }
            Told::Changed => match &mut self.stage {
                Stage::Following(following) => {
                    let at = now();
                    following.changed = Some(at);
                    following.look_at = at;
                }
                _ => self.read(),
            },
            Told::Lost(why) => self.observe(Fact::Lost(why)),
        }
    }

    fn unit_seen(&mut self, seen: Box<Seen>) {
        if let Stage::Following(following) = &mut self.stage {
            if !seen.0.active_state.has_instance() {
                let at = now();
                following.over = Some((at, seen));
                following.look_at = at;
                return;
            }
            following.over = None;
        }
        self.observe(Fact::UnitSeen(seen));
    }

    /// The port was seen by a look that began at `begun`.
    fn port_seen(&mut self, found: Follow, begun: Instant) {
        self.observe(Fact::PortSeen(found));
        let Stage::Following(following) = &mut self.stage else { return };
        if let Some((_, seen)) = following.over.take_if(|(read, _)| *read <= begun) {
            return self.observe(Fact::UnitSeen(seen));
        }
        if following.over.is_some() {
            following.look_at = now();
        }
        match following.changed {
            Some(changed) if changed <= begun => {
                following.changed = None;
                self.read();
            }
            Some(_) => following.look_at = now(),
            None => {}
        }
    }
}

impl<W: Witness> Engine<W> {
    /// Takes in what a unit's manager says.
    pub(super) fn take_told(&mut self, number: RunNumber, told: Told) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        if let Told::Seen { seen: Some(seen), .. } | Told::Opened(Ok(seen)) = &told
            && let Some(standing) = self.services.get_mut(&run.info.service.name)
        {
            standing.unit = Some(Box::new(seen.0.clone()));
        }
        match told {
            Told::Opened(Ok(seen)) => self.begin_unit(number, seen),
            Told::Opened(Err(error)) => self.finish(number, |_| End::NoUnit(error)),
            told => {
                if let Some(unit) = &mut run.unit {
                    unit.take(told);
                }
            }
        }
    }

    /// The manager knows the unit: looks at its port.
    fn begin_unit(&mut self, number: RunNumber, seen: Box<Seen>) {
        let (at, recheck) = (now(), self.doors.observer.recheck());
        let Some(run) = self.runs.get_mut(&number) else { return };
        let service = Arc::clone(&run.info.service);
        let (Some(unit), Some(start)) = (&mut run.unit, service.unit()) else { return };
        self.witness.unit_seen(&run.info, at, &seen.0, &seen.1);
        // One request: whoever the unit's end brings forth is a newcomer to both runs of the gate.
        let asker = run.gate.plan().asker.clone();
        if let Some(obstacle) = obstacle(&seen.0, &seen.1, &asker) {
            return self.finish(number, |_| End::Obstructed(obstacle));
        }
        let rules = || service.rules_with(Some(&seen.0));
        let budgets = service.budgets(Some(&seen.0));
        let look = Budgets { total: Some(LOOK_BUDGET), ..budgets };
        let look = plan(&service, Goal::Look, look, recheck, asker.clone(), rules());
        unit.free = Some(plan(&service, Goal::Free, budgets, recheck, asker, rules()));
        let restart = Plan {
            stop: Some(longest_stop(&seen.0)),
            follow: service.start_budget,
            total: None,
            already_running: start.already_running.clone(),
        };
        unit.restart = Some((seen, Restart::new(restart, at)));
        run.gate = Gate::new(look, at);
        // That the run has begun was told.
        run.told = 1;
    }

    /// Lets a unit's restart do what it wants, and tells what came of it.
    pub(super) fn work_on_unit(&mut self, number: RunNumber) {
        self.tell(number);
        loop {
            if self.runs.get(&number).and_then(|run| run.unit.as_ref()).is_some_and(|unit| unit.is_at_gate())
            {
                self.drive(number);
                self.gate_ended(number);
            }
            let Self { runs, witness, .. } = self;
            let Some(run) = runs.get_mut(&number) else { return };
            let Some(unit) = &mut run.unit else { return };
            let Some((_, restart)) = &mut unit.restart else { return };
            let action = restart.next_action();
            for (at, step) in &restart.steps()[unit.told..] {
                witness.unit_step(&run.info, *at, step);
            }
            unit.told = restart.steps().len();
            if restart.end().is_some() {
                return self.finish(number, |run| {
                    let unit = run.unit.as_ref().and_then(|unit| unit.restart.as_ref());
                    let end = unit.and_then(|(_, restart)| restart.end().map(|end| (restart, end)));
                    end.map_or(End::Abandoned("it ended without an end"), |(restart, end)| {
                        End::Unit(restart, end)
                    })
                });
            }
            let Some(action) = action else {
                if self.follow_unit(number) {
                    continue;
                }
                return;
            };
            unit.stage = match action {
                Action::Look => Stage::Looking,
                Action::Ask(job) => {
                    unit.line.ask_for(job);
                    Stage::Waiting
                }
                Action::Free => {
                    let Some(plan) = unit.free.take() else { continue };
                    run.gate = Gate::new(plan, now());
                    // That the run has begun was told.
                    run.told = 1;
                    Stage::Freeing
                }
                Action::ResetFailed => {
                    unit.line.reset_failed();
                    Stage::Waiting
                }
                Action::Follow => {
                    unit.read();
                    let since = now();
                    Stage::Following(Following {
                        since,
                        look_at: since,
                        looking: false,
                        changed: None,
                        over: None,
                    })
                }
            };
        }
    }

    /// Tells the restart how its gate has ended, if it has.
    fn gate_ended(&mut self, number: RunNumber) {
        let tier = self.doors.observer.tier();
        let Some(run) = self.runs.get_mut(&number) else { return };
        let (Some(unit), Some(outcome)) = (&mut run.unit, run.gate.outcome()) else { return };
        match unit.stage {
            Stage::Looking => {
                self.witness.looked_ahead(&run.info, &run.gate, tier, now());
                unit.stage = Stage::Waiting;
                let ahead = unit.restart.as_ref().map(|(seen, _)| Ahead::of(&run.gate, &seen.0));
                if let Some(ahead) = ahead {
                    unit.observe(Fact::Looked(ahead));
                }
            }
            Stage::Freeing if matches!(outcome, Outcome::Opened(_)) => {
                unit.stage = Stage::Waiting;
                unit.observe(Fact::Freed(outcome.clone()));
            }
            Stage::Freeing => {
                unit.stage = Stage::Shut(outcome.clone());
                unit.read();
            }
            _ => {}
        }
    }

    /// Looks whether the unit listens, when it is time to. Says whether it was seen at once.
    fn follow_unit(&mut self, number: RunNumber) -> bool {
        let at = now();
        let Some(run) = self.runs.get_mut(&number) else { return false };
        let Some(unit) = &mut run.unit else { return false };
        let Stage::Following(following) = &mut unit.stage else { return false };
        if following.looking || following.look_at > at {
            return false;
        }
        let listening;
        (listening, following.look_at) =
            look_for_listener(&self.doors.observer, &run.ports, following.since, self.look_took);
        if listening {
            following.looking = true;
            let ports = run.ports.clone();
            self.looks.ask(Asked { key: number, ports, also: Vec::new(), learn: false, everybody: false });
            return false;
        }
        unit.port_seen(Follow::NotYet, at);
        true
    }

    /// A look for a unit that was started.
    pub(super) fn unit_looked(&mut self, number: RunNumber, fact: &gate::Fact) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        let Some(unit) = &mut run.unit else { return };
        let Stage::Following(following) = &mut unit.stage else { return };
        let gate::Fact::SnapshotTaken(snapshot) = fact else {
            following.looking = false;
            return;
        };
        if snapshot.begun < following.since {
            // The gate's last look: it shows the port as it was before.
            return;
        }
        following.looking = false;
        let Some((seen, restart)) = &unit.restart else { return };
        // A unit that did not run had no cgroup at first.
        let known = restart.unit().map(|(unit, _)| unit).filter(|unit| unit.control_group.is_some());
        let found = follow_unit(snapshot, &run.info.service.endpoints, known.unwrap_or(&seen.0));
        unit.port_seen(found, snapshot.begun);
    }
}
