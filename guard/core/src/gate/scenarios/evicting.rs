//! Example runs about sockets that no signal helps against.

use super::*;
use crate::model::Socket;

fn evicting(endpoints: Vec<BindSpec>) -> Plan {
    Plan { evict: true, ..plan(endpoints) }
}

fn states(report: &Report) -> Vec<TcpState> {
    report.evicted.iter().map(|Socket { state, .. }| *state).collect()
}

/// A listener in flight over a Unix socket.
fn in_flight(kernel: &mut Kernel, spec: &BindSpec) {
    let key = kernel.put(None, spec, TcpState::Listen);
    kernel.sockets.get_mut(&key).expect("just put").pinned = true;
}

#[test]
fn time_wait_in_a_strict_binds_way_is_destroyed_when_asked_for() {
    let wanted = vec![strict("127.0.0.1")];
    let mut kernel = Kernel::new();
    kernel.put_time_wait(&here()[0], ms(60_000));
    kernel.put_time_wait(&here()[0], ms(50_000));
    let report = run(evicting(wanted), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(states(&report), [TcpState::TimeWait; 2]);
    assert!(after(&report) < ms(5), "{:?}", after(&report));
    let told = report.gate.timeline().entries().iter().filter(|(_, e)| matches!(e, Entry::Evicted(_)));
    assert_eq!(told.count(), 2, "each one is told");
}

#[test]
fn nothing_is_destroyed_unasked() {
    let mut kernel = Kernel::new();
    kernel.put_time_wait(&here()[0], ms(500));
    let report = run(plan(vec![strict("127.0.0.1")]), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(states(&report), []);
    assert!(after(&report) >= ms(500));
}

#[test]
fn a_stale_owner_is_ended_first_and_what_it_leaves_is_destroyed() {
    let wanted = vec![strict("127.0.0.1")];
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Exit(ms(20)), &wanted);
    let key = kernel.put(Some(owner), &wanted[0], TcpState::Established);
    kernel.sockets.get_mut(&key).expect("just put").lingers = Some(ms(60_000));
    let report = run(evicting(wanted), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(signals(&report), [(owner, Signal::Term)]);
    assert_eq!(states(&report), [TcpState::TimeWait]);
    assert!(after(&report) < ms(100), "{:?}", after(&report));
}

#[test]
fn a_listener_that_nobody_has_is_destroyed_once_that_has_lasted() {
    let mut kernel = Kernel::new();
    in_flight(&mut kernel, &here()[0]);
    let report = run(evicting(here()), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(states(&report), [TcpState::Listen]);
    assert!(after(&report) >= ms(1_000) && after(&report) < ms(1_100), "{:?}", after(&report));
}

/// It would stay bound, so a strict bind would gain nothing.
#[test]
fn a_listener_that_nobody_has_is_not_destroyed_in_vain() {
    let wanted = vec![strict("127.0.0.1")];
    let mut kernel = Kernel::new();
    in_flight(&mut kernel, &here()[0]);
    kernel.put_time_wait(&here()[0], ms(60_000));
    let report = run(evicting(wanted), kernel);
    assert!(matches!(report.outcome, Some(Outcome::StillBusy { .. })), "{:?}", report.outcome);
    assert_eq!(states(&report), []);
}

#[test]
fn a_strangers_listener_saves_every_socket() {
    let wanted = vec![strict("127.0.0.1")];
    let mut kernel = Kernel::new();
    server(&mut kernel, Birth::of(Role::Stranger), &wanted);
    kernel.put_time_wait(&here()[0], ms(60_000));
    let report = run(evicting(wanted), kernel);
    assert!(matches!(report.outcome, Some(Outcome::Refused(_))), "{:?}", report.outcome);
    assert_eq!(states(&report), []);
}

#[test]
fn a_strangers_connection_goes_and_that_of_the_guards_own_kin_stays() {
    let wanted = vec![strict("127.0.0.1")];
    let mut kernel = Kernel::new();
    let stranger = kernel.old(Birth::of(Role::Stranger));
    kernel.put(Some(stranger), &wanted[0], TcpState::Established);
    let report = run(evicting(wanted.clone()), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(states(&report), [TcpState::Established]);
    assert_eq!(signals(&report), []);

    let mut kernel = Kernel::new();
    kernel.put(Some(SHELL), &wanted[0], TcpState::Established);
    let report = run(evicting(wanted), kernel);
    assert!(matches!(report.outcome, Some(Outcome::StillBusy { .. })), "{:?}", report.outcome);
    assert_eq!(states(&report), []);
}

/// What nobody has goes first: a stranger's connection is spared when that was enough.
#[test]
fn a_connection_that_only_may_be_in_the_way_outlives_the_time_wait_that_was() {
    let mut kernel = Kernel::new();
    let stranger = kernel.old(Birth::of(Role::Stranger));
    kernel.put(Some(stranger), &here()[0], TcpState::Established);
    kernel.put_time_wait(&strict("127.0.0.1"), ms(60_000));
    let report = run(evicting(here()), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(states(&report), [TcpState::TimeWait]);
}

#[test]
fn a_refused_destruction_ends_the_run() {
    let mut kernel = Kernel::new();
    kernel.put_time_wait(&here()[0], ms(60_000));
    let viewer = Viewer { uid: Uid(7), privileged: false, ..Viewer::ROOT };
    let plan = evicting(vec![strict("127.0.0.1")]);
    let plan = Plan { asker: Asker { uid: Uid(7), may_signal_others: false, ..plan.asker }, ..plan };
    let report = Driver::new(plan, kernel, viewer, Weather::events()).run(PATIENCE);
    assert!(matches!(report.outcome, Some(Outcome::CannotEvict(_))), "{:?}", report.outcome);
    assert_eq!(states(&report), []);
}
