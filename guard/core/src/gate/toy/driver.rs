//! The toy adapter: performs the gate's actions on the toy kernel as the
//! contract says, and checks after every step what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::kernel::{Kernel, Key};
use super::process::{Place, Role};
use super::view::{Truth, Viewer, in_the_way};
use super::weather::{Fate, Weather};
use super::{BEGIN, ms};
use crate::conflict::{Conflict, conflict};
use crate::gate::{Action, EvictionFailure, Fact, Gate, Goal, Hint, Outcome, Plan, Reach, SignalFailure};
use crate::model::{BindOutcome, Instant, Owners, ProcessId, Signal, Snapshot, Socket, StartTime};
use crate::timeline::Entry;

/// More steps than any run needs: a run that takes more spins.
const MOST_STEPS: usize = 500_000;

/// Something that reaches the caller, or a stage of what it is doing.
#[derive(Debug)]
enum Stage {
    Probe { begun: Instant },
    Table { begun: Instant },
    Sockets { begun: Instant, also: Vec<ProcessId>, everybody: bool },
    Owners { begun: Instant, also: Vec<ProcessId>, everybody: bool, rows: Vec<(Key, Socket)> },
    KillCgroup(String, Vec<ProcessId>),
    Signal(ProcessId, Signal),
    Evict(Socket),
    Answer(Fact, Option<Truth>),
}

/// One signal that the gate asked for.
#[derive(Clone, Copy, Debug)]
pub(in crate::gate) struct Sent {
    pub(in crate::gate) process: ProcessId,
    pub(in crate::gate) signal: Signal,
    pub(in crate::gate) asked: Instant,
    pub(in crate::gate) delivered: Option<Instant>,
}

/// How a run went.
#[derive(Debug)]
pub(in crate::gate) struct Report {
    /// `None`: it was still alive when the test's patience was over.
    pub(in crate::gate) outcome: Option<Outcome>,
    pub(in crate::gate) at: Instant,
    pub(in crate::gate) sent: Vec<Sent>,
    /// The sockets that were destroyed.
    pub(in crate::gate) evicted: Vec<Socket>,
    /// Since when the endpoints were bindable without a break, if they were.
    pub(in crate::gate) bindable_since: Option<Instant>,
    /// When the gate was last told of something that undoes a proof.
    pub(in crate::gate) last_doubt: Option<Instant>,
    /// When the last signalled process ended, if all did.
    pub(in crate::gate) all_gone: Option<Instant>,
    pub(in crate::gate) probes: usize,
    /// How often a cgroup was ended as a whole.
    pub(in crate::gate) cgroup_kills: usize,
    pub(in crate::gate) timeline: String,
    pub(in crate::gate) gate: Gate,
    pub(in crate::gate) kernel: Kernel,
}

/// A run under way.
#[derive(Debug)]
pub(in crate::gate) struct Driver {
    pub(in crate::gate) kernel: Kernel,
    gate: Gate,
    viewer: Viewer,
    weather: Weather,
    requested: StartTime,
    inbox: BTreeMap<(Instant, u64), Stage>,
    number: u64,
    watched: BTreeSet<ProcessId>,
    gone: BTreeMap<ProcessId, Instant>,
    sent: Vec<Sent>,
    evicted: Vec<Socket>,
    bindable_since: Option<Instant>,
    probes: BTreeMap<Instant, bool>,
    probe_count: usize,
    seen_first: BTreeSet<ProcessId>,
    /// The last snapshot that was delivered: when it began, what was true.
    last_look: Option<(Instant, Truth)>,
    /// The last table or snapshot that was delivered, and whether it showed a
    /// certain conflict.
    last_rows: Option<(Instant, bool)>,
    /// The last moment of which the gate was told that the port may have been taken.
    taken: Option<Instant>,
    lost: Option<Instant>,
    doubted: Option<Instant>,
    /// Whom `--tree` has reached.
    descended: BTreeSet<ProcessId>,
    cgroup_kills: usize,
    /// Where everybody lived who was sent SIGTERM.
    termed_at: BTreeMap<ProcessId, Place>,
}

