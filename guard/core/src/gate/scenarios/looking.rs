//! Example runs about what is and is not known.

use super::*;
use crate::gate::{Action, Decision};
use crate::model::{Process, Snapshot};

fn unprivileged(uid: u32) -> (Plan, Viewer) {
    let mut plan = plan(here());
    plan.asker = Asker { uid: Uid(uid), may_signal_others: false, ..plan.asker };
    (plan, Viewer { uid: Uid(uid), privileged: false, ..Viewer::ROOT })
}

#[test]
fn a_hidden_owner_of_another_user_is_unknown_at_once() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    let (plan, viewer) = unprivileged(7);
    let report = Driver::new(plan, kernel, viewer, Weather::events()).run(PATIENCE);
    let reason = UnknownReason::OwnerHidden { uid: Uid(0), why: Unseen::NotPermitted };
    assert_eq!(report.outcome, Some(Outcome::Unknown(reason)));
    assert!(after(&report) < ms(1), "{:?}", after(&report));
    assert_eq!(signals(&report), []);
}

#[test]
fn a_hidden_owner_of_the_own_user_is_unknown_after_a_second_look() {
    let mut kernel = Kernel::new();
    let key = kernel.put(None, &here()[0], TcpState::Listen);
    let sock = kernel.sockets.get_mut(&key).expect("just put");
    sock.pinned = true;
    sock.bucket.uid = Uid(7);
    let (plan, viewer) = unprivileged(7);
    let report = Driver::new(plan, kernel, viewer, Weather::events()).run(PATIENCE);
    assert!(matches!(report.outcome, Some(Outcome::Unknown(_))), "{:?}", report.outcome);
    assert!(after(&report) >= ms(1_000) && after(&report) < ms(1_010), "{:?}", after(&report));
}

#[test]
fn a_guard_that_may_not_bind_says_so_at_once() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    let viewer = Viewer { may_bind: false, ..Viewer::ROOT };
    let report = Driver::new(plan(here()), kernel, viewer, Weather::events()).run(PATIENCE);
    assert_eq!(report.outcome, Some(Outcome::Unknown(UnknownReason::ProbeNotPermitted)));
    assert!(after(&report) < ms(1));
}

#[test]
fn waiting_signals_nobody() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    kernel.later(ms(300), Happening::Exit(owner));
    let mut plan = plan(here());
    plan.goal = Goal::Wait;
    let report = run(plan, kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(signals(&report), []);
}

#[test]
fn looking_reports_holders_and_changes_nothing() {
    for wanted in [here(), vec![strict("127.0.0.1")]] {
        let mut kernel = Kernel::new();
        let owner = gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
        let mut plan = plan(wanted);
        plan.goal = Goal::Look;
        let report = run(plan, kernel);
        assert_eq!(report.outcome, Some(Outcome::Looked));
        assert!(matches!(&report.gate.verdicts()[0], Verdict::Busy { holders } if holders.len() == 1));
        let Some(Decision::End(stale)) = report.gate.decision() else {
            panic!("{:?}", report.gate.decision())
        };
        assert_eq!(stale[0].0, owner);
        assert!(report.kernel.process(owner).is_some());
    }
}

#[test]
fn looking_at_a_strict_port_survives_a_failed_snapshot() {
    for (failures, found) in [(vec![true, false], true), (vec![true], false)] {
        let mut kernel = Kernel::new();
        gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
        let mut plan = plan(vec![strict("127.0.0.1")]);
        plan.goal = Goal::Look;
        plan.budgets.total = None;
        let weather = Weather { failures, ..Weather::polling() };
        let report = Driver::new(plan, kernel, Viewer::ROOT, weather).run(PATIENCE);
        assert_eq!(report.outcome, Some(Outcome::Looked));
        assert_eq!(!report.gate.holders().is_empty(), found);
    }
}

#[test]
fn a_strict_plan_calls_only_the_endpoint_busy_that_is() {
    let both = vec![strict("127.0.0.1"), strict("::1")];
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Exit(ms(1)), &both[..1]);
    let mut plan = plan(both);
    plan.goal = Goal::Look;
    let report = run(plan, kernel);
    let verdicts = report.gate.verdicts();
    assert!(matches!(verdicts[0], Verdict::Busy { .. }));
    assert!(
        matches!(verdicts[1], Verdict::Unknown { reason: UnknownReason::NotYetObserved, .. }),
        "{verdicts:?}"
    );
}

#[test]
fn looks_that_fail_for_a_while_only_delay() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    let weather = Weather { failures: vec![true, true, false], ..Weather::polling() };
    let report = Driver::new(plan(here()), kernel, Viewer::ROOT, weather).run(PATIENCE);
    assert!(opened(&report), "{:?}", report.outcome);
}

#[test]
fn a_port_that_can_never_be_looked_at_is_unknown_at_the_deadline() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    let weather = Weather { failures: vec![true], ..Weather::polling() };
    let report = Driver::new(plan(here()), kernel, Viewer::ROOT, weather).run(PATIENCE);
    assert!(matches!(report.outcome, Some(Outcome::Unknown(UnknownReason::SnapshotFailed(_)))));
    assert_eq!(after(&report), ms(3_000));
}

fn looked(
    gate: &mut Gate,
    begun: Instant,
    ended: Instant,
    rows: Vec<(crate::model::Socket, Owners)>,
    seen: &[Process],
) {
    let processes = seen.iter().map(|process| (process.id.tgid, process.clone())).collect();
    gate.observe(
        Fact::SnapshotTaken(Snapshot { begun, ended, sockets: rows, processes, ancestors: [].into() }),
        ended,
    );
}

