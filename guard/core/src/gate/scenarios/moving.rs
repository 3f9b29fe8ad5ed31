//! Example runs in which somebody takes a process in hand that is being ended.

use super::*;
use crate::gate::Reach;
use crate::gate::toy::Place;

fn spared_and_why(report: &Report, process: ProcessId) -> bool {
    report.gate.timeline().entries().iter().any(|(_, entry)| match entry {
        Entry::Spared { process: spared, judgement } => {
            *spared == process && matches!(judgement.reasons[..], [Reason::Moved { .. }])
        }
        _ => false,
    })
}

#[test]
fn a_descendant_that_another_service_took_in_hand_gets_no_sigkill() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Ignore, &here());
    let child =
        kernel.old(Birth { parent: Some(owner), on_term: OnTerm::Ignore, ..Birth::of(Role::Stranger) });
    kernel.later(ms(20), Happening::Move(child, Place::OtherService));
    let report = run(Plan { reach: Reach::Tree, ..plan(here()) }, kernel);
    assert_eq!(signals(&report), [(owner, Signal::Term), (child, Signal::Term), (owner, Signal::Kill)]);
    assert!(spared_and_why(&report, child), "{}", report.timeline);
    assert!(opened(&report), "{:?}", report.outcome);
}

#[test]
fn a_descendant_that_stays_where_it_was_gets_its_sigkill_although_its_ancestor_is_gone() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Exit(ms(1)), &here());
    let child =
        kernel.old(Birth { parent: Some(owner), on_term: OnTerm::Ignore, ..Birth::of(Role::Stranger) });
    let report = run(Plan { reach: Reach::Tree, ..plan(here()) }, kernel);
    assert_eq!(signals(&report), [(owner, Signal::Term), (child, Signal::Term), (child, Signal::Kill)]);
}

/// It still has the port, so the run ends with its name.
#[test]
fn a_sharer_that_a_container_took_in_hand_gets_no_sigkill() {
    let mut kernel = Kernel::new();
    let owner = gateway(&mut kernel, OnTerm::Ignore, &here());
    let sharer = kernel.old(Birth { on_term: OnTerm::Ignore, ..Birth::of(Role::Service) });
    kernel.share(owner, sharer);
    kernel.later(ms(20), Happening::Move(sharer, Place::Container));
    let report = run(plan(here()), kernel);
    assert_eq!(signals(&report), [(owner, Signal::Term), (sharer, Signal::Term), (owner, Signal::Kill)]);
    assert!(spared_and_why(&report, sharer), "{}", report.timeline);
    let named = |outcome: &Outcome| matches!(outcome, Outcome::Refused(refused) if refused[0].0 == sharer);
    assert!(report.outcome.as_ref().is_some_and(named), "{:?}", report.outcome);
}