impl Driver {
    pub(in crate::gate) fn new(plan: Plan, kernel: Kernel, viewer: Viewer, weather: Weather) -> Self {
        let requested = plan.asker.requested;
        Self {
            kernel,
            gate: Gate::new(plan, BEGIN),
            viewer,
            weather,
            requested,
            inbox: BTreeMap::new(),
            number: 0,
            watched: BTreeSet::new(),
            gone: BTreeMap::new(),
            sent: Vec::new(),
            evicted: Vec::new(),
            bindable_since: None,
            probes: BTreeMap::new(),
            probe_count: 0,
            seen_first: BTreeSet::new(),
            last_look: None,
            last_rows: None,
            taken: None,
            lost: None,
            doubted: None,
            descended: BTreeSet::new(),
            cgroup_kills: 0,
            termed_at: BTreeMap::new(),
        }
    }

    /// Runs until the gate ends, but no longer than `patience`.
    pub(in crate::gate) fn run(mut self, patience: Duration) -> Report {
        let until = BEGIN + patience;
        self.note_bindable();
        for _ in 0..MOST_STEPS {
            self.perform_all();
            if self.gate.outcome().is_some() || self.kernel.now >= until {
                return self.report();
            }
            self.wait(until);
        }
        panic!("the gate spins at {:?}: {:?}", self.kernel.now, self.gate);
    }

    fn report(mut self) -> Report {
        let at = self.kernel.now;
        if self.gate.outcome().is_some() {
            self.check_that_it_stays_ended();
        }
        let ends = self.sent.iter().map(|sent| self.gone.get(&sent.process).copied());
        let all_gone = ends.collect::<Option<Vec<_>>>().and_then(|ends| ends.into_iter().max());
        Report {
            outcome: self.gate.outcome().cloned(),
            at,
            all_gone,
            bindable_since: self.bindable_since,
            last_doubt: self.doubted,
            probes: self.probe_count,
            cgroup_kills: self.cgroup_kills,
            timeline: format!("{:?}", self.gate.timeline()),
            sent: self.sent,
            evicted: self.evicted,
            gate: self.gate,
            kernel: self.kernel,
        }
    }

    /// Sleeps until the next event or deadline.
    fn wait(&mut self, until: Instant) {
        let deadline = self.gate.next_deadline().expect("a live gate has a deadline");
        assert!(deadline > self.kernel.now || !self.inbox.is_empty(), "a deadline that never ends");
        let early = self.weather.early();
        let wake = Instant::from_nanos(
            deadline.as_nanos().saturating_sub(u64::try_from(early.as_nanos()).unwrap_or(0)),
        );
        let wake = if wake > self.kernel.now { wake } else { deadline };
        let inbox = self.inbox.first_key_value().map(|((at, _), _)| *at);
        let events = [inbox, self.kernel.next_happening()];
        let next = events.into_iter().flatten().fold(wake.min(until), Instant::min).max(self.kernel.now);
        while self.kernel.step(next) {
            self.note_bindable();
            self.pass_on();
        }
        while let Some(entry) = self.inbox.first_entry().filter(|entry| entry.key().0 <= next) {
            let stage = entry.remove();
            self.carry_out(stage);
            self.perform_all();
            if self.gate.outcome().is_some() {
                return;
            }
        }
        if next >= wake {
            self.gate.on_deadline(next);
            self.check_live();
        }
    }

    fn note_bindable(&mut self) {
        let now = self.kernel.now;
        let uid = self.viewer.uid;
        let endpoints = &self.gate.plan().endpoints;
        let bindable = endpoints.iter().all(|spec| self.kernel.is_bindable(spec, uid));
        self.bindable_since = bindable.then(|| self.bindable_since.unwrap_or(now));
    }

