//! Toy runs by chance.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::gate::toy::{
    Birth, Driver, Fate, GUARD, Happening, Kernel, OnTerm, Role, SHELL, Viewer, Weather, ms, plan, spec,
    strict, us,
};
use crate::gate::{Goal, Plan};
use crate::model::{BindSpec, ProcessId, TcpState, Uid};
use crate::policy::Asker;

/// Somebody who is not to be ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bystander {
    /// Holds a descriptor for the first server's sockets.
    Shares(Role),
    /// Listens on the last endpoint, which no server has then.
    Listens(Role),
    /// Bound, without listening, to the last endpoint.
    Bound { reuse: bool },
    /// Listens where nobody is in anybody's way.
    Elsewhere,
    /// The guard's parent, or itself, holds a descriptor for the first server's sockets.
    Kin { parent: bool },
}

/// One run, before it is run.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) endpoints: Vec<BindSpec>,
    pub(super) servers: Vec<Birth>,
    /// Each shares the sockets of the server at this index.
    pub(super) children: Vec<(usize, Birth)>,
    pub(super) bystanders: Vec<Bystander>,
    pub(super) pinned: bool,
    /// Those on the port: expiry, and whether their listener was reusable.
    pub(super) time_waits: Vec<(Duration, bool)>,
    /// The first server has a connection that lingers so long.
    pub(super) connection: Option<Duration>,
    /// Newcomers: when, how long they hold the port, and whether they get the
    /// first server's number.
    pub(super) arrivals: Vec<(Duration, Option<Duration>, bool)>,
    /// The first server exits by itself then.
    pub(super) dies_at: Option<Duration>,
    pub(super) viewer: Viewer,
    pub(super) weather: Weather,
    pub(super) goal: Goal,
    pub(super) any_owner: bool,
    pub(super) port_only: bool,
    pub(super) evict: bool,
    pub(super) recheck: Duration,
    pub(super) drain: Duration,
    pub(super) total: Duration,
}

impl Case {
    fn plan(&self) -> Plan {
        let mut plan = plan(self.endpoints.clone());
        plan.goal = self.goal;
        plan.rules.any_owner = self.any_owner;
        plan.port_only = self.port_only;
        plan.evict = self.evict;
        plan.recheck = self.recheck;
        plan.budgets.drain = self.drain;
        plan.budgets.total = Some(self.total);
        plan.asker = Asker { uid: self.viewer.uid, may_signal_others: self.viewer.privileged, ..plan.asker };
        plan
    }

    fn kernel(&self) -> Kernel {
        let mut kernel = Kernel::new();
        let last = self.endpoints.last().expect("an endpoint");
        let taken = self.bystanders.iter().any(|who| matches!(who, Bystander::Listens(_)));
        let servers: Vec<ProcessId> = self.servers.iter().map(|birth| kernel.old(birth.clone())).collect();
        let left = self.endpoints.len() - usize::from(taken);
        for (index, spec) in self.endpoints.iter().take(left).enumerate() {
            let owner = servers.get(index % servers.len().max(1)).copied();
            if let Some(owner) = owner {
                kernel.put(Some(owner), spec, TcpState::Listen);
            }
        }
        if let (Some(lingers), Some(&owner)) = (self.connection, servers.first()) {
            let key = kernel.put(Some(owner), &self.endpoints[0], TcpState::Established);
            if let Some(sock) = kernel.sockets.get_mut(&key) {
                sock.lingers = Some(lingers);
            }
        }
        for (server, birth) in &self.children {
            let child = kernel.old(birth.clone());
            if let Some(&server) = servers.get(server % servers.len().max(1)) {
                kernel.share(server, child);
            }
        }
        for bystander in &self.bystanders {
            let first = servers.first().copied();
            match *bystander {
                Bystander::Shares(role) => {
                    let who = kernel.old(Birth::of(role));
                    kernel.share(first.unwrap_or(who), who);
                }
                Bystander::Listens(role) => {
                    let who = kernel.old(Birth::of(role));
                    kernel.put(Some(who), last, TcpState::Listen);
                }
                Bystander::Bound { reuse } => {
                    let who = kernel.old(Birth::of(Role::Stranger));
                    let spec = BindSpec { reuse_address: reuse, ..*last };
                    kernel.put(Some(who), &spec, TcpState::BoundInactive);
                }
                Bystander::Elsewhere => {
                    let who = kernel.old(Birth::of(Role::Stranger));
                    kernel.put(Some(who), &spec("127.0.0.9"), TcpState::Listen);
                }
                Bystander::Kin { parent } => {
                    kernel.share(first.unwrap_or(GUARD), if parent { SHELL } else { GUARD });
                }
            }
        }
        if self.pinned {
            let key = kernel.put(None, last, TcpState::Listen);
            if let Some(sock) = kernel.sockets.get_mut(&key) {
                sock.pinned = true;
            }
        }
        for &(left, reuse) in &self.time_waits {
            kernel.put_time_wait(&BindSpec { reuse_address: reuse, ..self.endpoints[0] }, left);
        }
        for &(at, holds, reuses_number) in &self.arrivals {
            let tgid = servers.first().map(|server| server.tgid).filter(|_| reuses_number);
            let listens = self.endpoints.clone();
            let on_term = OnTerm::Ignore;
            kernel.later(
                at,
                Happening::Spawn(Birth { tgid, listens, holds, on_term, ..Birth::of(Role::Service) }),
            );
        }
        if let (Some(at), Some(&first)) = (self.dies_at, servers.first()) {
            kernel.later(at, Happening::Exit(first));
        }
        kernel
    }

