//! A hundred thousand machines by chance: trees, units, sharers, rivals,
//! respawns and reused numbers, and a guard that is asked to free the port.
//!
//! The toy [driver](super::toy::Driver) knows who each process truly is, and
//! fails the run that signals anybody who is not stale. Here is only the chance,
//! from a seed: the same number is the same machine.

use std::time::Duration;

use super::toy::{
    Birth, Driver, Fate, GUARD, Happening, Kernel, OnTerm, Place, Report, Role, SHELL, Service, Viewer,
    Weather, ms, plan, spec, strict, tick, us,
};
use super::{Goal, Outcome, Plan, Reach};
use crate::model::{
    ActiveState, BindSpec, KillMode, Manager, ProcessId, Signal, StartTime, TcpState, Uid, Unit, UnitName,
};
use crate::policy::{Class, UnitRule, UnitState};

const SCENARIOS: u64 = 100_000;

/// SplitMix64 (Steele, Lea and Flood, 2014): one word of state, and every seed is a good one.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn percent(&mut self, often: u64) -> bool {
        self.below(100) < often
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).expect("a short list")]
    }

    fn millis(&mut self, end: u64) -> Duration {
        ms(self.below(end))
    }
}

fn on_term(chance: &mut Chance) -> OnTerm {
    match chance.below(10) {
        0..=3 => OnTerm::Exit(chance.millis(30)),
        4 | 5 => OnTerm::Ignore,
        6 => OnTerm::CloseAndLinger(chance.millis(20), chance.percent(50).then(|| ms(30))),
        7 => OnTerm::HandOver(chance.millis(20)),
        _ => OnTerm::Become(chance.millis(40), chance.percent(50)),
    }
}

fn birth(chance: &mut Chance, uid: Uid) -> Birth {
    let role = if chance.percent(75) { Role::Service } else { Role::Stranger };
    let place = match chance.below(10) {
        0..=3 => Place::Unit,
        4..=6 => Place::Session,
        _ => chance.of(&Place::ALL),
    };
    Birth {
        uid: if chance.percent(85) { uid } else { Uid(8) },
        on_term: on_term(chance),
        teardown: us(chance.below(20_000)),
        release: us(1 + chance.below(500)),
        threads: if chance.percent(20) { 8 } else { 1 },
        stuck: chance.percent(5),
        stopped: chance.percent(8),
        respawn: chance.percent(15).then(|| chance.millis(20)),
        listens: vec![spec("127.0.0.1")],
        place,
        ..Birth::of(role)
    }
}

/// A machine, and a guard with its rules.
struct Scenario {
    kernel: Kernel,
    plan: Plan,
    viewer: Viewer,
    weather: Weather,
}

impl Scenario {
    fn of(seed: u64) -> Self {
        let chance = &mut Chance(seed);
        let uid = if chance.percent(80) { Uid(0) } else { Uid(7) };
        let privileged = uid == Uid(0);
        let endpoints = match chance.below(5) {
            0 => vec![spec("127.0.0.1"), spec("::1")],
            1 => vec![strict("127.0.0.1")],
            _ => vec![spec("127.0.0.1")],
        };
        let mut kernel = Kernel::new();
        let family = family(chance, &mut kernel, uid, &endpoints);
        bystanders(chance, &mut kernel, &family, &endpoints);
        later(chance, &mut kernel, &family, &endpoints);
        let mut plan = plan(endpoints);
        plan.goal = if chance.percent(95) { Goal::Free } else { Goal::Look };
        plan.reach = chance.of(&[Reach::Owners, Reach::Owners, Reach::Tree, Reach::Cgroup]);
        plan.evict = chance.percent(15);
        plan.port_only = chance.percent(15);
        plan.budgets.drain = ms(5 + chance.below(40));
        plan.budgets.confirm = ms(10);
        plan.budgets.total = Some(ms(120 + chance.below(120)));
        plan.asker.uid = uid;
        plan.asker.may_signal_others = privileged;
        recognise(chance, &mut kernel, &mut plan, &family);
        let viewer = Viewer { uid, privileged, flags: chance.percent(50), may_bind: true };
        Self { kernel, plan, viewer, weather: weather(chance) }
    }

    fn run(self) -> Report {
        Driver::new(self.plan, self.kernel, self.viewer, self.weather).run(Duration::from_secs(2))
    }
}