    /// What the kernel reported, on its way to the gate.
    fn pass_on(&mut self) {
        for (at, hint) in std::mem::take(&mut self.kernel.hints) {
            let answer = |hint| Stage::Answer(Fact::Hinted { hint, at }, None);
            match self.weather.fate() {
                None => {}
                Some(Fate::Arrives(after)) => self.post(after, answer(hint)),
                Some(Fate::ArrivesTwice(first, second)) => {
                    self.post(first, answer(hint));
                    self.post(second, answer(hint));
                }
                Some(Fate::IsLost(after)) => {
                    self.post(after, Stage::Answer(Fact::EventsLost { count: 1 }, None));
                }
            }
        }
        for process in std::mem::take(&mut self.kernel.ended) {
            self.gone.insert(process, self.kernel.now);
            if self.watched.contains(&process) {
                let after = self.weather.latency();
                self.post(after, Stage::Answer(Fact::OwnerGone { process, status: None }, None));
            }
        }
    }

    fn post(&mut self, after: Duration, stage: Stage) {
        self.number += 1;
        self.inbox.insert((self.kernel.now + after, self.number), stage);
    }

    fn perform_all(&mut self) {
        while let Some(action) = self.gate.next_action() {
            assert!(self.gate.outcome().is_none(), "an action after the end: {action:?}");
            let soon = self.weather.latency();
            let begun = self.kernel.now + soon;
            match action {
                Action::Probe => {
                    self.check_probe();
                    let evaluated = soon + self.weather.latency();
                    self.post(evaluated, Stage::Probe { begun });
                }
                Action::ReadTable => {
                    let read = soon + self.weather.latency();
                    self.post(read, Stage::Table { begun });
                }
                Action::TakeSnapshot { also, learn, everybody } => {
                    assert!(
                        !learn || self.sent.is_empty(),
                        "a socket is held open although its end is awaited"
                    );
                    let read = soon + self.weather.latency();
                    self.post(read, Stage::Sockets { begun, also, everybody });
                }
                Action::Watch(process) => {
                    if self.kernel.process(process).is_some() {
                        self.watched.insert(process);
                    } else {
                        self.post(soon, Stage::Answer(Fact::OwnerGone { process, status: None }, None));
                    }
                }
                Action::Evict(socket) => {
                    self.check_eviction(&socket);
                    self.post(soon, Stage::Evict(socket));
                }
                Action::KillCgroup { cgroup, members } => {
                    assert_eq!(self.gate.plan().reach, Reach::Cgroup, "nobody asked for a whole cgroup");
                    for &process in &members {
                        self.check_signal(process, Signal::Kill);
                        let (signal, asked) = (Signal::Kill, self.kernel.now);
                        self.sent.push(Sent { process, signal, asked, delivered: None });
                    }
                    self.post(soon, Stage::KillCgroup(cgroup, members));
                }
                Action::Signal { process, signal } => {
                    self.check_signal(process, signal);
                    let asked = self.kernel.now;
                    self.sent.push(Sent { process, signal, asked, delivered: None });
                    self.post(soon, Stage::Signal(process, signal));
                }
            }
        }
    }