    pub(super) fn driver(&self) -> Driver {
        Driver::new(self.plan(), self.kernel(), self.viewer, self.weather.clone())
    }

    pub(super) fn slowest_step(&self) -> Duration {
        self.weather.latencies.iter().copied().max().unwrap_or_default()
    }
}

fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> + Clone {
    range.prop_map(ms)
}

fn endpoints() -> impl Strategy<Value = Vec<BindSpec>> {
    prop_oneof![
        3 => Just(vec![spec("127.0.0.1")]),
        2 => Just(vec![spec("127.0.0.1"), spec("::1")]),
        2 => Just(vec![spec("::")]),
        1 => Just(vec![BindSpec { v6only: true, ..spec("::") }, spec("0.0.0.0")]),
        2 => Just(vec![strict("127.0.0.1")]),
        1 => Just(vec![strict("127.0.0.1"), spec("::1")]),
        1 => Just(vec![strict("::1"), strict("0.0.0.0")]),
    ]
}

/// SIGTERM, then SIGKILL at the latest, ends it.
fn ends() -> impl Strategy<Value = OnTerm> + Clone {
    prop_oneof![
        Just(OnTerm::Exit(Duration::ZERO)),
        millis(1..200).prop_map(OnTerm::Exit),
        Just(OnTerm::Ignore),
        (millis(0..80), millis(0..300)).prop_map(|(close, exit)| OnTerm::CloseAndLinger(close, Some(exit))),
        millis(0..80).prop_map(|close| OnTerm::CloseAndLinger(close, None)),
    ]
}

fn anything() -> impl Strategy<Value = OnTerm> + Clone {
    prop_oneof![
        4 => ends(),
        1 => millis(0..60).prop_map(OnTerm::HandOver),
        1 => (millis(0..160), any::<bool>()).prop_map(|(after, keeps)| OnTerm::Become(after, keeps)),
    ]
}

/// So often in a hundred.
fn percent(often: u32) -> impl Strategy<Value = bool> + Clone {
    (0..100_u32).prop_map(move |number| number < often)
}

fn birth(
    on_term: impl Strategy<Value = OnTerm> + Clone,
    stuck: u32,
    respawns: u32,
) -> impl Strategy<Value = Birth> + Clone {
    let respawn = (percent(respawns), millis(0..50));
    let times = (0..80_000_u64, 1..2_000_u64);
    let threads = prop_oneof![Just(1_u32), Just(8)];
    (on_term, times, threads, percent(stuck), respawn).prop_map(
        |(on_term, (teardown, release), threads, stuck, (respawns, pause))| Birth {
            on_term,
            teardown: us(teardown),
            release: us(release),
            threads,
            stuck,
            respawn: respawns.then_some(pause),
            listens: vec![spec("127.0.0.1")],
            ..Birth::of(Role::Service)
        },
    )
}

fn bystander() -> impl Strategy<Value = Bystander> + Clone {
    prop_oneof![
        Just(Bystander::Shares(Role::Stranger)),
        Just(Bystander::Shares(Role::Roommate)),
        Just(Bystander::Shares(Role::KernelThread)),
        Just(Bystander::Listens(Role::Stranger)),
        Just(Bystander::Listens(Role::Roommate)),
        any::<bool>().prop_map(|reuse| Bystander::Bound { reuse }),
        Just(Bystander::Elsewhere),
        any::<bool>().prop_map(|parent| Bystander::Kin { parent }),
    ]
}

fn fate() -> impl Strategy<Value = Fate> + Clone {
    let delay = (0..3_000_u64).prop_map(us);
    prop_oneof![
        4 => delay.clone().prop_map(Fate::Arrives),
        1 => (delay.clone(), delay).prop_map(|(one, two)| Fate::ArrivesTwice(one, two)),
        1 => (0..20_000_u64).prop_map(|after| Fate::IsLost(us(after))),
    ]
}

