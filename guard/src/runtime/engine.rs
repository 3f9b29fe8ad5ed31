//! Many services in one event loop.
//!
//! One kernel observer serves all ports; facts go to the runs and services
//! that they concern. While nothing is under way nothing is armed: in the
//! event-driven tiers the loop sleeps until the kernel or a client says
//! something, however many services there are.
//!
//! Requests are taken last, looks are taken on other threads, and nobody who is
//! told anything can make the loop wait: nothing a client does delays a gate.

mod batch;
mod command;
mod facts;
mod looking;
mod requests;
mod rest;
mod run;
mod service;
mod standing;
mod unit;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use guard_core::gate::{Budgets, Fact, Goal, Outcome, Plan, Reach};
use guard_core::model::{Instant, Port, ProcessId};
use guard_core::policy::Rules;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{error, warn};

use self::batch::{Asked, Batch, part};
use self::run::{Run, drive, waited};
pub use self::service::{
    AFTER_DRAIN, DRAIN, End, Kind, Opened, Refused, Request, RunInfo, RunNumber, Service, Start, Ticket,
    UnitStart, Waited, Witness,
};
use self::standing::Standing;
use super::doors::Doors;
use super::turns::Turns;
use super::units::{Told, Units};
use super::{Alarm, Haste, RuntimeError, exiting, follow_pause, in_loop, now};
use crate::act::CommandError;
use crate::observe::{ExitWatch, Looker, Observer, Tier, TierChoice, Tuning, Watched, is_listened_on};

/// A look that takes longer than this is given up.
const LOOK_BUDGET: Duration = Duration::from_secs(30);

/// The time between two looks at services in the tier without events.
const POLL_PACE: Duration = Duration::from_secs(1);

/// Where facts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Which tier.
    pub choice: TierChoice,
    /// No lower tier than this will do.
    pub require: Option<Tier>,
    /// Time between two bind probes in the poll tier.
    pub poll_interval: Duration,
    /// Bytes of kernel memory for events that are not read yet; `None`: each tier's default.
    pub event_buffer: Option<u32>,
}

/// What whoever asks for a run is told.
type Booked = Result<Ticket, Refused>;

/// The event loop of all services in one network namespace.
#[derive(Debug)]
pub struct Engine<W> {
    doors: Doors,
    alarm: Alarm,
    looks: Batch<RunNumber>,
    standing_looks: Batch<Arc<str>>,
    /// How long the last look for runs took.
    look_took: Duration,
    /// The last look at services could not begin.
    blind: bool,
    services: BTreeMap<Arc<str>, Standing>,
    /// What may be guarded next.
    prepared: Vec<Service>,
    runs: BTreeMap<RunNumber, Run>,
    /// How many of them there are for each service, which is asked about every service at every turn.
    busy: BTreeMap<Arc<str>, usize>,
    commands: JoinSet<(RunNumber, Result<ExitStatus, CommandError>)>,
    units: Units,
    /// What the service managers tell the runs. Each line has a few words at most under way.
    told: mpsc::UnboundedReceiver<(RunNumber, Told)>,
    /// Where the lines lead.
    tell: mpsc::UnboundedSender<(RunNumber, Told)>,
    numbers: Arc<AtomicU64>,
    requests: mpsc::Receiver<Request>,
    /// What those who asked for a run are told, once it has begun.
    tickets: Vec<(oneshot::Sender<Booked>, Booked)>,
    /// It ends with the last of its runs.
    retiring: bool,
    poll_at: Instant,
    /// When it goes to rest, if everything stays as calm as it is.
    rest_at: Option<Instant>,
    witness: W,
}