/// A tree of the service's and other processes, some of which hold the port.
fn family(chance: &mut Chance, kernel: &mut Kernel, uid: Uid, endpoints: &[BindSpec]) -> Vec<ProcessId> {
    let mut family = Vec::new();
    for _ in 0..chance.below(6) {
        let parent = (!family.is_empty() && chance.percent(70)).then(|| chance.of(&family));
        let mut birth = Birth { parent, ..birth(chance, uid) };
        if let Some(parent) = parent.and_then(|parent| kernel.process(parent)).filter(|_| chance.percent(70))
        {
            birth.place = parent.birth.place;
        }
        // Old, or of the request's own tick.
        let id =
            if chance.percent(90) { kernel.old(birth) } else { kernel.aged(birth, tick(super::toy::BEGIN)) };
        match (chance.below(4), family.first()) {
            (0, Some(&first)) => kernel.share(first, id),
            (1 | 2, _) => {
                let spec = chance.of(endpoints);
                if chance.percent(90) {
                    kernel.put(Some(id), &spec, TcpState::Listen);
                } else {
                    kernel.put(Some(id), &spec, TcpState::BoundInactive);
                }
            }
            _ => {}
        }
        family.push(id);
    }
    family
}

fn bystanders(chance: &mut Chance, kernel: &mut Kernel, family: &[ProcessId], endpoints: &[BindSpec]) {
    let Some(&first) = family.first() else { return };
    match chance.below(24) {
        0 => kernel.share(first, if chance.percent(50) { SHELL } else { GUARD }),
        1 => {
            let roommate = kernel.old(Birth { parent: Some(first), ..Birth::of(Role::Roommate) });
            kernel.share(first, roommate);
        }
        2 => {
            // Nobody signals it, but it descends from one who may be signalled.
            kernel.old(Birth { parent: Some(first), ..Birth::of(Role::Roommate) });
        }
        3 => {
            let thread = kernel.old(Birth::of(Role::KernelThread));
            kernel.share(first, thread);
        }
        4 => {
            kernel.put_time_wait(&chance.of(endpoints), ms(60));
        }
        5 => {
            let key = kernel.put(None, &chance.of(endpoints), TcpState::Listen);
            if let Some(sock) = kernel.sockets.get_mut(&key) {
                sock.pinned = true;
            }
        }
        6 => {
            let newcomer = kernel.aged(
                Birth { parent: Some(first), place: Place::Unit, ..Birth::of(Role::Service) },
                StartTime(tick(super::toy::BEGIN).0 + 1),
            );
            kernel.share(first, newcomer);
        }
        _ => {}
    }
}

/// Rivals, successors and reused numbers.
fn later(chance: &mut Chance, kernel: &mut Kernel, family: &[ProcessId], endpoints: &[BindSpec]) {
    for _ in 0..chance.below(5) {
        let reused = (!family.is_empty() && chance.percent(50)).then(|| chance.of(family).tgid);
        let newcomer = Birth {
            tgid: reused,
            listens: endpoints.to_vec(),
            holds: chance.percent(60).then(|| chance.millis(20)),
            on_term: OnTerm::Ignore,
            ..birth(chance, Uid(0))
        };
        kernel.later(chance.millis(100), Happening::Spawn(newcomer));
    }
    if !family.is_empty() && chance.percent(15) {
        let (moved, place) = (chance.of(family), chance.of(&Place::ALL));
        kernel.later(chance.millis(40), Happening::Move(moved, place));
    }
    if let Some(&first) = family.first().filter(|_| chance.percent(10)) {
        kernel.later(chance.millis(30), Happening::Exit(first));
    }
}

/// What the rules ask for, and what is true of that.
fn recognise(chance: &mut Chance, kernel: &mut Kernel, plan: &mut Plan, family: &[ProcessId]) {
    if chance.percent(10) {
        plan.rules.any_owner = true;
        plan.rules.patterns.clear();
        return;
    }
    if chance.percent(40) {
        return;
    }
    let by_unit_alone = chance.percent(40);
    if by_unit_alone {
        plan.rules.patterns.clear();
    }
    let restarted = chance.percent(40);
    let main = family.first().copied().filter(|_| chance.percent(30));
    let active = chance.percent(50);
    let (state, keeps_instance, main) = match chance.below(4) {
        0 => (UnitState::NoManager, false, None),
        1 => (UnitState::Unknown("timed out".to_owned()), true, None),
        _ => {
            let active_state = if active { ActiveState::Active } else { ActiveState::Failed };
            // A unit that does not run has no main process.
            let main = main.filter(|_| active);
            (UnitState::Known(unit(active_state, main)), active, main)
        }
    };
    let rule = UnitRule { state, restarted, ..UnitRule::named("gateway") };
    plan.rules.units.push(rule);
    kernel.service =
        Service { unit: true, by_unit_alone, restarted, keeps_instance: keeps_instance && !restarted, main };
}

