//! Example runs, each of which pins one promise.

use super::toy::{
    BEGIN, Birth, Driver, Fate, Happening, Kernel, OUR_SERVICE, OnTerm, Report, Role, SHELL, Viewer, Weather,
    ms, plan, spec, strict, tick, us,
};
use super::{Fact, Gate, Goal, Hint, Outcome, Plan};
use crate::model::{
    BindOutcome, BindSpec, Instant, Owners, ProcessId, Signal, StartTime, TcpState, Tgid, Uid, UnknownReason,
    Unseen, Verdict,
};
use crate::policy::{Asker, Class, Reason};
use crate::timeline::Entry;
use std::time::Duration;

mod evicting;
mod evidence;
mod expiring;
mod looking;
mod losing;
mod moving;
mod waiting;

const PATIENCE: Duration = Duration::from_secs(10);

fn here() -> Vec<BindSpec> {
    vec![spec("127.0.0.1")]
}

/// A gateway that listens on these endpoints.
fn gateway(kernel: &mut Kernel, on_term: OnTerm, endpoints: &[BindSpec]) -> ProcessId {
    server(kernel, Birth { on_term, ..Birth::of(Role::Service) }, endpoints)
}

fn server(kernel: &mut Kernel, birth: Birth, endpoints: &[BindSpec]) -> ProcessId {
    let id = kernel.old(birth);
    for spec in endpoints {
        kernel.put(Some(id), spec, TcpState::Listen);
    }
    id
}

fn run(plan: Plan, kernel: Kernel) -> Report {
    Driver::new(plan, kernel, Viewer::ROOT, Weather::events()).run(PATIENCE)
}

fn run_without_events(plan: Plan, kernel: Kernel) -> Report {
    Driver::new(plan, kernel, Viewer::ROOT, Weather::polling()).run(PATIENCE)
}

fn after(report: &Report) -> Duration {
    report.at.since(BEGIN)
}

fn signals(report: &Report) -> Vec<(ProcessId, Signal)> {
    report.sent.iter().map(|sent| (sent.process, sent.signal)).collect()
}

fn opened(report: &Report) -> bool {
    matches!(report.outcome, Some(Outcome::Opened(_)))
}

#[test]
fn a_free_port_opens_at_once() {
    let report = run(plan(here()), Kernel::new());
    assert!(opened(&report), "{:?}", report.outcome);
    assert!(after(&report) < us(50), "{:?}", after(&report));
    assert_eq!(report.probes, 1);
    assert_eq!(signals(&report), []);
}

#[test]
fn a_polite_owner_is_sent_one_sigterm() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Exit(ms(20)), &here());
    let report = run(plan(here()), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(signals(&report), [(owner, Signal::Term)]);
    // It opens when the pidfd says so, not at the next poll.
    let late = report.at.since(report.all_gone.expect("it is gone"));
    assert!(late < us(50), "{late:?} after its end");
    assert!(!report.timeline.contains("Unkillable"));
}

