//! Example runs about how fresh the evidence for a decision has to be.

use super::*;
use crate::gate::Action;
use crate::model::{Process, Snapshot, Socket};
use crate::timeline::{MOST_ENTRIES, MOST_OF_CLIENTS, Timeline};

pub(super) fn actions(gate: &mut Gate) -> Vec<Action> {
    std::iter::from_fn(|| gate.next_action()).collect()
}

pub(super) fn in_use(begun: u64) -> Fact {
    Fact::Probed { outcomes: vec![BindOutcome::InUse], begun: BEGIN + us(begun) }
}

/// A listener of somebody with this role, as a look from `begun` to `ended` shows it.
pub(super) fn look(role: Role, begun: u64, ended: u64) -> (Fact, ProcessId) {
    let mut kernel = Kernel::new();
    let owner = server(&mut kernel, Birth::of(role), &here());
    let (_, row): (_, Socket) = kernel.table(&Viewer::ROOT).remove(0);
    let process: Process = kernel.process(owner).expect("just put").evidence(true);
    let snapshot = Snapshot {
        begun: BEGIN + us(begun),
        ended: BEGIN + us(ended),
        sockets: vec![(row, Owners::All(vec![owner]))],
        processes: [(owner.tgid, process)].into(),
        ancestors: [].into(),
    };
    (Fact::SnapshotTaken(snapshot), owner)
}

fn signalled(gate: &mut Gate) -> bool {
    actions(gate).iter().any(|action| matches!(action, Action::Signal { .. }))
}

/// The probe ran while the look was still being taken: it says nothing about
/// the time after, in which the stranger may have left.
#[test]
fn nobody_is_refused_on_a_probe_that_is_older_than_the_end_of_the_look() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    actions(&mut gate);
    gate.observe(in_use(0), BEGIN + us(1));
    actions(&mut gate);
    gate.on_deadline(BEGIN + ms(5));
    actions(&mut gate);
    gate.observe(in_use(5_001), BEGIN + us(5_002));
    gate.observe(look(Role::Stranger, 10, 9_000).0, BEGIN + us(9_000));
    assert_eq!(gate.outcome(), None);
    actions(&mut gate);
    let left = Fact::Probed { outcomes: vec![BindOutcome::Bindable], begun: BEGIN + us(9_010) };
    gate.observe(left, BEGIN + us(9_011));
    assert!(matches!(gate.outcome(), Some(Outcome::Opened(_))), "{:?}", gate.outcome());
}

/// Somebody else may have taken the port since the look.
#[test]
fn nobody_is_signalled_on_a_look_that_a_hint_has_outdated() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    actions(&mut gate);
    gate.observe(in_use(0), BEGIN + us(1));
    actions(&mut gate);
    gate.observe(look(Role::Service, 10, 20).0, BEGIN + us(20));
    actions(&mut gate);
    let hint = Hint::ListenerOpened { address: here()[0].address, port: here()[0].port };
    gate.observe(Fact::Hinted { hint, at: BEGIN + us(25) }, BEGIN + us(26));
    gate.observe(in_use(27), BEGIN + us(28));
    assert!(!signalled(&mut gate));
    gate.observe(look(Role::Service, 30, 40).0, BEGIN + us(40));
    assert!(!signalled(&mut gate), "the port may be free by now");
    gate.observe(in_use(41), BEGIN + us(42));
    assert!(signalled(&mut gate));
}

/// The port was free for a moment: who holds it now is not who held it then.
#[test]
fn nobody_is_signalled_for_a_port_that_changed_hands_between_two_polls() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    actions(&mut gate);
    gate.observe(in_use(0), BEGIN + us(1));
    actions(&mut gate);
    let (fact, _) = look(Role::Service, 10, 20);
    gate.observe(fact, BEGIN + us(20));
    actions(&mut gate);
    gate.observe(Fact::EventsLost { count: 1 }, BEGIN + us(21));
    actions(&mut gate);
    let free = Fact::Probed { outcomes: vec![BindOutcome::Bindable], begun: BEGIN + us(20) };
    gate.observe(free, BEGIN + us(22));
    let (fact, owner) = look(Role::Service, 23, 24);
    gate.observe(fact, BEGIN + us(24));
    gate.observe(in_use(25), BEGIN + us(26));
    let asked = actions(&mut gate);
    let signal = Action::Signal { process: owner, signal: Signal::Term };
    assert!(!asked.contains(&signal), "{asked:?}");
    assert!(asked.iter().any(|action| matches!(action, Action::TakeSnapshot { .. })), "{asked:?}");
}

/// What shares the port and cannot be read any more might be a stranger.
#[test]
fn nobody_is_signalled_while_an_unreadable_dying_process_shares_the_port() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    let dying = kernel.old(Birth { teardown: ms(80), ..Birth::of(Role::Stranger) });
    kernel.share(owner, dying);
    kernel.later(Duration::ZERO, Happening::Exit(dying));
    let report = run(plan(here()), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(signals(&report), [(owner, Signal::Term)]);
    assert!(report.sent[0].asked >= BEGIN + ms(40), "{:?}", report.sent);
}

