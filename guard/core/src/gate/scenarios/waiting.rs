//! Example runs about what the gate waits for, and for how long.

use super::*;

#[test]
fn the_gate_stays_shut_while_an_ended_owner_lives() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::CloseAndLinger(ms(5), Some(ms(60))), &here());
    let report = run(Plan { recheck: ms(250), ..plan(here()) }, kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(signals(&report), [(owner, Signal::Term)]);
    assert!(after(&report) >= ms(65), "{:?}", after(&report));
    // Each for a reason of its own: what was looked at, what the kernel told, the owner's end.
    assert!(report.probes <= 6, "whoever probes meanwhile keeps it from ending: {}", report.probes);
}

#[test]
fn port_only_opens_while_an_ended_owner_lives() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::CloseAndLinger(ms(5), Some(ms(60))), &here());
    let mut plan = plan(here());
    plan.port_only = true;
    let report = run(plan, kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert!(after(&report) >= ms(5) && after(&report) < us(5_100), "{:?}", after(&report));
}

#[test]
fn endpoints_released_seconds_apart_open_together() {
    let both = vec![spec("127.0.0.1"), spec("::1")];
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Exit(ms(10)), &both[..1]);
    gateway(&mut kernel, OnTerm::Exit(ms(2_000)), &both[1..]);
    let mut plan = plan(both);
    plan.budgets.drain = ms(2_500);
    let report = run(plan, kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert!(after(&report) >= ms(2_000) && after(&report) < ms(2_002), "{:?}", after(&report));
}

#[test]
fn lost_events_ask_for_a_look_before_the_gate_opens() {
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Exit(ms(10)), &here());
    let weather = Weather { fates: Some(vec![Fate::IsLost(us(300))]), ..Weather::polling() };
    // The driver checks that a look which began after the loss comes first.
    let report = Driver::new(plan(here()), kernel, Viewer::ROOT, weather).run(PATIENCE);
    assert!(opened(&report), "{:?}", report.outcome);
    assert!(report.timeline.contains("EventsLost"));
}

#[test]
fn a_strict_service_is_probed_only_once_the_table_is_clear() {
    let wanted = vec![strict("127.0.0.1")];
    for weather in [Weather::events(), Weather::polling()] {
        let mut kernel = Kernel::new();
        gateway(&mut kernel, OnTerm::Exit(ms(20)), &wanted);
        kernel.put_time_wait(&here()[0], ms(700));
        let report = Driver::new(plan(wanted.clone()), kernel, Viewer::ROOT, weather).run(PATIENCE);
        assert!(opened(&report), "{:?}", report.outcome);
        assert_eq!(report.probes, 1, "looked first");
        assert!(after(&report) >= ms(700) && after(&report) < us(700_100), "{:?}", after(&report));
    }
}