fn weather(failing: bool) -> impl Strategy<Value = Weather> {
    let latency = prop_oneof![3 => (0..40_u64).prop_map(us), 1 => (0..2_000_u64).prop_map(us)];
    let failures = if failing { vec(percent(30), 0..6).boxed() } else { Just(Vec::new()).boxed() };
    (
        proptest::option::weighted(0.8, vec(fate(), 1..8)),
        vec(latency, 1..8),
        vec((0..3_000_u64).prop_map(us), 0..4),
        failures,
    )
        .prop_map(|(fates, latencies, early, failures)| Weather::new(fates, latencies, early, failures))
}

fn time_waits() -> impl Strategy<Value = Vec<(Duration, bool)>> {
    vec((millis(1..700), any::<bool>()), 0..2)
}

fn knobs() -> impl Strategy<Value = (bool, Duration, Duration, bool)> {
    let recheck = prop_oneof![Just(ms(5)), (200..50_000_u64).prop_map(us)];
    (percent(20), recheck, millis(1..150), any::<bool>())
}

/// The port can be freed, and nobody else wants it.
pub(super) fn yielding_case() -> impl Strategy<Value = Case> {
    let people = (
        endpoints(),
        vec(birth(ends(), 0, 0), 0..3),
        vec((0..3_usize, birth(ends(), 0, 0)), 0..3),
        proptest::option::of(millis(1..100)),
        proptest::option::weighted(0.2, millis(0..150)),
    );
    (people, time_waits(), weather(false), knobs()).prop_map(
        |((endpoints, servers, children, connection, dies_at), time_waits, weather, knobs)| {
            let (port_only, recheck, drain, flags) = knobs;
            Case {
                endpoints,
                servers,
                children,
                bystanders: Vec::new(),
                pinned: false,
                time_waits,
                connection,
                arrivals: Vec::new(),
                dies_at,
                viewer: Viewer { flags, ..Viewer::ROOT },
                weather,
                goal: Goal::Free,
                any_owner: false,
                port_only,
                evict: false,
                recheck,
                drain,
                total: ms(5_000),
            }
        },
    )
}

/// How it ends does not depend on who is faster.
pub(super) fn steady_case() -> impl Strategy<Value = Case> {
    let stuck = vec(birth(ends(), 10, 0), 0..3);
    let children = vec((0..3_usize, birth(ends(), 5, 0)), 0..2);
    (yielding_case(), stuck, children, vec(bystander(), 0..2), percent(10)).prop_map(
        |(case, servers, children, bystanders, pinned)| Case {
            servers,
            children,
            bystanders,
            pinned,
            total: ms(3_000),
            ..case
        },
    )
}

fn viewer() -> impl Strategy<Value = Viewer> {
    (any::<bool>(), any::<bool>(), percent(90)).prop_map(|(root, flags, may_bind)| {
        let (uid, privileged) = if root { (Uid(0), true) } else { (Uid(7), false) };
        Viewer { uid, privileged, flags, may_bind: may_bind || root }
    })
}

/// Anything at all.
pub(super) fn any_case() -> impl Strategy<Value = Case> {
    let owner = (birth(anything(), 10, 20), prop_oneof![3 => Just(Uid(7)), 1 => Just(Uid(0))])
        .prop_map(|(birth, uid)| Birth { uid, ..birth });
    let goal = prop_oneof![8 => Just(Goal::Free), 1 => Just(Goal::Wait), 1 => Just(Goal::Look)];
    let arrival = (millis(0..400), proptest::option::of(millis(1..80)), any::<bool>());
    (
        yielding_case(),
        vec(owner.clone(), 0..3),
        vec((0..3_usize, owner), 0..3),
        vec(bystander(), 0..2),
        percent(10),
        vec(arrival, 0..4),
        (viewer(), weather(true), goal, percent(20), percent(40), 20..1_500_u64),
    )
        .prop_map(|(case, servers, children, bystanders, pinned, arrivals, rest)| {
            let (viewer, weather, goal, any_owner, evict, total) = rest;
            let total = ms(total);
            Case {
                servers,
                children,
                bystanders,
                pinned,
                arrivals,
                viewer,
                weather,
                goal,
                any_owner,
                evict,
                total,
                ..case
            }
        })
}

/// Sockets that no signal helps against are in the way too, and may be destroyed.
pub(super) fn evictable_case() -> impl Strategy<Value = Case> {
    let left = vec((millis(8_000..60_000), any::<bool>()), 0..3);
    (yielding_case(), left, any::<bool>()).prop_map(|(case, time_waits, pinned)| {
        let shared = case.endpoints.iter().all(|spec| spec.reuse_address);
        Case { time_waits, pinned: pinned && shared, evict: true, ..case }
    })
}
