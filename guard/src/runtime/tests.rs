//! A whole session in this process: what no test from outside can bring about.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use guard_core::gate::{Budgets, Goal, Outcome, Reach};
use guard_core::model::BindOutcome;
use guard_core::policy::Rules;

use super::*;
use crate::kernel::bpf::refusal::Refusal;
use crate::kernel::sandbox::{REUSE, STRICT, Sleeper, listening, netns, netns_alone, skip, spec};

const POLL: Duration = Duration::from_millis(5);

/// Lets go of the port once the run is down in the lowest tier.
struct LetGo {
    listener: Option<OwnedFd>,
    tiers: Vec<&'static str>,
}

impl Sink for LetGo {
    fn entry(&mut self, _: &Gate, _: Tier, _: Instant, entry: &Entry) {
        if let Entry::TierChanged(tier) = entry {
            self.tiers.push(tier);
            if *tier == Tier::Poll.name() {
                self.listener = None;
            }
        }
    }
}

fn plan_to_wait(endpoints: &[BindSpec], session: &Session) -> Plan {
    Plan {
        endpoints: endpoints.to_vec(),
        goal: Goal::Wait,
        reach: Reach::Owners,
        rules: Rules::default(),
        asker: asker::asker().unwrap(),
        budgets: Budgets {
            total: Some(Duration::from_secs(20)),
            drain: Duration::ZERO,
            confirm: Duration::from_secs(1),
        },
        recheck: session.recheck(),
        port_only: false,
        evict: false,
    }
}

/// Runs `body` to its end on an event loop in a network namespace of its own.
fn in_session<F: Future<Output = ()>>(test: &'static str, body: impl FnOnce() -> F + Send + 'static) {
    netns(test, move || {
        let reactor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        reactor.block_on(body());
    });
}