#[test]
fn a_stubborn_owner_is_killed_after_its_budget_and_another_look() {
    let mut kernel = Kernel::new();
    let birth = Birth { on_term: OnTerm::Ignore, teardown: ms(40), ..Birth::of(Role::Service) };
    let owner = server(&mut kernel, birth, &here());
    let report = run(plan(here()), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(signals(&report), [(owner, Signal::Term), (owner, Signal::Kill)]);
    let pause = report.sent[1].asked.since(report.sent[0].delivered.expect("delivered"));
    assert!(pause >= ms(100) && pause < ms(101), "{pause:?}");
    let last_look =
        report.gate.timeline().entries().iter().filter(|(_, entry)| matches!(entry, Entry::Looked { .. }));
    assert!(last_look.count() >= 1);
    assert!(after(&report) >= ms(140), "the sockets of a killed process stay for a while");
}

#[test]
fn every_sharer_of_the_listener_is_ended() {
    let mut kernel = Kernel::new();
    let parent = gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    let child = kernel.old(Birth { on_term: OnTerm::Ignore, ..Birth::of(Role::Service) });
    kernel.share(parent, child);
    let report = run(plan(here()), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(signals(&report), [(parent, Signal::Term), (child, Signal::Term), (child, Signal::Kill)]);
}

#[test]
fn a_foreign_sharer_saves_everybody() {
    for weather in [Weather::events(), Weather::polling()] {
        let mut kernel = Kernel::new();
        let owner = gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
        let stranger = kernel.old(Birth::of(Role::Stranger));
        kernel.share(owner, stranger);
        let report = Driver::new(plan(here()), kernel, Viewer::ROOT, weather).run(PATIENCE);
        let Some(Outcome::Refused(refused)) = &report.outcome else { panic!("{:?}", report.outcome) };
        assert_eq!(refused.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [stranger]);
        assert_eq!(refused[0].1.class, Class::Foreign);
        assert_eq!(signals(&report), []);
        assert!(after(&report) < ms(1));
    }
}

#[test]
fn a_foreign_holder_of_another_endpoint_saves_everybody() {
    let both = vec![spec("127.0.0.1"), spec("::1")];
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Exit(ms(1)), &both[..1]);
    let stranger = server(&mut kernel, Birth::of(Role::Stranger), &both[1..]);
    let report = run(plan(both), kernel);
    let Some(Outcome::Refused(refused)) = &report.outcome else { panic!("{:?}", report.outcome) };
    assert_eq!(refused[0].0, stranger);
    assert_eq!(signals(&report), []);
}

/// The table does not show whether a bound-only socket set SO_REUSEADDR; that
/// the other endpoint has a certain holder explains nothing here.
#[test]
fn a_foreign_bound_only_socket_on_the_other_endpoint_is_seen_before_anybody_is_signalled() {
    let both = vec![spec("127.0.0.1"), spec("::1")];
    let mut kernel = Kernel::new();
    gateway(&mut kernel, OnTerm::Exit(ms(1)), &both[..1]);
    let stranger = kernel.old(Birth::of(Role::Stranger));
    kernel.put(Some(stranger), &strict("::1"), TcpState::BoundInactive);
    let report = run(plan(both), kernel);
    assert!(matches!(report.outcome, Some(Outcome::Refused(_))), "{:?}", report.outcome);
    assert_eq!(signals(&report), []);
}

#[test]
fn a_harmless_foreign_socket_on_a_bindable_endpoint_is_no_reason_to_refuse() {
    let both = vec![spec("127.0.0.1"), spec("::1")];
    let mut kernel = Kernel::new();
    let stranger = kernel.old(Birth::of(Role::Stranger));
    kernel.put(Some(stranger), &both[0], TcpState::BoundInactive);
    let owner = kernel.old(Birth::of(Role::Service));
    kernel.put(Some(owner), &strict("::1"), TcpState::BoundInactive);
    let report = run(plan(both), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
    assert_eq!(signals(&report), [(owner, Signal::Term)]);
}

/// A strict plan's table says "in use" for the endpoint that is, and nothing
/// about the other.
#[test]
fn a_harmless_foreign_socket_is_not_blamed_for_what_a_strict_table_says_of_another_endpoint() {
    let both = vec![strict("127.0.0.1"), spec("::1")];
    let mut kernel = Kernel::new();
    kernel.put_time_wait(&both[0], ms(50));
    let stranger = kernel.old(Birth::of(Role::Stranger));
    kernel.put(Some(stranger), &both[1], TcpState::BoundInactive);
    let report = run(plan(both), kernel);
    assert!(opened(&report), "{:?}", report.outcome);
}

#[test]
fn a_foreign_socket_that_may_be_harmless_is_not_blamed_before_time_wait_is_over() {
    for (harmless, opens) in [(true, true), (false, false)] {
        let mut kernel = Kernel::new();
        kernel.put_time_wait(&strict("127.0.0.1"), ms(500));
        let stranger = kernel.old(Birth::of(Role::Stranger));
        let bound = if harmless { spec("127.0.0.1") } else { strict("127.0.0.1") };
        kernel.put(Some(stranger), &bound, TcpState::BoundInactive);
        let report = run(plan(here()), kernel);
        assert_eq!(opened(&report), opens, "{:?}", report.outcome);
        assert_eq!(matches!(report.outcome, Some(Outcome::Refused(_))), !opens);
    }
}

#[test]
fn the_askers_ancestor_is_protected_even_from_any_owner() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    kernel.share(owner, SHELL);
    let mut plan = plan(here());
    plan.rules.any_owner = true;
    let report = run(plan, kernel);
    let Some(Outcome::Refused(refused)) = &report.outcome else { panic!("{:?}", report.outcome) };
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].1.reasons, [Reason::Ancestor(1)]);
    assert_eq!(signals(&report), []);
}