/// The budget is the process's own: it begins when the process has the signal.
#[test]
fn a_slow_delivery_does_not_shorten_the_drain_budget() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Ignore, &here());
    let weather = Weather { latencies: vec![ms(30)], ..Weather::polling() };
    let report = Driver::new(plan(here()), kernel, Viewer::ROOT, weather).run(PATIENCE);
    assert!(opened(&report), "{:?}", report.outcome);
    let [term, kill] = report.sent.as_slice() else { panic!("{:?}", report.sent) };
    assert!(kill.asked.since(term.delivered.expect("delivered")) >= ms(100));
}

/// Where a small buffer overruns all the time, every look is outdated before its answer comes.
#[test]
fn losses_without_end_do_not_keep_a_free_port_shut() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    let bindable =
        |begun: u64| Fact::Probed { outcomes: vec![BindOutcome::Bindable], begun: BEGIN + us(begun) };
    actions(&mut gate);
    gate.observe(in_use(0), BEGIN + us(1));
    actions(&mut gate);
    for at in [10, 20, 30] {
        gate.observe(Fact::EventsLost { count: at }, BEGIN + us(at));
        actions(&mut gate);
        gate.observe(bindable(at + 1), BEGIN + us(at + 2));
        assert_eq!(gate.outcome(), None, "a look comes first");
    }
    let empty = Snapshot {
        begun: BEGIN + us(13),
        ended: BEGIN + us(40),
        sockets: Vec::new(),
        processes: [].into(),
        ancestors: [].into(),
    };
    gate.observe(Fact::SnapshotTaken(empty), BEGIN + us(40));
    // The last probe is younger than the last loss.
    assert!(matches!(gate.outcome(), Some(Outcome::Opened(_))), "{:?}", gate.outcome());
    let losses: Vec<u64> = gate
        .timeline()
        .entries()
        .iter()
        .filter_map(|(_, entry)| if let Entry::EventsLost(count) = entry { Some(*count) } else { None })
        .collect();
    assert_eq!(losses, [10, 50], "all are told, and not one by one");
}

#[test]
fn a_flood_of_events_does_not_push_the_end_of_an_owner_out_of_the_timeline() {
    let mut timeline = Timeline::new(BEGIN);
    let hint = Hint::ListenerOpened { address: here()[0].address, port: here()[0].port };
    for _ in 0..2 * MOST_ENTRIES {
        timeline.record(BEGIN, Entry::Event(hint));
    }
    let owner = ProcessId { tgid: Tgid(7), start: StartTime(7) };
    timeline.record(BEGIN, Entry::Unkillable { process: owner, wait_channel: None });
    timeline.record(BEGIN, Entry::LookFailed("left out".to_owned()));
    assert_eq!(
        timeline.entries().last(),
        Some(&(BEGIN, Entry::Unkillable { process: owner, wait_channel: None }))
    );
    timeline.record(BEGIN, Entry::EventsLost(3));
    assert_eq!(timeline.entries().last(), Some(&(BEGIN, Entry::EventsLost(3))), "losses are always shown");
    assert!(timeline.left_out() > 0);
}

/// Symptom: a strict gate on a port whose clients came and went by the thousand told nothing of who was in its way.
#[test]
fn a_flood_of_connections_does_not_push_a_look_out_of_the_timeline() {
    let port = here()[0].port;
    let clients =
        [Hint::ConnectionReleased { port }, Hint::ConnectionAborted { port }, Hint::TimeWaitEnded { port }];
    let mut timeline = Timeline::new(BEGIN);
    for hint in clients.into_iter().cycle().take(2 * MOST_ENTRIES) {
        timeline.record(BEGIN, Entry::Event(hint));
    }
    assert_eq!(timeline.entries().len(), 1 + MOST_OF_CLIENTS, "its beginning, and these");
    let looked = Entry::Looked { holders: Vec::new(), left_out: 0, took: us(1) };
    timeline.record(BEGIN, looked.clone());
    assert_eq!(timeline.entries().last(), Some(&(BEGIN, looked)));
    assert_eq!(timeline.left_out(), (2 * MOST_ENTRIES - MOST_OF_CLIENTS) as u64);
}

/// The kernel tells of a listener only after thousands of connections that nobody accepted.
#[test]
fn an_aborted_connection_leads_to_a_probe_and_proves_nothing() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    actions(&mut gate);
    gate.observe(in_use(0), BEGIN + us(1));
    actions(&mut gate);
    gate.observe(look(Role::Service, 10, 20).0, BEGIN + us(20));
    actions(&mut gate);
    gate.observe(in_use(21), BEGIN + us(22));
    actions(&mut gate);
    let hint = Fact::Hinted { hint: Hint::ConnectionAborted { port: here()[0].port }, at: BEGIN + ms(50) };
    gate.observe(hint.clone(), BEGIN + ms(50));
    let probes = |gate: &mut Gate| actions(gate).contains(&Action::Probe);
    assert!(probes(&mut gate));
    gate.observe(in_use(50_001), BEGIN + us(50_002));
    actions(&mut gate);
    assert_eq!(gate.outcome(), None);
    gate.observe(hint, BEGIN + ms(51));
    assert!(probes(&mut gate));
}