/// Both listeners of a strict plan's co-endpoints may be of the reusable kind:
/// what the table leaves open only a probe can settle.
#[test]
fn a_strict_plan_is_not_kept_waiting_by_a_conflict_that_is_merely_possible() {
    let wanted = vec![strict("127.0.0.1"), spec("::1")];
    let mut kernel = Kernel::new();
    kernel.put_time_wait(&spec("::1"), ms(2_000));
    let report = run(plan(wanted), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert!(after(&report) < ms(1), "{:?}", after(&report));
}

#[test]
fn the_end_of_time_wait_is_known_in_advance() {
    let mut kernel = Kernel::new();
    kernel.put_time_wait(&strict("127.0.0.1"), ms(700));
    let mut plan = plan(here());
    // Nobody polls in between: only the expiry itself can wake the gate in time.
    plan.recheck = ms(60_000);
    let report = run_without_events(plan, kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert!(after(&report) >= ms(700) && after(&report) < us(700_100), "{:?}", after(&report));
    assert_eq!(signals(&report), []);
}

/// Found on a live kernel: 600 MB take 40 ms to give back, during which the
/// owner has descriptors and neither exe nor argv.
#[test]
fn an_owner_that_is_dying_already_is_waited_for_and_not_called_foreign() {
    for threads in [1, 8] {
        let mut kernel = Kernel::new();
        let birth = Birth { teardown: ms(80), threads, ..Birth::of(Role::Service) };
        let owner = server(&mut kernel, birth, &here());
        kernel.later(Duration::ZERO, Happening::Exit(owner));
        let report = run(plan(here()), kernel);
        assert!(opened(&report), "{threads} threads: {:?}", report.outcome);
        assert_eq!(signals(&report), []);
    }
}

/// The same owner, asked about by its own unprivileged user: the kernel hides a
/// dying process's descriptors from everybody but root.
#[test]
fn an_unprivileged_user_waits_for_a_dying_process_of_its_own() {
    // One that this run has signalled is waited for as long as it takes.
    for (dies_by_itself, teardown) in [(true, 400), (false, 2_400)] {
        let mut kernel = Kernel::new();
        let birth = Birth { teardown: ms(teardown), uid: Uid(7), ..Birth::of(Role::Service) };
        let owner = server(&mut kernel, birth, &here());
        if dies_by_itself {
            kernel.later(Duration::ZERO, Happening::Exit(owner));
        }
        let mut plan = plan(here());
        plan.asker = Asker { uid: Uid(7), may_signal_others: false, ..plan.asker };
        let viewer = Viewer { uid: Uid(7), privileged: false, ..Viewer::ROOT };
        let mut weather = Weather::events();
        weather.fates = Some(vec![Fate::IsLost(us(5))]);
        let report = Driver::new(plan, kernel, viewer, weather).run(PATIENCE);
        assert!(opened(&report), "{:?}", report.outcome);
    }
}

/// The recheck's table read succeeded and hid that the snapshot had not.
#[test]
fn a_failed_look_after_lost_events_is_repeated_although_the_table_can_be_read() {
    let begun = BEGIN;
    let mut gate = Gate::new(plan(vec![strict("127.0.0.1")]), begun);
    while gate.next_action().is_some() {}
    let later = |micros| begun + us(micros);
    gate.observe(Fact::EventsLost { count: 1 }, later(1));
    while gate.next_action().is_some() {}
    gate.observe(Fact::TableRead { sockets: Vec::new(), begun: later(2) }, later(2));
    gate.observe(Fact::SnapshotFailed("busy".to_owned()), later(3));
    gate.observe(Fact::TableRead { sockets: Vec::new(), begun: later(4) }, later(4));
    while gate.next_action().is_some() {}
    gate.on_deadline(later(20_000));
    let asked: Vec<_> = std::iter::from_fn(|| gate.next_action()).collect();
    assert!(
        asked.iter().any(|action| matches!(action, crate::gate::Action::TakeSnapshot { .. })),
        "{asked:?}"
    );
}

#[test]
fn a_probe_that_began_at_the_very_moment_of_a_listen_proves_nothing() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    while gate.next_action().is_some() {}
    let at = BEGIN + us(10);
    let hint = Hint::ListenerOpened { address: here()[0].address, port: here()[0].port };
    gate.observe(Fact::Hinted { hint, at }, BEGIN + us(20));
    gate.observe(Fact::Probed { outcomes: vec![BindOutcome::Bindable], begun: at }, BEGIN + us(21));
    assert_eq!(gate.outcome(), None);
    assert!(!matches!(gate.verdicts()[0], Verdict::Free));
}

/// It has the next probe's code and data in the processor's caches when the port is given back. A strict one would
/// be in the service's way.
#[test]
fn an_owners_exit_brings_one_silent_probe_unless_it_is_strict() {
    let owner = Kernel::new().old(Birth::of(Role::Service));
    for (endpoint, probes) in [(spec("127.0.0.1"), 1), (strict("127.0.0.1"), 0)] {
        let mut gate = Gate::new(plan(vec![endpoint]), BEGIN);
        let busy = |begun| Fact::Probed { outcomes: vec![BindOutcome::InUse], begun };
        gate.observe(busy(BEGIN), BEGIN + us(1));
        while gate.next_action().is_some() {}
        let at = BEGIN + ms(2);
        let exiting = || Fact::Hinted { hint: Hint::OwnerExiting { process: owner, status: None }, at };
        gate.observe(exiting(), at + us(1));
        let recorded = gate.timeline().entries().len();
        let asked: Vec<_> = std::iter::from_fn(|| gate.next_action()).collect();
        assert_eq!(asked.len(), probes, "{asked:?}");
        assert!(asked.iter().all(|action| matches!(action, crate::gate::Action::Probe)), "{asked:?}");
        gate.observe(busy(at + us(1)), at + us(2));
        assert_eq!(gate.timeline().entries().len(), recorded, "nothing new is told of");
        gate.observe(exiting(), at + us(3));
        assert!(gate.next_action().is_none(), "another one that exits at the same time brings none");
        assert_eq!(gate.outcome(), None);
    }
}

/// A socket table does not tell a client's own port from an old server's connection.
#[test]
fn the_owner_of_a_mere_connection_is_waited_for_and_never_signalled() {
    for connection in [spec("127.0.0.1"), strict("127.0.0.1")] {
        let mut kernel = Kernel::new();
        let client = kernel.old(Birth::of(Role::Service));
        kernel.put(Some(client), &strict("127.0.0.1"), TcpState::Established);
        let report = run(plan(vec![connection]), kernel);
        assert!(matches!(report.outcome, Some(Outcome::StillBusy { .. })), "{:?}", report.outcome);
        assert_eq!(signals(&report), []);
    }
}

/// The listener is closed on SIGTERM, the connections stay: a strict bind needs them gone too.
#[test]
fn an_owner_that_claimed_the_port_is_ended_for_its_connections_too() {
    let mut kernel = Kernel::new();
    let owner = kernel.old(Birth { on_term: OnTerm::Ignore, ..Birth::of(Role::Service) });
    kernel.put(Some(owner), &strict("127.0.0.1"), TcpState::Listen);
    kernel.put(Some(owner), &strict("127.0.0.1"), TcpState::Established);
    let report = run(plan(vec![strict("127.0.0.1")]), kernel);
    assert_eq!(signals(&report), [(owner, Signal::Term), (owner, Signal::Kill)]);
}