fn unit(active_state: ActiveState, main_pid: Option<ProcessId>) -> Unit {
    Unit {
        name: UnitName::new("gateway"),
        manager: Manager::User(Uid(0)),
        main_pid,
        control_group: Some(Place::Unit.path().to_owned()),
        kill_mode: KillMode::ControlGroup,
        timeout_stop: Some(ms(90_000)),
        restart: "always".to_owned(),
        active_state,
        n_restarts: 3,
        result: "success".to_owned(),
    }
}

fn weather(chance: &mut Chance) -> Weather {
    let fates = chance.percent(70).then(|| {
        (0..3)
            .map(|_| match chance.below(6) {
                0 => Fate::IsLost(us(chance.below(5_000))),
                1 => Fate::ArrivesTwice(us(chance.below(2_000)), us(chance.below(2_000))),
                _ => Fate::Arrives(us(chance.below(1_000))),
            })
            .collect()
    });
    let slowest = if chance.percent(20) { 3_000 } else { 50 };
    let latencies = (0..5).map(|_| us(chance.below(slowest))).collect();
    let failures = if chance.percent(10) { vec![false, true, false, false] } else { Vec::new() };
    Weather::new(fates, latencies, Vec::new(), failures)
}

/// What happened in many runs, so that the test cannot be about nothing.
#[derive(Debug, Default)]
struct Tally {
    opened: u64,
    respawned: u64,
    duels: u64,
    refused: std::collections::BTreeMap<&'static str, u64>,
    terms: u64,
    kills: u64,
    continues: u64,
    cgroup_kills: u64,
    descendants: u64,
    reused: u64,
    moved: u64,
}

impl Tally {
    fn add(&mut self, report: &Report) {
        match &report.outcome {
            Some(Outcome::Opened(_)) => self.opened += 1,
            Some(Outcome::Respawned(_)) => self.respawned += 1,
            Some(Outcome::Duel(_)) => self.duels += 1,
            Some(Outcome::Refused(refused)) => {
                for (_, judgement) in refused {
                    *self.refused.entry(judgement.class.name()).or_default() += 1;
                }
            }
            _ => {}
        }
        for sent in &report.sent {
            match sent.signal {
                Signal::Term => self.terms += 1,
                Signal::Kill => self.kills += 1,
                Signal::Continue => self.continues += 1,
            }
            let now = report.kernel.processes.get(&sent.process.tgid);
            self.reused += u64::from(now.is_some_and(|proc| proc.id != sent.process));
        }
        self.cgroup_kills += report.cgroup_kills as u64;
        self.moved += u64::from(report.timeline.contains("Moved"));
        self.descendants += u64::from(report.timeline.contains("DescendsFrom"));
    }
}

#[test]
fn among_a_hundred_thousand_machines_nobody_but_the_stale_is_signalled() {
    let mut tally = Tally::default();
    for seed in 0..SCENARIOS {
        // The seed is what a failure has to tell.
        let run = std::panic::AssertUnwindSafe(|| Scenario::of(seed).run());
        match std::panic::catch_unwind(run) {
            Ok(report) => tally.add(&report),
            Err(panic) => {
                eprintln!("the machine is number {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{tally:?}");
    let often = SCENARIOS / 1_000;
    for class in [Class::Current, Class::Foreign, Class::Protected] {
        assert!(tally.refused.get(class.name()).is_some_and(|count| *count > often), "{class:?}: {tally:?}");
    }
    for (what, count) in [
        ("opened", tally.opened),
        ("respawned", tally.respawned),
        ("SIGTERM", tally.terms),
        ("SIGKILL", tally.kills),
        ("SIGCONT", tally.continues),
        ("descendants", tally.descendants),
        ("moved processes", tally.moved),
        ("reused numbers", tally.reused),
    ] {
        assert!(count > often, "{what} happens too seldom: {tally:?}");
    }
    assert!(tally.duels > 0 && tally.cgroup_kills > 0, "{tally:?}");
}
