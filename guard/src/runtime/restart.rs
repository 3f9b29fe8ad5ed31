//! Drives a unit's restart: the core says what comes next, the session and the
//! unit's manager do it.

use guard_core::follow::{Follow, follow_unit};
use guard_core::gate::{self, Gate, Hint};
use guard_core::model::{Instant, Unit};
use guard_core::restart::{Action, Ahead, Fact, Plan, Restart, Step};
use tracing::debug;

use super::units::Seen;
use super::{RuntimeError, Session, Sink, Tier, in_loop, now};
use crate::act::systemd::{Heard, Job, SystemdError, UnitDoor};
use crate::observe::Wanted;

/// Who wants to know what happens in a unit's restart.
pub trait RestartSink: Sink {
    /// The look before the stop is over.
    fn looked_ahead(&mut self, gate: &Gate, tier: Tier);
    /// Called for each new step, in order.
    fn unit_step(&mut self, at: Instant, step: &Step);
}

/// The plans of a unit's restart and of the two runs of the gate within.
#[derive(Debug)]
pub struct Plans {
    /// The order of things.
    pub restart: Plan,
    /// The look before the stop.
    pub look: gate::Plan,
    /// From the stop to the open gate.
    pub free: gate::Plan,
}

/// What a unit's restart leaves behind, for the report.
#[derive(Debug)]
pub struct Restarted {
    /// How it went.
    pub restart: Restart,
    /// The look, or the gate once there was one.
    pub gate: Option<Gate>,
}

impl Session {
    /// Restarts a unit: stop, free, start, follow.
    ///
    /// # Errors
    ///
    /// When the event loop itself fails; what the manager refuses is an end.
    pub async fn restart_unit(
        &mut self,
        door: &mut UnitDoor,
        unit: &Unit,
        plans: Plans,
        sink: &mut dyn RestartSink,
    ) -> Result<Restarted, RuntimeError> {
        let mut restart = Restart::new(plans.restart, now());
        let (mut look, mut free) = (Some(plans.look), Some(plans.free));
        let (mut gate, mut job, mut following, mut told) = (None, None, None, 0);
        loop {
            while let Some(action) = restart.next_action() {
                tell(&restart, &mut told, sink);
                match action {
                    Action::Look => {
                        let Some(plan) = look.take() else { continue };
                        let looked = self.run(plan, sink).await?;
                        sink.looked_ahead(&looked, self.tier());
                        restart.observe(Fact::Looked(Ahead::of(&looked, unit)), now());
                        gate = Some(looked);
                    }
                    Action::Ask(kind) => match door.ask_for(kind).await {
                        Ok(asked) => job = Some(asked),
                        Err(error) => restart.observe(refused(&error), now()),
                    },
                    Action::Free => {
                        let Some(mut plan) = free.take() else { continue };
                        if let Some(end) = restart.next_deadline() {
                            let left = end.since(now());
                            plan.budgets.total =
                                Some(plan.budgets.total.map_or(left, |total| total.min(left)));
                        }
                        let freed = self.run(plan, sink).await?;
                        let outcome = freed.outcome().cloned();
                        gate = Some(freed);
                        read(door, &mut restart).await;
                        if let Some(outcome) = outcome {
                            restart.observe(Fact::Freed(outcome), now());
                        }
                    }
                    Action::ResetFailed => {
                        let reset = door.reset_failed().await.map_err(|error| error.to_string());
                        restart.observe(Fact::FailureReset(reset), now());
                    }
                    Action::Follow => {
                        following = Some(now());
                        // It takes seconds to listen, and only the best tier tells when it does.
                        self.doors.observer.upgrade();
                        self.look_at_port(unit, &mut restart).await?;
                    }
                }
            }
            tell(&restart, &mut told, sink);
            if restart.end().is_some() {
                return Ok(Restarted { restart, gate });
            }
            self.wait(door, unit, &mut restart, job.as_ref(), following).await?;
        }
    }