#[test]
fn a_service_that_divides_its_cgroup_is_protected_as_a_whole() {
    let mut kernel = Kernel::new();
    server(&mut kernel, Birth::of(Role::Roommate), &here());
    let report = run(plan(here()), kernel);
    let Some(Outcome::Refused(refused)) = &report.outcome else { panic!("{:?}", report.outcome) };
    assert_eq!(refused[0].1.reasons, [Reason::SameServiceCgroup(OUR_SERVICE.to_owned())]);
}

#[test]
fn a_kernel_held_listener_is_waited_for_until_the_deadline() {
    let mut kernel = Kernel::new();
    let key = kernel.put(None, &here()[0], TcpState::Listen);
    kernel.sockets.get_mut(&key).expect("just put").pinned = true;
    let report = run(plan(here()), kernel);
    assert_eq!(report.outcome, Some(Outcome::StillBusy { pending: Vec::new() }));
    assert_eq!(after(&report), ms(3_000));
    assert!(report.gate.holders()[0].is_kernel_held());
    assert_eq!(signals(&report), []);
}

#[test]
fn another_users_stale_owner_is_not_permitted_before_any_signal() {
    let mut kernel = Kernel::new();
    let ours = server(&mut kernel, Birth { uid: Uid(7), ..Birth::of(Role::Service) }, &here());
    let theirs = kernel.old(Birth { uid: Uid(8), ..Birth::of(Role::Service) });
    kernel.share(ours, theirs);
    let mut plan = plan(here());
    plan.asker = Asker { uid: Uid(7), may_signal_others: false, ..plan.asker };
    let report = run(plan, kernel);
    assert_eq!(report.outcome, Some(Outcome::NotPermitted(vec![theirs])));
    assert_eq!(signals(&report), []);
}

#[test]
fn a_newcomer_is_left_alone() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::HandOver(ms(10)), &here());
    let report = run(plan(here()), kernel);
    assert_eq!(report.outcome, Some(Outcome::StillBusy { pending: Vec::new() }));
    assert_eq!(signals(&report), [(owner, Signal::Term)]);
    let successor = &report.gate.holders()[0].owners[0];
    assert_eq!(successor.judgement.class, Class::Newcomer);
    assert!(report.kernel.process(successor.id).is_some());
}

#[test]
fn a_respawned_server_is_left_alone() {
    let mut kernel = Kernel::new();
    let birth = Birth { respawn: Some(us(1)), listens: here(), ..Birth::of(Role::Service) };
    let owner = server(&mut kernel, birth, &here());
    // The old one lingers on a second endpoint, so the first is taken before the gate can open.
    let both = vec![spec("127.0.0.1"), spec("::1")];
    let slow = gateway(&mut kernel, OnTerm::Exit(ms(50)), &both[1..]);
    let report = run(plan(both), kernel);
    assert_eq!(report.outcome, Some(Outcome::StillBusy { pending: Vec::new() }));
    assert_eq!(signals(&report), [(owner, Signal::Term), (slow, Signal::Term)]);
}