impl<W: Witness> Engine<W> {
    /// Opens the sources of facts in the network namespace of the calling
    /// thread, and waits for the best tier. Needs a running tokio reactor.
    ///
    /// `settled` is called between the loading of programs and the start of the
    /// threads that look: what it changes about this thread holds for them too.
    ///
    /// # Errors
    ///
    /// When a source or the tier that is asked for cannot be had.
    pub async fn open(
        sources: Sources,
        services: Vec<Service>,
        requests: mpsc::Receiver<Request>,
        numbers: Arc<AtomicU64>,
        units: Units,
        mut witness: W,
        settled: impl FnOnce(),
    ) -> Result<Self, RuntimeError> {
        let services: BTreeMap<Arc<str>, Standing> = services
            .into_iter()
            .map(|service| (Arc::clone(&service.name), Standing::new(Arc::new(service))))
            .collect();
        let watched = watched(services.values().map(|standing| &standing.service));
        let tuning = Tuning {
            poll_interval: sources.poll_interval,
            event_buffer: sources.event_buffer,
            standing: true,
        };
        let (mut observer, owners) = Observer::start(sources.choice, &watched, tuning)?;
        observer.upgrade_now().await;
        if let Some(required) = sources.require {
            observer.require(required).await?;
        }
        settled();
        witness.tier(observer.tier(), observer.shortfall());
        let (tell, told) = mpsc::unbounded_channel();
        let exits = ExitWatch::new().map_err(in_loop("watch processes for their exit"))?;
        Ok(Self {
            doors: Doors::new(observer, exits),
            alarm: Alarm::new().map_err(in_loop("set up a timer"))?,
            looks: Batch::new(Looker::start(Vec::new(), owners.clone(), now)?),
            standing_looks: Batch::new(Looker::start_standing(owners, now)?),
            look_took: Duration::ZERO,
            blind: false,
            services,
            prepared: Vec::new(),
            runs: BTreeMap::new(),
            busy: BTreeMap::new(),
            commands: JoinSet::new(),
            units,
            told,
            tell,
            numbers,
            requests,
            tickets: Vec::new(),
            retiring: false,
            poll_at: now(),
            rest_at: None,
            witness,
        })
    }

    /// Serves until nobody can ask for anything any more, or until it was retired and its runs
    /// are done.
    ///
    /// # Errors
    ///
    /// When the loop's own descriptors fail: nothing is watched any more.
    pub async fn serve(mut self) -> Result<(), RuntimeError> {
        let mut turns = Turns::default();
        let mut haste = Haste::default();
        loop {
            // Only a run is in a hurry. Whoever merely watches keeps nobody from a processor.
            haste.set(!self.runs.is_empty());
            self.wake_unless_calm();
            self.work()?;
            self.rest_if_calm();
            // Now that the run's first look is under way: whoever is told first takes the processor from it.
            for (reply, ticket) in self.tickets.drain(..) {
                // Whoever went away needs no answer.
                let _gone = reply.send(ticket);
            }
            if self.retiring && self.runs.is_empty() {
                return Ok(());
            }
            if self.doors.signalled() {
                haste.owner_was_told();
            }
            haste.rest();
            if let Some(at) = self.next_deadline().into_iter().chain(haste.next_deadline()).min() {
                self.alarm.set(at).map_err(in_loop("set a timer"))?;
            }
            // Events before deadlines, and both before anybody's wishes.
            let events_next = turns.events_next().await;
            if !events_next {
                // The alarm was set a moment ago, and may not have had the time to ring for what is due already.
                self.on_deadline();
            }
            tokio::select! {
                biased;
                fact = turns.take(self.doors.observer.next(now)), if events_next => {
                    if exiting(&fact).is_some_and(|owner| self.is_awaited(owner)) {
                        haste.owner_exits();
                    }
                    self.dispatch(&fact);
                }
                gone = self.doors.exits.next() => {
                    for (process, status) in gone.map_err(in_loop("wait for processes to exit"))? {
                        self.gone(process, &Fact::OwnerGone { process, status });
                    }
                }
                (asked, fact) = self.looks.next() => self.take_looks(&asked, &fact),
                rang = self.alarm.rings() => {
                    rang.map_err(in_loop("wait for a timer"))?;
                    self.on_deadline();
                }
                Some(ended) = self.commands.join_next() => match ended {
                    Ok((number, status)) => self.command_ended(number, status),
                    Err(error) => error!(%error, "a task that waits for a command broke down"),
                },
                Some((number, told)) = self.told.recv() => self.take_told(number, told),
                (asked, fact) = self.standing_looks.next() => self.take_standing_looks(&asked, &fact),
                request = self.requests.recv() => match request {
                    Some(request) => self.take(request),
                    None => {
                        self.abandon_all("the sidecar was asked to stop");
                        return Ok(());
                    }
                },
                () = std::future::ready(()), if !events_next => {}
            }
        }
    }