    /// Until the next thing that the restart wants to know.
    async fn wait(
        &mut self,
        door: &mut UnitDoor,
        unit: &Unit,
        restart: &mut Restart,
        job: Option<&Job>,
        following: Option<Instant>,
    ) -> Result<(), RuntimeError> {
        let at = now();
        let next_look = following.map(|since| at + self.follow_pause(since, at));
        let at = [restart.next_deadline(), next_look];
        let Some(at) = at.into_iter().flatten().min() else {
            return self.take(door.heard().await, door, unit, restart, job, following).await;
        };
        self.alarm.set(at).map_err(in_loop("set a timer"))?;
        loop {
            tokio::select! {
                biased;
                heard = door.heard() => {
                    return self.take(heard, door, unit, restart, job, following).await;
                }
                fact = self.doors.observer.next(now), if following.is_some() => match fact {
                    gate::Fact::Hinted { hint: Hint::ListenerOpened { .. }, .. }
                    | gate::Fact::EventsLost { .. } => return self.look_at_port(unit, restart).await,
                    _ => {}
                },
                rang = self.alarm.rings() => {
                    rang.map_err(in_loop("wait for a timer"))?;
                    if following.is_some() {
                        self.look_at_port(unit, restart).await?;
                    }
                    restart.on_deadline(now());
                    return Ok(());
                }
            }
        }
    }

    /// Takes in what the manager told.
    async fn take(
        &mut self,
        heard: Heard,
        door: &UnitDoor,
        unit: &Unit,
        restart: &mut Restart,
        job: Option<&Job>,
        following: Option<Instant>,
    ) -> Result<(), RuntimeError> {
        match heard {
            Heard::JobOver { job: over, result } if Some(&over) == job => {
                read(door, restart).await;
                restart.observe(Fact::JobOver(result), now());
            }
            Heard::JobOver { .. } => {}
            Heard::Changed if following.is_some() => {
                // Who listens is told first, by a look that began later: a unit that gave up may have lost to a rival.
                let seen = door.read().await;
                self.look_at_port(unit, restart).await?;
                unit_seen(seen, restart);
            }
            Heard::Changed => read(door, restart).await,
            Heard::Lost => {
                let why = "the connection to systemd broke; the unit's state is not known".to_owned();
                restart.observe(Fact::Lost(why), now());
            }
        }
        Ok(())
    }

    /// Who listens on the service's endpoints now.
    async fn look_at_port(&mut self, unit: &Unit, restart: &mut Restart) -> Result<(), RuntimeError> {
        let mut seen = Follow::NotYet;
        // That is cheap to see; who owns a listener is asked when there is one.
        if self.somebody_listens() {
            self.looker.request(Wanted::default())?;
            match self.looker.next().await {
                gate::Fact::SnapshotTaken(snapshot) => {
                    self.reading += snapshot.ended.since(snapshot.begun);
                    // A unit that did not run had no cgroup at first.
                    let now =
                        restart.unit().map(|(unit, _)| unit).filter(|unit| unit.control_group.is_some());
                    seen = follow_unit(&snapshot, &self.endpoints, now.unwrap_or(unit));
                }
                other => {
                    debug!(?other, "the look for the successor failed");
                    return Ok(());
                }
            }
        }
        restart.observe(Fact::PortSeen(seen), now());
        Ok(())
    }
}

fn tell(restart: &Restart, told: &mut usize, sink: &mut dyn RestartSink) {
    for (at, step) in &restart.steps()[*told..] {
        sink.unit_step(*at, step);
    }
    *told = restart.steps().len();
}

/// Reads the unit again. What could not be read now is read after the next change.
async fn read(door: &UnitDoor, restart: &mut Restart) {
    unit_seen(door.read().await, restart);
}

fn unit_seen(seen: Result<Seen, SystemdError>, restart: &mut Restart) {
    match seen {
        Ok(seen) => restart.observe(Fact::UnitSeen(Box::new(seen)), now()),
        Err(error) => debug!(%error, "cannot read the unit"),
    }
}

fn refused(error: &SystemdError) -> Fact {
    let denied = matches!(error, SystemdError::Denied { .. });
    Fact::JobRefused { why: error.to_string(), denied }
}