fn drain(gate: &mut Gate) -> Vec<Action> {
    std::iter::from_fn(|| gate.next_action()).collect()
}

/// An owner that vanished between the scan and the reading of its evidence was
/// refused as foreign, for good.
#[test]
fn an_owner_that_vanished_while_it_was_read_is_no_reason_to_give_up() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Ignore, &here());
    let (key, row) = kernel.table(&Viewer::ROOT).remove(0);
    assert_eq!(row.inode.map(|inode| inode.0), Some(key));
    let ghost = ProcessId { tgid: Tgid(4242), start: StartTime(1) };
    let mut gate = Gate::new(plan(here()), BEGIN);
    drain(&mut gate);
    gate.observe(Fact::Probed { outcomes: vec![BindOutcome::InUse], begun: BEGIN }, BEGIN + us(1));
    drain(&mut gate);
    looked(&mut gate, BEGIN + us(2), BEGIN + us(3), vec![(row, Owners::All(vec![ghost]))], &[]);
    drain(&mut gate);
    gate.observe(Fact::Probed { outcomes: vec![BindOutcome::InUse], begun: BEGIN + us(4) }, BEGIN + us(5));
    assert_eq!(gate.outcome(), None);
    assert!(!drain(&mut gate).iter().any(|action| matches!(action, Action::Signal { .. })));
}

/// A strict run that waits, with a table and a snapshot under way.
fn two_questions() -> Gate {
    let mut plan = plan(vec![strict("127.0.0.1")]);
    plan.goal = Goal::Wait;
    let mut gate = Gate::new(plan, BEGIN);
    assert_eq!(drain(&mut gate).len(), 1, "a table");
    gate.observe(Fact::EventsLost { count: 1 }, BEGIN + us(1));
    assert_eq!(drain(&mut gate).len(), 1, "a snapshot");
    gate
}

/// A slow snapshot that began before the newest table must not count as newer.
#[test]
fn an_overtaken_snapshot_does_not_let_a_strict_probe_through() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Ignore, &here());
    let (_, row) = kernel.table(&Viewer::ROOT).remove(0);
    let mut gate = two_questions();
    gate.observe(Fact::TableRead { sockets: vec![row], begun: BEGIN + us(5) }, BEGIN + us(6));
    looked(&mut gate, BEGIN + us(2), BEGIN + us(7), Vec::new(), &[]);
    let asked = drain(&mut gate);
    assert!(!asked.contains(&Action::Probe), "{asked:?}");
}

/// One of two questions failed and its answer does not say which: neither is
/// asked again before the other answer has come.
#[test]
fn a_failure_never_puts_two_snapshots_under_way() {
    let mut gate = two_questions();
    gate.observe(Fact::SnapshotFailed("table".to_owned()), BEGIN + us(2));
    gate.on_deadline(BEGIN + ms(5));
    gate.on_deadline(BEGIN + ms(50));
    let asked = drain(&mut gate);
    assert!(!asked.iter().any(|action| matches!(action, Action::TakeSnapshot { .. })), "{asked:?}");
    looked(&mut gate, BEGIN + us(2), BEGIN + ms(60), Vec::new(), &[]);
    let asked = drain(&mut gate);
    assert!(asked.contains(&Action::ReadTable), "both are answered: {asked:?}");
}

/// With a hundred thousand sockets a strict gate in the poll tier left no time to anybody else on its processor.
#[test]
fn a_table_that_takes_long_to_read_is_read_seldom() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Ignore, &here());
    let (_, row) = kernel.table(&Viewer::ROOT).remove(0);
    // A process that was stopped in between does not sleep for minutes more.
    for (took, next) in [(ms(30), ms(120)), (ms(60_000), ms(60_250))] {
        let mut plan = plan(vec![strict("127.0.0.1")]);
        (plan.goal, plan.recheck, plan.budgets.total) = (Goal::Wait, ms(5), None);
        let mut gate = Gate::new(plan, BEGIN);
        drain(&mut gate);
        gate.observe(Fact::TableRead { sockets: vec![row.clone()], begun: BEGIN }, BEGIN + took);
        assert_eq!(gate.next_deadline(), Some(BEGIN + next));
        // What the kernel tells is followed at once all the same, and soon again.
        let (hint, at) = (Hint::ListenerClosed { address: row.address, port: row.port }, BEGIN + next);
        gate.observe(Fact::Hinted { hint, at }, at);
        assert!(drain(&mut gate).contains(&Action::ReadTable));
        gate.observe(Fact::TableRead { sockets: vec![row.clone()], begun: at }, at + ms(1));
        assert_eq!(gate.next_deadline(), Some(at + us(20)));
    }
}

/// The table that was read after the probe began knows better.
#[test]
fn an_overtaken_strict_probe_does_not_make_the_verdict_free() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Ignore, &here());
    let (_, row) = kernel.table(&Viewer::ROOT).remove(0);
    let mut gate = two_questions();
    gate.observe(Fact::TableRead { sockets: Vec::new(), begun: BEGIN + us(2) }, BEGIN + us(3));
    assert!(drain(&mut gate).contains(&Action::Probe));
    gate.on_deadline(BEGIN + ms(5));
    gate.observe(Fact::TableRead { sockets: vec![row], begun: BEGIN + ms(6) }, BEGIN + ms(6));
    gate.observe(Fact::Probed { outcomes: vec![BindOutcome::Bindable], begun: BEGIN + us(4) }, BEGIN + ms(7));
    assert_eq!(gate.outcome(), None);
    assert!(!matches!(gate.verdicts()[0], Verdict::Free));
}
