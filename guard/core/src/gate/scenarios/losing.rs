//! Example runs in which somebody else fails to bind the port.

use super::evidence::{actions, in_use, look};
use super::*;
use crate::gate::JudgedHolder;
use crate::model::FailedBind;

fn loser(number: u32) -> FailedBind {
    FailedBind {
        address: here()[0].address,
        port: here()[0].port,
        by_listen: false,
        attempts: 1,
        tgid: Some(Tgid(number)),
        start: None,
        comm: "node".to_owned(),
        uid: Uid(0),
        cgroup: None,
        process: None,
    }
}

fn failed(number: u32, at: Instant) -> Fact {
    Fact::BindFailed { bind: Box::new(loser(number)), at }
}

/// Who lost, and who had the port then.
fn told(gate: &Gate) -> Vec<(u32, Vec<ProcessId>, Option<Instant>)> {
    let owners = |holders: &[JudgedHolder]| {
        holders.iter().flat_map(|judged| judged.owners.iter().map(|owner| owner.id)).collect()
    };
    let entries = gate.timeline().entries().iter();
    entries
        .filter_map(|(_, entry)| match entry {
            Entry::BindFailed { bind, holders, looked } => Some((bind.tgid?.0, owners(holders), *looked)),
            _ => None,
        })
        .collect()
}

/// Whoever lost before the first look is told of with that look's holders.
#[test]
fn a_loser_is_told_of_with_the_holder_of_the_nearest_look() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    actions(&mut gate);
    gate.observe(failed(7, BEGIN + us(1)), BEGIN + us(2));
    gate.observe(in_use(2), BEGIN + us(3));
    assert_eq!(told(&gate), []);
    let (snapshot, owner) = look(Role::Service, 10, 20);
    gate.observe(snapshot, BEGIN + us(20));
    gate.observe(failed(8, BEGIN + us(30)), BEGIN + us(31));
    let looked = Some(BEGIN + us(10));
    assert_eq!(told(&gate), [(7, vec![owner], looked), (8, vec![owner], looked)]);
}

/// After the listener closed, the last look's owner is not the one who won.
#[test]
fn a_loser_after_the_release_waits_for_the_next_look() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    actions(&mut gate);
    gate.observe(in_use(2), BEGIN + us(3));
    gate.observe(look(Role::Service, 10, 20).0, BEGIN + us(20));
    let hint = Hint::ListenerClosed { address: here()[0].address, port: here()[0].port };
    gate.observe(Fact::Hinted { hint, at: BEGIN + us(40) }, BEGIN + us(41));
    gate.observe(failed(7, BEGIN + us(50)), BEGIN + us(51));
    assert_eq!(told(&gate), []);
    let (snapshot, next) = look(Role::Stranger, 100, 120);
    gate.observe(snapshot, BEGIN + us(120));
    assert_eq!(told(&gate), [(7, vec![next], Some(BEGIN + us(100)))]);
}

/// What no look explains is told of at the end, before the end.
#[test]
fn a_loser_that_no_look_explains_is_told_of_at_the_end() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    actions(&mut gate);
    gate.observe(failed(7, BEGIN + us(1)), BEGIN + us(2));
    let probed = Fact::Probed { outcomes: vec![BindOutcome::Bindable], begun: BEGIN + us(3) };
    gate.observe(probed, BEGIN + us(4));
    assert!(matches!(gate.outcome(), Some(Outcome::Opened(_))), "{:?}", gate.outcome());
    assert_eq!(told(&gate), [(7, vec![], None)]);
    assert!(matches!(gate.timeline().entries().last(), Some((_, Entry::Ended(_)))));
}

/// Any process can make a bind fail as often as it likes.
#[test]
fn losers_lead_to_no_action_and_move_no_deadline() {
    let mut gate = Gate::new(plan(here()), BEGIN);
    let mut other = Gate::new(plan(here()), BEGIN);
    let crowd = |gate: &mut Gate, at: Instant| {
        for number in 0..200 {
            gate.observe(failed(number, at), at);
        }
    };
    for step in [in_use(2), look(Role::Service, 10, 20).0, in_use(30), in_use(40)] {
        let now = BEGIN + us(50);
        crowd(&mut gate, now);
        assert_eq!(actions(&mut gate), actions(&mut other));
        gate.observe(step.clone(), now);
        other.observe(step, now);
        crowd(&mut gate, now);
        assert_eq!(actions(&mut gate), actions(&mut other));
        assert_eq!(gate.next_deadline(), other.next_deadline());
        assert_eq!(gate.outcome(), other.outcome());
    }
    assert!(!gate.pending().is_empty() || gate.outcome().is_none());
}