    fn carry_out(&mut self, stage: Stage) {
        let after = self.weather.latency();
        match stage {
            Stage::Probe { begun } => {
                let outcomes = self.kernel.probe(self.gate.plan(), &self.viewer);
                let bindable = outcomes.iter().all(|outcome| *outcome == BindOutcome::Bindable);
                self.probes.insert(begun, bindable);
                self.probe_count += 1;
                self.post(after, Stage::Answer(Fact::Probed { outcomes, begun }, None));
            }
            Stage::Table { begun } => {
                let fact = if self.weather.look_fails() {
                    Fact::SnapshotFailed("netlink: EINTR".to_owned())
                } else {
                    let rows = self.kernel.table(&self.viewer);
                    Fact::TableRead { sockets: rows.into_iter().map(|(_, row)| row).collect(), begun }
                };
                self.post(after, Stage::Answer(fact, None));
            }
            Stage::Sockets { begun, also, everybody } => {
                let rows = self.kernel.table(&self.viewer);
                self.post(after, Stage::Owners { begun, also, everybody, rows });
            }
            Stage::Owners { .. } if self.weather.look_fails() => {
                self.post(after, Stage::Answer(Fact::SnapshotFailed("proc: EIO".to_owned()), None));
            }
            Stage::Owners { begun, also, everybody, rows } => {
                self.read_owners(begun, also, everybody, rows, after);
            }
            Stage::KillCgroup(cgroup, members) => {
                let fact = if self.kernel.kill_cgroup(&cgroup, &members) {
                    self.cgroup_kills += 1;
                    let now = self.kernel.now;
                    for sent in self.sent.iter_mut().filter(|sent| sent.signal == Signal::Kill) {
                        if members.contains(&sent.process) {
                            sent.delivered = Some(now);
                        }
                    }
                    Fact::CgroupKilled(members)
                } else {
                    Fact::CgroupNotKilled { members, why: "somebody else came in".to_owned() }
                };
                self.pass_on();
                self.post(after, Stage::Answer(fact, None));
            }
            Stage::Signal(process, signal) => {
                let fact = self.deliver(process, signal);
                self.post(after, Stage::Answer(fact, None));
            }
            Stage::Evict(socket) => {
                let fact = if !self.viewer.privileged {
                    let failure = EvictionFailure::NotPermitted("CAP_NET_ADMIN".to_owned());
                    Fact::EvictionFailed { socket, failure }
                } else if self.kernel.destroy(socket.cookie.map_or(0, |cookie| cookie.0)) {
                    self.evicted.push(socket.clone());
                    Fact::Evicted(socket)
                } else {
                    Fact::EvictionFailed { socket, failure: EvictionFailure::Gone }
                };
                self.note_bindable();
                self.pass_on();
                self.post(after, Stage::Answer(fact, None));
            }
            Stage::Answer(fact, truth) => self.tell(fact, truth),
        }
    }

    fn check_eviction(&self, socket: &Socket) {
        let plan = self.gate.plan();
        assert!(plan.evict && plan.goal == Goal::Free, "nobody asked for an eviction");
        assert!(
            self.sent.iter().all(|sent| self.gone.contains_key(&sent.process)
                || self.is_spared(sent.process)
                || self.kernel.process(sent.process).is_none_or(|proc| proc.role != Role::Service)),
            "an eviction before everybody who is being ended is gone"
        );
        let (_, truth) = self.last_look.as_ref().expect("a look comes before any eviction");
        assert!(
            !truth.owned.contains(&socket.cookie.expect("a cookie").0),
            "{socket:?} has a protected owner, or is an owned listener"
        );
        let others = truth
            .strangers
            .iter()
            .any(|(key, _)| self.kernel.sockets.get(key).is_some_and(|sock| in_the_way(plan, &sock.bucket)));
        assert!(!others, "an eviction in vain: a stranger listens");
    }

    fn read_owners(
        &mut self,
        begun: Instant,
        also: Vec<ProcessId>,
        everybody: bool,
        rows: Vec<(Key, Socket)>,
        after: Duration,
    ) {
        let viewer = self.viewer;
        let sockets: Vec<(Socket, Owners)> = rows
            .into_iter()
            .map(|(key, row)| {
                let owners = match row.inode {
                    Some(_) => self.kernel.owners(key, &viewer),
                    None => Owners::NoFile,
                };
                (row, owners)
            })
            .collect();
        let read = sockets.iter().flat_map(|(_, owners)| owners.seen().to_vec()).chain(also);
        let processes = self.kernel.evidence(read, everybody, &viewer);
        let seen = processes.values().map(|process| process.id).collect();
        let seen_first = if self.last_look.is_none() { &seen } else { &self.seen_first };
        let plan = self.gate.plan();
        let mut truth = self.kernel.truth(plan, &viewer, self.requested, seen_first);
        if plan.reach == Reach::Tree {
            // Once reached, a process may be ended although its ancestor is gone.
            let is_old = |id: &ProcessId| {
                id.start < self.requested || (id.start == self.requested && seen_first.contains(id))
            };
            self.descended.extend(self.kernel.descendants(&truth, &viewer).into_iter().filter(is_old));
            truth.stale.extend(&self.descended);
        }
        let snapshot =
            Snapshot { begun, ended: self.kernel.now, sockets, processes, ancestors: BTreeMap::new() };
        self.post(after, Stage::Answer(Fact::SnapshotTaken(snapshot), Some(truth)));
    }