    /// Lets every gate do what it wants, tells what came of it, and begins the
    /// looks that were asked for.
    fn work(&mut self) -> Result<(), RuntimeError> {
        let under_way = self.runs.keys().copied().collect::<Vec<_>>();
        for &number in &under_way {
            self.work_on(number);
        }
        // When the last run has just ended, those who waited for it go first: the look that follows upon it
        // is due at once, and begins when this thread is an ordinary one again.
        if under_way.is_empty() || !self.runs.is_empty() {
            self.begin_standing_looks();
        }
        let Self { services, doors, standing_looks, busy, .. } = self;
        let mut ended = Vec::new();
        for (name, standing) in services.iter_mut() {
            let Some(gate) = &mut standing.gate else { continue };
            let asked = Asked {
                key: Arc::clone(name),
                ports: standing.ports.clone(),
                also: Vec::new(),
                learn: !busy.contains_key(name),
                everybody: false,
            };
            let mut nobody = std::collections::BTreeSet::new();
            drive(gate, &standing.service, &asked, doors, &mut nobody, |asked| standing_looks.ask(asked));
            if gate.outcome().is_some() {
                ended.push(Arc::clone(name));
            }
        }
        for name in ended {
            self.standing_ended(&name);
        }
        self.looks.begin()?;
        self.standing_looks.begin()?;
        Ok(())
    }

    fn work_on(&mut self, number: RunNumber) {
        let Some(run) = self.runs.get(&number) else { return };
        let _in_span = run.span.clone().entered();
        if run.unit.is_some() {
            return self.work_on_unit(number);
        }
        self.drive(number);
        let Some(run) = self.runs.get_mut(&number) else { return };
        match run.gate.outcome() {
            None => {
                if run.info.kind == Kind::Gate && run.is_deserted() {
                    self.finish(number, |_| End::Abandoned("nobody waits for it any more"));
                }
            }
            Some(_) if run.starting.is_some() => self.follow(number),
            Some(Outcome::Opened(_)) if run.info.kind == Kind::Restart => self.start(number),
            Some(_) => {
                self.finish(number, |run| {
                    run.gate.outcome().map_or(End::Abandoned("it ended without an outcome"), End::Gate)
                });
            }
        }
    }

    /// Lets a run's gate do what it wants, and tells what came of it.
    fn drive(&mut self, number: RunNumber) {
        let Self { runs, doors, looks, .. } = self;
        let Some(run) = runs.get_mut(&number) else { return };
        let asked =
            Asked { key: number, ports: run.ports.clone(), also: Vec::new(), learn: true, everybody: false };
        drive(&mut run.gate, &run.info.service, &asked, doors, &mut run.watched, |asked| looks.ask(asked));
        // Whoever waits for the gate is answered before the books are written.
        if let Some(outcome) = run.gate.outcome().filter(|_| !run.waiters.is_empty()) {
            let waited = waited(number, outcome);
            run.answer(&waited);
        }
        self.tell(number);
    }

    /// Tells what is new in a run's timeline.
    fn tell(&mut self, number: RunNumber) {
        let Self { runs, doors, witness, .. } = self;
        let Some(run) = runs.get_mut(&number) else { return };
        let tier = doors.observer.tier();
        for (at, entry) in &run.gate.timeline().entries()[run.told..] {
            witness.entry(&run.info, &run.gate, tier, *at, entry);
        }
        run.told = run.gate.timeline().entries().len();
    }

    fn take_looks(&mut self, asked: &[Asked<RunNumber>], fact: &Fact) {
        if let Fact::SnapshotTaken(snapshot) = fact {
            self.look_took = snapshot.ended.since(snapshot.begun);
        }
        for asked in asked {
            let fact = part(fact, asked);
            if let Fact::SnapshotTaken(snapshot) = &fact {
                self.doors.observer.look(snapshot, &asked.ports);
            }
            let Some(run) = self.runs.get_mut(&asked.key) else { continue };
            if run.unit.as_ref().is_some_and(|unit| unit.is_following()) {
                self.unit_looked(asked.key, &fact);
                continue;
            }
            let Some(starting) = &mut run.starting else {
                run.gate.observe(fact, now());
                continue;
            };
            let Fact::SnapshotTaken(snapshot) = &fact else {
                starting.looking = false;
                continue;
            };
            if snapshot.begun < starting.since {
                // The gate's last look: it shows the port as it was before.
                continue;
            }
            starting.looking = false;
            if let Some(found) = run.found(snapshot) {
                if let Some(why) = run.stranger(snapshot, found) {
                    self.finish(asked.key, |_| End::StartFailed(why));
                    continue;
                }
                let (step, pid, text) = command::found_words(found);
                self.witness.step(&run.info, snapshot.ended, step, pid, text);
                self.finish(asked.key, |_| End::Restarted(found));
            }
        }
        for gone in self.doors.watch_again() {
            if let Fact::OwnerGone { process, .. } = &gone {
                self.gone(*process, &gone);
            }
        }
    }