/// A gate that waits in `tier` while every event source fails, one after the other.
fn fails_from(test: &'static str, tier: Tier, then: &'static [&'static str]) {
    in_session(test, move || async move {
        let (listener, port) = listening("127.0.0.1", None, REUSE);
        let endpoints = [spec("127.0.0.1", port, REUSE)];
        let mut session = match Session::open(TierChoice::Only(tier), &endpoints, POLL) {
            Ok(session) => session,
            Err(RuntimeError::Tier(TierError::Ebpf(error))) => return skip(test, &error.to_string()),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(session.tier(), tier);
        session.doors.observer.breaks = u32::try_from(then.len()).unwrap();
        let mut sink = LetGo { listener: Some(listener), tiers: Vec::new() };
        let gate = session.run(plan_to_wait(&endpoints, &session), &mut sink).await.unwrap();
        assert_eq!(sink.tiers, then, "told of each step");
        assert_eq!(session.tier(), Tier::Poll);
        assert!(session.shortfall().is_some_and(|why| why.contains("broken by the test")));
        // It opened, and only after the last of them: until then the listener was there.
        let Some(Outcome::Opened(proof)) = gate.outcome() else { panic!("{:?}", gate.outcome()) };
        let entries = gate.timeline().entries().iter().rev();
        let changed =
            entries.clone().find(|(_, entry)| matches!(entry, Entry::TierChanged(_))).map(|(at, _)| *at);
        assert!(changed.is_some_and(|changed| changed <= proof.probed));
        assert_eq!(probe(&endpoints), [BindOutcome::Bindable]);
        // Nor is its own probe in anybody's way.
        assert_eq!(probe(&[spec("127.0.0.1", port, STRICT)]), [BindOutcome::Bindable]);
    });
}

#[test]
fn a_run_goes_on_in_lower_tiers_when_the_ring_buffer_and_then_netlink_fail() {
    fails_from(
        "a_run_goes_on_in_lower_tiers_when_the_ring_buffer_and_then_netlink_fail",
        Tier::Ebpf,
        &["netlink", "poll"],
    );
}

#[test]
fn a_run_polls_when_the_announcements_fail() {
    fails_from("a_run_polls_when_the_announcements_fail", Tier::Netlink, &["poll"]);
}

/// `restart UNIT` stops the unit on the word of a look, and `free` refuses on that of one: a sharer that one pass missed
/// must be found by the other. Only what promises to end nobody does with one.
#[test]
fn a_look_is_confirmed_by_a_second_pass_unless_it_is_only_shown() {
    const NAME: &str = "a_look_is_confirmed_by_a_second_pass_unless_it_is_only_shown";
    in_session(NAME, move || async move {
        let (_listener, port) = listening("127.0.0.1", None, REUSE);
        let endpoints = [spec("127.0.0.1", port, REUSE)];
        let mut session = match Session::open(TierChoice::Only(Tier::Ebpf), &endpoints, POLL) {
            Ok(session) => session,
            Err(RuntimeError::Tier(TierError::Ebpf(error))) => return skip(NAME, &error.to_string()),
            Err(error) => panic!("{error}"),
        };
        let mut passes = Vec::new();
        for promised in [false, true] {
            if promised {
                session.only_show();
            }
            let before = session.doors.observer.passes();
            let plan = Plan { goal: Goal::Look, ..plan_to_wait(&endpoints, &session) };
            let mut sink = LetGo { listener: None, tiers: Vec::new() };
            let gate = session.run(plan, &mut sink).await.unwrap();
            assert_eq!(gate.holders().len(), 1, "{:?}", gate.outcome());
            passes.push(session.doors.observer.passes() - before);
        }
        assert_eq!(passes, [2, 1]);
    });
}

/// The poll and netlink tiers use no BPF, however many processes there are.
#[test]
fn in_a_crowd_a_look_is_helped_at_once() {
    netns_alone("in_a_crowd_a_look_is_helped_at_once", |alone| {
        let crowd: Vec<Sleeper> = (0..250).map(|_| Sleeper::fork(alone)).collect();
        let reactor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = reactor.enter();
        let tuning = Tuning { poll_interval: POLL, event_buffer: None, standing: false };
        let start = |choice| Observer::start(choice, &[], tuning).unwrap().0;
        let after = |in_use: bool| start(TierChoice::Auto).help_look_after(|| in_use);
        assert_eq!([false, true].map(after), [Some(Duration::from_millis(2)), Some(Duration::ZERO)]);
        for tier in [Tier::Poll, Tier::Netlink] {
            assert_eq!(start(TierChoice::Only(tier)).help_look_after(|| true), None);
        }
        drop(crowd);
    });
}

/// Whoever takes only so many events at once must be woken for the rest, or go on without being woken. A run would look
/// again at some time, and hide it.
#[test]
fn all_events_that_wait_are_taken_however_many() {
    const NAME: &str = "all_events_that_wait_are_taken_however_many";
    const PATIENCE: Duration = Duration::from_secs(10);
    for tier in [Tier::Ebpf, Tier::Netlink] {
        for count in [255, 256, 257, 1_500] {
            in_session(NAME, move || async move {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let port = Port::new(listener.local_addr().unwrap().port()).unwrap();
                let watched = [Watched { port, connections: true }];
                let tuning = Tuning { poll_interval: POLL, event_buffer: Some(1 << 22), standing: false };
                let mut observer = match Observer::start(TierChoice::Only(tier), &watched, tuning) {
                    Ok((observer, _)) => observer,
                    Err(TierError::Ebpf(error)) => return skip(NAME, &error.to_string()),
                    Err(error) => panic!("{error}"),
                };
                for _ in 0..count {
                    let client = TcpStream::connect(("127.0.0.1", port.get())).unwrap();
                    let (server, _) = listener.accept().unwrap();
                    // Whoever closes first keeps the TIME_WAIT.
                    drop(client);
                    drop(server);
                }
                for taken in 0..count {
                    let fact = tokio::time::timeout(PATIENCE, observer.next(now)).await;
                    let fact = fact.unwrap_or_else(|_| panic!("{tier:?}: {taken} of {count}, then nothing"));
                    let Fact::Hinted { hint: Hint::ConnectionReleased { port: of }, .. } = fact else {
                        panic!("{fact:?}");
                    };
                    assert_eq!(of, port);
                }
            });
        }
    }
}

/// Lets go of the port as soon as the run has seen who holds it.
struct LetGoOnceSeen {
    listener: Option<OwnedFd>,
    at: Option<Instant>,
}

impl Sink for LetGoOnceSeen {
    fn entry(&mut self, _: &Gate, _: Tier, _: Instant, entry: &Entry) {
        if matches!(entry, Entry::Looked { holders, .. } if !holders.is_empty()) && self.at.is_none() {
            self.at = Some(now());
            self.listener = None;
        }
    }
}

/// Two of the programs may be done without: the others, and the looks, tell enough. Without the
/// third of this kind, those of the other kind stand in.
#[test]
fn a_gate_opens_in_time_whichever_program_the_kernel_refuses() {
    const NAME: &str = "a_gate_opens_in_time_whichever_program_the_kernel_refuses";
    for refused in ["tcp_destroy_sock", "sched_process_exit", "inet_sock_set_state"] {
        in_session(NAME, move || async move {
            let (listener, port) = listening("127.0.0.1", None, REUSE);
            let endpoints = [spec("127.0.0.1", port, REUSE)];
            let open = || Session::open(TierChoice::Only(Tier::Ebpf), &endpoints, POLL);
            if let Err(error) = open() {
                return skip(NAME, &error.to_string());
            }
            let refusal = Refusal::of(refused);
            let opened = open();
            drop(refusal);
            let mut session = match opened {
                Ok(session) => session,
                Err(error) => {
                    // Nothing stands in where there is no tracefs either.
                    assert_eq!(refused, "inet_sock_set_state", "{error}");
                    assert!(error.to_string().contains("the ebpf tier is not available"), "{error}");
                    return;
                }
            };
            let mut sink = LetGoOnceSeen { listener: Some(listener), at: None };
            let gate = session.run(plan_to_wait(&endpoints, &session), &mut sink).await.unwrap();
            let Some(Outcome::Opened(proof)) = gate.outcome() else { panic!("{:?}", gate.outcome()) };
            assert!(sink.at.is_some_and(|at| at <= proof.probed), "opened while the listener was there");
            assert_eq!(session.tier(), Tier::Ebpf);
        });
    }
}

/// `restart` in the netlink tier noticed 50 ms late that its service listened.
#[test]
fn a_new_listener_is_looked_for_soon_and_ever_less_often() {
    let ms = Duration::from_millis;
    let pause = |waited, reading| follow_pause(Tier::Netlink, ms(100), waited, reading);
    let (mut waited, mut looks) = (ms(0), 0);
    while waited < ms(1_000) {
        let next = pause(waited, Duration::from_micros(300));
        assert!(
            next <= (waited / 8).max(Duration::from_micros(2_100)) && next <= ms(50),
            "{waited:?}: {next:?}"
        );
        waited += next;
        looks += 1;
    }
    assert!(looks < 60, "{looks}");
    assert_eq!(pause(ms(8), ms(30)), ms(210), "a table that takes long to read is read seldom");
    assert_eq!(pause(ms(8), ms(60_000)), ms(250), "this process was stopped meanwhile");
    assert_eq!(follow_pause(Tier::Ebpf, ms(100), ms(0), ms(0)), ms(100), "its events tell");
}
