//! Example runs of a strict service that waits for TIME_WAIT to end, where the
//! kernel tells of each end.

use super::evidence::actions;
use super::*;
use crate::gate::Action;
use crate::model::Socket;

fn time_wait(count: usize) -> Vec<Socket> {
    let mut kernel = Kernel::new();
    for _ in 0..count {
        kernel.put(None, &strict("127.0.0.1"), TcpState::TimeWait);
    }
    kernel.table(&Viewer::ROOT).into_iter().map(|(_, socket)| socket).collect()
}

fn table(sockets: Vec<Socket>, begun: Instant) -> Fact {
    Fact::TableRead { sockets, begun }
}

fn ended(at: Instant) -> Fact {
    Fact::Hinted { hint: Hint::TimeWaitEnded { port: here()[0].port }, at }
}

fn waiting(count: usize) -> Gate {
    let plan = Plan { goal: Goal::Wait, recheck: ms(250), ..plan(vec![strict("127.0.0.1")]) };
    let mut gate = Gate::new(plan, BEGIN);
    actions(&mut gate);
    gate.observe(table(time_wait(count), BEGIN), BEGIN + us(1));
    actions(&mut gate);
    gate
}

#[test]
fn the_end_of_the_last_time_wait_has_the_table_read_at_once() {
    let mut gate = waiting(1);
    let now = BEGIN + ms(5);
    gate.observe(ended(now), now);
    assert_eq!(actions(&mut gate), [Action::ReadTable]);
    gate.observe(table(Vec::new(), now), now + us(1));
    assert_eq!(actions(&mut gate), [Action::Probe]);
    let probed = Fact::Probed { outcomes: vec![BindOutcome::Bindable], begun: now + us(2) };
    gate.observe(probed, now + us(3));
    assert!(matches!(gate.outcome(), Some(Outcome::Opened(_))), "{:?}", gate.outcome());
}

/// They end by the thousand: each of them is not worth a look of its own.
#[test]
fn the_ends_before_the_last_one_only_bring_the_next_look_near() {
    let mut gate = waiting(3);
    let now = BEGIN + ms(5);
    gate.observe(ended(now), now);
    gate.observe(ended(now), now);
    assert_eq!(actions(&mut gate), []);
    assert!(gate.next_deadline() <= Some(now + ms(1)), "{:?}", gate.next_deadline());
    gate.observe(ended(now), now);
    assert_eq!(actions(&mut gate), [Action::ReadTable]);
    // More than were known of: others came and went meanwhile.
    gate.observe(table(Vec::new(), now), now + us(1));
    actions(&mut gate);
    gate.observe(ended(now), now + us(2));
    assert_eq!(actions(&mut gate), []);
}