    fn deliver(&mut self, process: ProcessId, signal: Signal) -> Fact {
        let foreign = self.kernel.process(process).is_some_and(|proc| proc.birth.uid != self.viewer.uid);
        let sent = if foreign && !self.viewer.privileged {
            Err(SignalFailure::NotPermitted)
        } else {
            self.kernel.signal(process, signal)
        };
        self.pass_on();
        match sent {
            Ok(()) => {
                let now = self.kernel.now;
                let is_it = |sent: &&mut Sent| sent.process == process && sent.signal == signal;
                let last = self.sent.iter_mut().rev().find(is_it);
                if let Some(sent) = last {
                    sent.delivered = Some(now);
                }
                Fact::SignalDelivered { process, signal }
            }
            Err(failure) => Fact::SignalFailed { process, signal, failure },
        }
    }

    fn tell(&mut self, fact: Fact, truth: Option<Truth>) {
        let now = self.kernel.now;
        match &fact {
            Fact::SnapshotTaken(snapshot) => {
                if self.last_look.is_none() {
                    self.seen_first = snapshot.processes.values().map(|process| process.id).collect();
                }
                self.last_look = truth.map(|truth| (snapshot.begun, truth));
                if self.lost.is_some_and(|lost| snapshot.begun >= lost) {
                    self.lost = None;
                }
                let rows: Vec<&Socket> = snapshot.sockets.iter().map(|(row, _)| row).collect();
                self.note_rows(snapshot.begun, &rows);
            }
            Fact::TableRead { sockets, begun } => {
                let rows: Vec<&Socket> = sockets.iter().collect();
                self.note_rows(*begun, &rows);
            }
            Fact::Hinted { hint: Hint::ListenerOpened { .. }, at } => {
                self.taken = self.taken.max(Some(*at));
                self.doubted = Some(now);
            }
            Fact::EventsLost { .. } => {
                // Of losses that follow each other the first counts: a look may always be
                // outdated by one more.
                self.lost = self.lost.or(Some(now));
                self.doubted = Some(now);
                self.taken = self.taken.max(Some(now));
            }
            _ => {}
        }
        self.gate.observe(fact, now);
        self.check_live();
        self.check_opening();
    }

    fn note_rows(&mut self, begun: Instant, rows: &[&Socket]) {
        let endpoints = &self.gate.plan().endpoints;
        let certain =
            rows.iter().any(|row| endpoints.iter().any(|spec| conflict(spec, row) == Conflict::Certain));
        if self.last_rows.is_none_or(|(last, _)| last <= begun) {
            self.last_rows = Some((begun, certain));
        }
    }

    /// A strict bind is looked for first and probed only when nothing is in its way.
    fn check_probe(&self) {
        let strict = self.gate.plan().endpoints.iter().any(|spec| !spec.reuse_address);
        if strict {
            let clear = self.last_rows.is_some_and(|(_, certain)| !certain);
            assert!(clear, "a strict probe while the table shows a conflict");
        }
    }