    /// Ends a run.
    fn finish<'e>(&mut self, number: RunNumber, end: impl FnOnce(&Run) -> End<'_> + 'e) {
        let Some(run) = self.runs.remove(&number) else { return };
        if let Entry::Occupied(mut count) = self.busy.entry(Arc::clone(&run.info.service.name)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        let _in_span = run.span.clone().entered();
        let tier = self.doors.observer.tier();
        self.witness.ended(&run.info, &run.gate, tier, now(), &end(&run));
        match self.services.get_mut(&run.info.service.name) {
            Some(standing) => standing.outdated = true,
            None => self.watch_ports(),
        }
    }

    fn abandon_all(&mut self, why: &'static str) {
        for number in self.runs.keys().copied().collect::<Vec<_>>() {
            self.finish(number, |run| match run.unit.as_ref().and_then(|unit| unit.left_stopped()) {
                Some(unit) => End::LeftStopped(unit),
                None => End::Abandoned(why),
            });
        }
    }

    /// Wants facts about the ports of all services and all runs.
    fn watch_ports(&mut self) {
        let services = self.services.values().map(|standing| &standing.service);
        let watched = watched(services.chain(self.runs.values().map(|run| &run.info.service)));
        if let Err(error) = self.doors.observer.watch(&watched) {
            warn!(%error, "a port is not watched: it is looked at on demand");
        }
    }

    fn on_deadline(&mut self) {
        let at = now();
        for run in self.runs.values_mut() {
            run.gate.on_deadline(at);
            if let Some(unit) = &mut run.unit {
                unit.on_deadline(at);
            }
        }
        for gate in self.services.values_mut().filter_map(|standing| standing.gate.as_mut()) {
            gate.on_deadline(at);
        }
        if self.doors.observer.tier() == Tier::Poll && self.poll_at <= at {
            self.poll_at = at + POLL_PACE;
            self.services.values_mut().for_each(|standing| standing.outdated = true);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let runs = self.runs.values().filter_map(Run::next_deadline);
        let standing = self.services.iter().filter_map(|(name, standing)| match &standing.gate {
            Some(gate) => gate.next_deadline(),
            None => standing.due(self.is_busy(name)),
        });
        let poll = (self.doors.observer.tier() == Tier::Poll).then_some(self.poll_at);
        runs.chain(standing).chain(poll).chain(self.rest_at()).min()
    }

    /// The gate of a run waits for this process's end.
    fn is_awaited(&self, process: ProcessId) -> bool {
        self.runs.values().any(|run| run.watched.contains(&process))
    }

    fn is_busy(&self, name: &Arc<str>) -> bool {
        self.busy.contains_key(name)
    }
}

/// Whether somebody listens on `ports`, unless the table says that nobody does, and when to look next;
/// their service was started at `since`, and to look who it is takes as long as `look`.
fn look_for_listener(observer: &Observer, ports: &[Port], since: Instant, look: Duration) -> (bool, Instant) {
    let began = now();
    // That is cheap to see; who owns a listener is asked when there is one.
    let listening = is_listened_on(ports).unwrap_or(true);
    let at = now();
    let reading = at.since(began) + if listening { look } else { Duration::ZERO };
    (listening, at + follow_pause(observer.tier(), observer.recheck(), at.since(since), reading))
}

/// A plan for a run on `service`.
fn plan(
    service: &Service,
    goal: Goal,
    budgets: Budgets,
    recheck: Duration,
    asker: guard_core::policy::Asker,
    rules: Rules,
) -> Plan {
    Plan {
        endpoints: service.endpoints.clone(),
        goal,
        reach: Reach::Owners,
        rules,
        asker,
        budgets,
        recheck,
        port_only: service.port_only,
        evict: goal != Goal::Wait && service.evict,
    }
}

/// What the observer shall watch for these services.
fn watched<'a>(services: impl Iterator<Item = &'a Arc<Service>>) -> Vec<Watched> {
    let mut ports: BTreeMap<Port, bool> = BTreeMap::new();
    for service in services {
        for port in service.ports() {
            *ports.entry(port).or_default() |= service.is_strict();
        }
    }
    ports.into_iter().map(|(port, connections)| Watched { port, connections }).collect()
}