/// Three times in a row somebody new takes the port; the gate cannot open in
/// between because an ended owner takes its time.
#[test]
fn the_third_newcomer_ends_a_duel() {
    for weather in [Weather::events(), Weather::polling()] {
        let mut kernel = Kernel::new();
        gateway(&mut kernel, OnTerm::CloseAndLinger(ms(1), None), &here());
        for start in [20, 120, 220, 320] {
            let newcomer = Birth { listens: here(), holds: Some(ms(50)), ..Birth::of(Role::Stranger) };
            kernel.later(ms(start), Happening::Spawn(newcomer));
        }
        let mut plan = plan(here());
        plan.budgets.drain = ms(2_000);
        let report = Driver::new(plan, kernel, Viewer::ROOT, weather).run(PATIENCE);
        let Some(Outcome::Duel(rivals)) = &report.outcome else { panic!("{:?}", report.outcome) };
        assert_eq!(rivals.len(), 3);
        assert!(after(&report) < ms(230));
    }
}

#[test]
fn a_newcomer_with_four_workers_is_one_round_and_no_duel() {
    let mut kernel = Kernel::new();
    let master = kernel.aged(Birth::of(Role::Service), StartTime(tick(BEGIN).0 + 1));
    kernel.put(Some(master), &here()[0], TcpState::Listen);
    for _ in 0..4 {
        let worker = kernel.aged(Birth::of(Role::Service), StartTime(tick(BEGIN).0 + 1));
        kernel.share(master, worker);
    }
    let report = run(plan(here()), kernel);
    assert_eq!(report.outcome, Some(Outcome::StillBusy { pending: Vec::new() }));
}

#[test]
fn a_deadline_within_the_drain_budget_leaves_the_owner_alive() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Ignore, &here());
    let mut plan = plan(here());
    plan.budgets.total = Some(ms(60));
    let report = run(plan, kernel);
    assert_eq!(report.outcome, Some(Outcome::StillBusy { pending: vec![owner] }));
    assert_eq!(signals(&report), [(owner, Signal::Term)]);
}

#[test]
fn an_unkillable_owner_is_named() {
    let mut kernel = Kernel::new();
    let owner = server(&mut kernel, Birth { stuck: true, ..Birth::of(Role::Service) }, &here());
    let report = run(plan(here()), kernel);
    assert_eq!(report.outcome, Some(Outcome::StillBusy { pending: vec![owner] }));
    let named = report
        .gate
        .timeline()
        .entries()
        .iter()
        .any(|(_, entry)| matches!(entry, Entry::Unkillable { process, .. } if *process == owner));
    assert!(named);
}

#[test]
fn a_program_that_took_the_stale_ones_place_is_spared() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Become(ms(10), true), &here());
    let report = run(plan(here()), kernel);
    assert!(matches!(&report.outcome, Some(Outcome::Refused(refused)) if refused[0].0 == owner));
    assert_eq!(signals(&report), [(owner, Signal::Term)]);
    assert!(report.timeline.contains("Spared"));
}

#[test]
fn a_reused_number_is_never_signalled() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    let newcomer = Birth { tgid: Some(owner.tgid), listens: here(), ..Birth::of(Role::Service) };
    kernel.later(ms(2), Happening::Spawn(newcomer));
    let both = vec![spec("127.0.0.1"), spec("::1")];
    let slow = gateway(&mut kernel, OnTerm::Exit(ms(200)), &both[1..]);
    let report = run(plan(both), kernel);
    assert_eq!(signals(&report), [(owner, Signal::Term), (slow, Signal::Term), (slow, Signal::Kill)]);
    assert_eq!(report.outcome, Some(Outcome::StillBusy { pending: Vec::new() }));
}