    fn check_signal(&mut self, process: ProcessId, signal: Signal) {
        let plan = self.gate.plan();
        assert_eq!(plan.goal, Goal::Free, "only a run that frees the port signals anybody");
        let (begun, truth) = self.last_look.as_ref().expect("a look comes before any signal");
        assert!(
            truth.stale.contains(&process),
            "{signal} to {process:?}, which the last look shows otherwise"
        );
        let kin = self.kernel.process(process).is_some_and(|proc| {
            proc.role == Role::Kin || proc.role == Role::KernelThread || proc.role == Role::Roommate
        });
        assert!(!kin, "{signal} to a protected process");
        let before: Vec<&Sent> = self.sent.iter().filter(|sent| sent.process == process).collect();
        match signal {
            Signal::Continue => {
                assert!(
                    before.iter().any(|sent| sent.signal == Signal::Term),
                    "SIGCONT without a SIGTERM before"
                );
            }
            Signal::Term => {
                assert!(before.is_empty(), "a second SIGTERM to {process:?}");
                if let Some(&place) = truth.places.get(&process) {
                    self.termed_at.insert(process, place);
                }
                let stays = truth.strangers.iter().find(|(key, owner)| {
                    let blocks = |sock: &super::kernel::Sock| in_the_way(plan, &sock.bucket);
                    self.kernel.sockets.get(key).is_some_and(blocks)
                        && self.kernel.process(*owner).is_some_and(|proc| proc.descriptors.contains(key))
                });
                assert_eq!(stays, None, "SIGTERM although a stranger holds the port");
            }
            Signal::Kill => {
                // A cgroup that could not be ended as a whole is ended one by one.
                let others: Vec<&&Sent> = before
                    .iter()
                    .filter(|sent| sent.signal != Signal::Continue && sent.delivered.is_some())
                    .collect();
                let [term] = others.as_slice() else { panic!("SIGKILL after {before:?}") };
                let moved = truth.places.get(&process).zip(self.termed_at.get(&process));
                assert!(
                    !moved.is_some_and(|(now, then)| now.changes_hands(*then)),
                    "SIGKILL to {process:?}, which is in other hands since SIGTERM"
                );
                let due = term.delivered.expect("SIGTERM was delivered") + plan.budgets.drain;
                assert!(due <= self.kernel.now, "SIGKILL before the drain budget was spent");
                assert!(due <= *begun, "SIGKILL on a look from within the drain budget");
            }
        }
    }

    fn check_live(&self) {
        let deadline = self.gate.next_deadline();
        match self.gate.outcome() {
            Some(_) => assert_eq!(deadline, None, "a deadline after the end"),
            None => {
                let deadline = deadline.expect("a live gate has a deadline");
                assert!(deadline <= self.kernel.now + ms(60_000), "the next deadline is never");
            }
        }
    }

    /// It became somebody else's after SIGTERM: nobody waits for it, not even once it has died.
    fn is_spared(&self, wanted: ProcessId) -> bool {
        let entries = self.gate.timeline().entries().iter();
        entries.rev().any(|(_, entry)| matches!(entry, Entry::Spared { process, .. } if *process == wanted))
    }

    fn check_opening(&self) {
        let Some(Outcome::Opened(proof)) = self.gate.outcome() else { return };
        let plan = self.gate.plan();
        assert_eq!(proof.endpoints, plan.endpoints);
        assert_eq!(self.probes.get(&proof.probed), Some(&true), "no probe says so");
        assert!(self.taken.is_none_or(|taken| taken <= proof.probed), "a hint contradicts the proof");
        assert_eq!(self.lost, None, "opened after lost events without a look");
        if !plan.port_only {
            for sent in &self.sent {
                // Who became somebody else's is not waited for.
                let stays = self.kernel.process(sent.process).filter(|proc| {
                    let then = self.termed_at.get(&sent.process);
                    let moved = then.is_some_and(|then| proc.birth.place.changes_hands(*then));
                    let service = &self.kernel.service;
                    proc.role == Role::Service && !moved && service.recognises(proc, plan.rules.any_owner)
                });
                assert!(stays.is_none(), "opened while {:?} is alive", sent.process);
                let gone = self.gone.get(&sent.process);
                assert!(
                    self.is_spared(sent.process) || gone.is_none_or(|gone| *gone <= proof.probed),
                    "the proof is older than an end"
                );
            }
        }
    }

    /// An outcome is final: whatever comes now, the gate does nothing.
    fn check_that_it_stays_ended(&mut self) {
        let outcome = self.gate.outcome().cloned();
        let entries = self.gate.timeline().entries().len();
        let stages: Vec<Stage> = std::mem::take(&mut self.inbox).into_values().collect();
        for stage in stages {
            if let Stage::Answer(fact, _) = stage {
                self.gate.observe(fact, self.kernel.now);
            }
        }
        self.gate.observe(Fact::EventsLost { count: 1 }, self.kernel.now);
        self.gate.on_deadline(self.kernel.now + ms(1_000));
        assert_eq!(self.gate.next_action(), None);
        assert_eq!(self.gate.next_deadline(), None);
        assert_eq!(self.gate.outcome().cloned(), outcome);
        assert_eq!(self.gate.timeline().entries().len(), entries);
    }
}
