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
mod requests;
mod run;
mod service;
mod standing;

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use guard_core::follow::Follow;
use guard_core::gate::{Budgets, Fact, Gate, Goal, Hint, Outcome, Plan, Reach};
use guard_core::model::{Instant, Port, ProcessId, Socket, TcpState, Tgid};
use guard_core::timeline::Entry;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

use self::batch::{Asked, Batch, part};
use self::run::{Run, Starting, drive, waited};
pub use self::service::{
    End, Kind, Opened, Refused, Request, RunInfo, RunNumber, Service, Ticket, Waited, Witness,
};
use self::standing::Standing;
use super::asker;
use super::doors::Doors;
use super::{Alarm, FOLLOW_RECHECK, RuntimeError, in_loop, now};
use crate::act::{Command, CommandError};
use crate::observe::{
    ExitWatch, Looker, Observer, OwnerSource, Tier, TierChoice, Tuning, Watched, read_table,
};

/// From SIGKILL until a process counts as unkillable.
const CONFIRM: Duration = Duration::from_secs(5);

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
}

/// The event loop of all services in one network namespace.
#[derive(Debug)]
pub struct Engine<W> {
    doors: Doors,
    alarm: Alarm,
    looks: Batch<RunNumber>,
    standing_looks: Batch<Arc<str>>,
    services: BTreeMap<Arc<str>, Standing>,
    runs: BTreeMap<RunNumber, Run>,
    commands: JoinSet<(RunNumber, Result<ExitStatus, CommandError>)>,
    numbers: Arc<AtomicU64>,
    requests: mpsc::Receiver<Request>,
    poll_at: Instant,
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
        mut witness: W,
        settled: impl FnOnce(),
    ) -> Result<Self, RuntimeError> {
        let services: BTreeMap<Arc<str>, Standing> = services
            .into_iter()
            .map(|service| (Arc::clone(&service.name), Standing::new(Arc::new(service))))
            .collect();
        let watched = watched(services.values().map(|standing| &standing.service));
        let tuning = Tuning { standing: true, ..sources.poll_interval.into() };
        let (mut observer, owners) = Observer::start(sources.choice, &watched, tuning)?;
        observer.upgrade_now().await;
        if let Some(required) = sources.require {
            observer.require(required).await?;
        }
        settled();
        witness.tier(observer.tier(), observer.shortfall());
        let exits = ExitWatch::new().map_err(in_loop("watch processes for their exit"))?;
        Ok(Self {
            doors: Doors::new(observer, exits),
            alarm: Alarm::new().map_err(in_loop("set up a timer"))?,
            looks: Batch::new(Looker::start(Vec::new(), owners, now)?),
            standing_looks: Batch::new(Looker::start(Vec::new(), OwnerSource::proc(), now)?),
            services,
            runs: BTreeMap::new(),
            commands: JoinSet::new(),
            numbers,
            requests,
            poll_at: now(),
            witness,
        })
    }

    /// Serves until nobody can ask for anything any more.
    ///
    /// # Errors
    ///
    /// When the loop's own descriptors fail: nothing is watched any more.
    pub async fn serve(mut self) -> Result<(), RuntimeError> {
        loop {
            self.work()?;
            if let Some(at) = self.next_deadline() {
                self.alarm.set(at).map_err(in_loop("set a timer"))?;
            }
            // Events before deadlines, and both before anybody's wishes.
            tokio::select! {
                biased;
                fact = self.doors.observer.next(now) => self.dispatch(&fact),
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
                (asked, fact) = self.standing_looks.next() => self.take_standing_looks(&asked, &fact),
                request = self.requests.recv() => match request {
                    Some(request) => self.take(request),
                    None => {
                        self.abandon_all("the sidecar was asked to stop");
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Lets every gate do what it wants, tells what came of it, and begins the
    /// looks that were asked for.
    fn work(&mut self) -> Result<(), RuntimeError> {
        for number in self.runs.keys().copied().collect::<Vec<_>>() {
            self.work_on(number);
        }
        self.begin_standing_looks();
        let Self { services, doors, standing_looks, .. } = self;
        let mut ended = Vec::new();
        for (name, standing) in services.iter_mut() {
            let Some(gate) = &mut standing.gate else { continue };
            let busy = self.runs.values().any(|run| run.info.service.name == *name);
            let asked = Asked {
                key: Arc::clone(name),
                ports: standing.ports.clone(),
                also: Vec::new(),
                learn: !busy,
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
        let Self { runs, doors, looks, witness, .. } = self;
        let Some(run) = runs.get_mut(&number) else { return };
        let _in_span = run.span.clone().entered();
        let asked =
            Asked { key: number, ports: run.ports.clone(), also: Vec::new(), learn: true, everybody: false };
        drive(&mut run.gate, &run.info.service, &asked, doors, &mut run.watched, |asked| looks.ask(asked));
        let tier = doors.observer.tier();
        for (at, entry) in &run.gate.timeline().entries()[run.told..] {
            witness.entry(&run.info, &run.gate, tier, *at, entry);
        }
        run.told = run.gate.timeline().entries().len();
        match run.gate.outcome() {
            None => {
                if run.info.kind == Kind::Gate && run.is_deserted() {
                    self.finish(number, |_| End::Abandoned("nobody waits for it any more"));
                }
            }
            Some(_) if run.starting.is_some() => self.follow(number),
            Some(Outcome::Opened(_)) if run.info.kind == Kind::Restart => self.start(number),
            Some(outcome) => {
                let waited = waited(number, outcome);
                run.answer(&waited);
                self.finish(number, |gate| {
                    gate.outcome().map_or(End::Abandoned("it ended without an outcome"), End::Gate)
                });
            }
        }
    }

    /// The gate is open: starts the service.
    fn start(&mut self, number: RunNumber) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        let Some(argv) = &run.info.service.start else {
            return self.finish(number, |_| End::StartFailed("there is no command to start it".to_owned()));
        };
        let began = now();
        let mut command = match Command::start(argv) {
            Ok(command) => command,
            Err(error) => return self.finish(number, |_| End::StartFailed(error.to_string())),
        };
        let pid = command.pid();
        let text =
            pid.map_or_else(|| "command started".to_owned(), |pid| format!("command started as pid {pid}"));
        self.witness.step(&run.info, began, "command_started", pid, text);
        run.starting = Some(Starting {
            command: Tgid(pid.unwrap_or(0)),
            deadline: began + run.info.service.start_budget,
            look_at: began,
            looking: false,
        });
        self.commands.spawn(async move { (number, command.wait().await) });
    }

    fn command_ended(&mut self, number: RunNumber, status: Result<ExitStatus, CommandError>) {
        let Some(run) = self.runs.get_mut(&number) else {
            debug!(?status, "a command outlived its run and has ended");
            return;
        };
        match status {
            // It may have handed the start to somebody else, such as a service manager.
            Ok(status) if status.success() => {
                let text = "the command exited with code 0".to_owned();
                self.witness.step(&run.info, now(), "command_ended", None, text);
                run.hasten();
            }
            Ok(status) => self.finish(number, |_| End::StartFailed(format!("the command failed: {status}"))),
            Err(error) => self.finish(number, |_| End::StartFailed(error.to_string())),
        }
    }

    /// Looks whether the service listens again, when it is time to.
    fn follow(&mut self, number: RunNumber) {
        let (pace, at) = (self.follow_pace(), now());
        let Some(run) = self.runs.get_mut(&number) else { return };
        let Some(starting) = &mut run.starting else { return };
        if starting.deadline <= at {
            let budget = run.info.service.start_budget;
            return self
                .finish(number, |_| End::StartFailed(format!("nobody listens {budget:?} after the start")));
        }
        if starting.looking || starting.look_at > at {
            return;
        }
        starting.look_at = at + pace;
        // The table is cheap to read; who owns a listener is asked when there is one.
        let listens = |socket: &Socket| socket.state == TcpState::Listen;
        if read_table(&run.ports).map_or(true, |table| table.iter().any(listens)) {
            starting.looking = true;
            let ports = run.ports.clone();
            self.looks.ask(Asked { key: number, ports, also: Vec::new(), learn: false, everybody: false });
        }
    }

    /// Only the ebpf tier tells of new listeners.
    fn follow_pace(&self) -> Duration {
        match self.doors.observer.tier() {
            Tier::Ebpf => self.doors.observer.recheck(),
            Tier::Netlink | Tier::Poll => FOLLOW_RECHECK,
        }
    }

    fn take_looks(&mut self, asked: &[Asked<RunNumber>], fact: &Fact) {
        for asked in asked {
            let fact = part(fact, asked);
            if let Fact::SnapshotTaken(snapshot) = &fact {
                self.doors.observer.look(snapshot, &asked.ports);
            }
            let Some(run) = self.runs.get_mut(&asked.key) else { continue };
            let Some(starting) = &mut run.starting else {
                run.gate.observe(fact, now());
                continue;
            };
            starting.looking = false;
            let Fact::SnapshotTaken(snapshot) = &fact else { continue };
            if let Some(found) = run.found(snapshot) {
                if let Some(why) = run.stranger(snapshot, found) {
                    self.finish(asked.key, |_| End::StartFailed(why));
                    continue;
                }
                let (step, pid, text) = found_words(found);
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
    fn finish<'e>(&mut self, number: RunNumber, end: impl FnOnce(&Gate) -> End<'_> + 'e) {
        let Some(run) = self.runs.remove(&number) else { return };
        let _in_span = run.span.clone().entered();
        let tier = self.doors.observer.tier();
        self.witness.ended(&run.info, &run.gate, tier, now(), &end(&run.gate));
        match self.services.get_mut(&run.info.service.name) {
            Some(standing) => standing.outdated = true,
            None => self.watch_ports(),
        }
    }

    fn abandon_all(&mut self, why: &'static str) {
        for number in self.runs.keys().copied().collect::<Vec<_>>() {
            self.finish(number, |_| End::Abandoned(why));
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
        runs.chain(standing).chain(poll).min()
    }

    fn is_busy(&self, name: &Arc<str>) -> bool {
        self.runs.values().any(|run| run.info.service.name == *name)
    }

    fn dispatch(&mut self, fact: &Fact) {
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

    fn all(&mut self, fact: &Fact, at: Instant, entry: &Entry) {
        for run in self.runs.values_mut() {
            run.gate.observe(fact.clone(), at);
            run.hasten();
        }
        for standing in self.services.values_mut() {
            standing.outdated = true;
        }
        self.witness.happened_to_all(at, entry);
    }

    fn hinted(&mut self, hint: Hint, when: Instant, fact: &Fact) {
        let Some(port) = port(&hint) else { return };
        for run in self.runs.values_mut().filter(|run| run.ports.contains(&port)) {
            run.gate.observe(fact.clone(), now());
            if matches!(hint, Hint::ListenerOpened { .. }) {
                run.hasten();
            }
        }
        if matches!(hint, Hint::ConnectionReleased { .. }) {
            return;
        }
        self.tell_outside_runs(port, when, &Entry::Event(hint));
        for standing in self.services.values_mut().filter(|standing| standing.ports.contains(&port)) {
            standing.outdated = true;
        }
    }

    /// Tells what happened on `port`, of the services whose runs do not tell it.
    fn tell_outside_runs(&mut self, port: Port, at: Instant, entry: &Entry) {
        for (name, standing) in self.services.iter().filter(|(_, standing)| standing.ports.contains(&port)) {
            let tells = |run: &Run| run.info.service.name == *name && run.at_gate();
            if !self.runs.values().any(tells) {
                self.witness.happened(&standing.service, at, entry);
            }
        }
    }

    fn gone(&mut self, process: ProcessId, fact: &Fact) {
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

    fn begin_standing_looks(&mut self) {
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
            Err(error) => return warn!(%error, "cannot look at the services"),
        };
        let recheck = self.doors.observer.recheck();
        for name in &due {
            let Some(standing) = self.services.get_mut(name) else { continue };
            let budgets = Budgets { total: Some(LOOK_BUDGET), ..standing.service.budgets };
            let plan = plan(&standing.service, Goal::Look, budgets, recheck, asker.clone());
            standing.begin(Gate::new(plan, at), at);
        }
    }

    fn take_standing_looks(&mut self, asked: &[Asked<Arc<str>>], fact: &Fact) {
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

    fn standing_ended(&mut self, name: &Arc<str>) {
        let Some(standing) = self.services.get_mut(name) else { return };
        let Some(gate) = standing.gate.take() else { return };
        self.witness.looked(&standing.service, &gate, self.doors.observer.tier(), now());
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

/// A plan for a run on `service`.
fn plan(
    service: &Service,
    goal: Goal,
    budgets: Budgets,
    recheck: Duration,
    asker: guard_core::policy::Asker,
) -> Plan {
    Plan {
        endpoints: service.endpoints.clone(),
        goal,
        reach: Reach::Owners,
        rules: if goal == Goal::Wait { guard_core::policy::Rules::default() } else { (service.rules)() },
        asker,
        budgets: Budgets { confirm: CONFIRM, ..budgets },
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

const fn port(hint: &Hint) -> Option<Port> {
    match hint {
        Hint::ListenerOpened { port, .. }
        | Hint::ListenerClosed { port, .. }
        | Hint::SocketReleased { port, .. }
        | Hint::ConnectionReleased { port }
        | Hint::TimeWaitEnded { port } => Some(*port),
        Hint::OwnerExiting { .. } => None,
    }
}

fn found_words(found: Follow) -> (&'static str, Option<u32>, String) {
    match found {
        Follow::Listening(process) => ("listening", Some(process.tgid.0), format!("pid {process} listens")),
        Follow::Other(process) => (
            "other_listens",
            Some(process.tgid.0),
            format!("pid {process} listens, which does not descend from the command"),
        ),
        Follow::Hidden | Follow::NotYet => {
            ("listening", None, "somebody listens; the owner is not visible".to_owned())
        }
    }
}
