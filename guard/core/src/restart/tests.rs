use proptest::prelude::*;

use super::*;
use crate::gate::Proof;
use crate::model::{KillMode, Manager, StartTime, Tgid, UnitName};

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn plan() -> Plan {
    Plan {
        stop: Some(Duration::from_secs(30)),
        follow: Duration::from_secs(20),
        total: None,
        already_running: vec![78],
    }
}

fn id(tgid: u32) -> ProcessId {
    ProcessId { tgid: Tgid(tgid), start: StartTime(u64::from(tgid)) }
}

fn seen(state: ActiveState, sub_state: &str, main_exit: Option<MainExit>) -> Fact {
    let runs = state == ActiveState::Active;
    let unit = Unit {
        name: UnitName::new("x"),
        manager: Manager::System,
        main_pid: runs.then(|| id(7)),
        control_group: None,
        kill_mode: KillMode::ControlGroup,
        timeout_stop: None,
        restart: "always".to_owned(),
        active_state: state,
        n_restarts: 0,
        result: "success".to_owned(),
    };
    let details = UnitDetails {
        sub_state: sub_state.to_owned(),
        send_sigkill: true,
        main_exit,
        sockets: Vec::new(),
        stopped_along: Vec::new(),
    };
    Fact::UnitSeen(Box::new((unit, details)))
}

fn opened() -> Fact {
    Fact::Freed(Outcome::Opened(Proof { probed: at(1), release_latency: None, endpoints: Vec::new() }))
}

fn actions(restart: &mut Restart) -> Vec<Action> {
    std::iter::from_fn(|| restart.next_action()).collect()
}

/// Brings it to where it is followed.
fn followed() -> Restart {
    let mut restart = Restart::new(plan(), at(0));
    for fact in [
        Fact::Looked(Ahead::Clear),
        Fact::JobOver(JobResult::Done),
        opened(),
        Fact::FailureReset(Ok(())),
        Fact::JobOver(JobResult::Done),
    ] {
        restart.observe(fact, at(1));
    }
    assert_eq!(actions(&mut restart).last(), Some(&Action::Follow));
    restart
}

#[test]
fn the_steps_come_in_their_order() {
    let mut restart = Restart::new(plan(), at(0));
    assert_eq!(actions(&mut restart), [Action::Look]);
    restart.observe(Fact::Looked(Ahead::Clear), at(1));
    assert_eq!(actions(&mut restart), [Action::Ask(JobKind::Stop)]);
    restart.observe(Fact::JobOver(JobResult::Done), at(2));
    assert_eq!(actions(&mut restart), [Action::Free]);
    restart.observe(opened(), at(3));
    assert_eq!(actions(&mut restart), [Action::ResetFailed]);
    restart.observe(Fact::FailureReset(Ok(())), at(3));
    assert_eq!(actions(&mut restart), [Action::Ask(JobKind::Start)]);
    restart.observe(Fact::JobOver(JobResult::Done), at(4));
    assert_eq!(actions(&mut restart), [Action::Follow]);
    restart.observe(seen(ActiveState::Active, "running", None), at(4));
    restart.observe(Fact::PortSeen(Follow::Listening(id(7))), at(5));
    assert_eq!(restart.end(), Some(&End::Restarted(Some(id(7)))));
}

#[test]
fn a_port_that_could_not_be_freed_is_a_reason_not_to_stop() {
    let mut restart = Restart::new(plan(), at(0));
    let refused = Ahead::Refused(Vec::new());
    restart.observe(Fact::Looked(refused.clone()), at(1));
    assert_eq!(restart.end(), Some(&End::NotBegun(refused)));
    assert_eq!(actions(&mut restart), []);
}

#[test]
fn a_stop_that_takes_too_long_starts_nothing() {
    let mut restart = Restart::new(plan(), at(0));
    restart.observe(Fact::Looked(Ahead::Clear), at(1));
    restart.on_deadline(at(30));
    assert_eq!(restart.end(), None);
    restart.on_deadline(at(31));
    assert_eq!(restart.end(), Some(&End::NotStopped(None)));
    restart.observe(Fact::JobOver(JobResult::Done), at(32));
    assert_eq!(restart.end(), Some(&End::NotStopped(None)), "ends are final");
}

#[test]
fn somebody_else_s_start_while_the_port_is_waited_for_is_followed() {
    let mut restart = Restart::new(plan(), at(0));
    restart.observe(Fact::Looked(Ahead::Clear), at(1));
    restart.observe(Fact::JobOver(JobResult::Done), at(2));
    restart.observe(seen(ActiveState::Active, "running", None), at(3));
    restart.observe(Fact::Freed(Outcome::StillBusy { pending: Vec::new() }), at(3));
    assert_eq!(actions(&mut restart).last(), Some(&Action::Follow));
    restart.observe(Fact::PortSeen(Follow::Listening(id(7))), at(4));
    assert_eq!(restart.end(), Some(&End::Restarted(Some(id(7)))));
}

#[test]
fn a_refused_gate_starts_nothing_although_the_unit_runs() {
    let mut restart = Restart::new(plan(), at(0));
    restart.observe(Fact::Looked(Ahead::Clear), at(1));
    restart.observe(Fact::JobOver(JobResult::Done), at(2));
    restart.observe(seen(ActiveState::Active, "running", None), at(3));
    restart.observe(Fact::Freed(Outcome::Refused(Vec::new())), at(3));
    assert_eq!(restart.end(), Some(&End::GateShut(Outcome::Refused(Vec::new()))));
}

#[test]
fn a_crash_that_systemd_mends_is_told_once_and_waited_for() {
    let mut restart = followed();
    let crash = seen(ActiveState::Activating, "auto-restart", Some(MainExit::Code(1)));
    restart.observe(crash.clone(), at(2));
    restart.observe(crash, at(3));
    assert_eq!(restart.end(), None);
    let crashes = restart.steps().iter().filter(|(_, step)| matches!(step, Step::Crashed(_))).count();
    assert_eq!(crashes, 1);
    restart.on_deadline(at(21));
    assert_eq!(restart.end(), Some(&End::Silent));
}

#[test]
fn a_unit_that_ends_without_listening_died() {
    let mut restart = followed();
    restart.observe(seen(ActiveState::Failed, "failed", Some(MainExit::Code(1))), at(2));
    assert_eq!(restart.end(), Some(&End::Died(Some(MainExit::Code(1)))));
}

#[test]
fn code_78_with_another_listener_is_no_crash() {
    for (state, sub_state) in [(ActiveState::Failed, "failed"), (ActiveState::Activating, "auto-restart")] {
        let mut restart = followed();
        restart.observe(Fact::PortSeen(Follow::Other(id(9))), at(2));
        assert_eq!(restart.end(), None, "the unit may take it yet");
        restart.observe(seen(state, sub_state, Some(MainExit::Code(78))), at(2));
        assert_eq!(restart.end(), Some(&End::Rival { process: id(9), told: Some(78) }));
    }
}

fn any_fact() -> impl Strategy<Value = Fact> {
    prop_oneof![
        Just(Fact::Looked(Ahead::Clear)),
        Just(Fact::Looked(Ahead::Refused(Vec::new()))),
        Just(Fact::JobOver(JobResult::Done)),
        Just(Fact::JobOver(JobResult::Failed)),
        Just(Fact::JobRefused { why: String::new(), denied: true }),
        Just(opened()),
        Just(Fact::Freed(Outcome::StillBusy { pending: Vec::new() })),
        Just(Fact::FailureReset(Ok(()))),
        Just(Fact::FailureReset(Err(String::new()))),
        Just(seen(ActiveState::Active, "running", None)),
        Just(seen(ActiveState::Failed, "failed", Some(MainExit::Signal(9)))),
        Just(seen(ActiveState::Activating, "auto-restart", Some(MainExit::Code(78)))),
        Just(Fact::PortSeen(Follow::NotYet)),
        Just(Fact::PortSeen(Follow::Listening(id(7)))),
        Just(Fact::PortSeen(Follow::Other(id(9)))),
        Just(Fact::Lost(String::new())),
    ]
}

proptest! {
    /// Whatever is said in whatever order: nothing starts before the gate has opened, nothing is
    /// stopped before a look that allows it, and an end is final.
    #[test]
    fn no_order_of_facts_starts_behind_a_shut_gate(facts in prop::collection::vec((any_fact(), 0_u64..3), 0..20)) {
        let mut restart = Restart::new(plan(), at(0));
        let (mut clear, mut open, mut now) = (false, false, 0);
        let mut ended: Option<End> = None;
        for (fact, pause) in facts {
            let phase = restart.phase;
            clear |= phase == Phase::Looking && fact == Fact::Looked(Ahead::Clear);
            open |= phase == Phase::Freeing && matches!(fact, Fact::Freed(Outcome::Opened(_)));
            now += pause;
            restart.observe(fact, at(now));
            for action in actions(&mut restart) {
                match action {
                    Action::Ask(JobKind::Stop) => prop_assert!(clear),
                    Action::Ask(JobKind::Start) => prop_assert!(open),
                    Action::Look | Action::Free | Action::ResetFailed | Action::Follow => {}
                }
            }
            if let Some(ended) = &ended {
                prop_assert_eq!(restart.end(), Some(ended));
            }
            ended = restart.end().cloned();
            let waits_for_an_answer = matches!(restart.phase, Phase::Looking | Phase::Freeing | Phase::Resetting);
            prop_assert!(ended.is_some() || waits_for_an_answer || restart.next_deadline().is_some());
        }
    }
}

fn unit(control_group: &str, timeout_stop: Option<Duration>) -> Unit {
    Unit {
        name: UnitName::new("x"),
        manager: Manager::System,
        main_pid: None,
        control_group: Some(control_group.to_owned()),
        kill_mode: KillMode::ControlGroup,
        timeout_stop,
        restart: "no".to_owned(),
        active_state: ActiveState::Active,
        n_restarts: 0,
        result: "success".to_owned(),
    }
}

#[test]
fn a_unit_is_not_restarted_from_where_its_stop_would_end_portguard() {
    let asker = |cgroup: Option<&str>| crate::policy::Asker {
        process: id(1),
        ancestors: Vec::new(),
        ancestry_hidden: false,
        cgroup: cgroup.map(str::to_owned),
        uid: crate::model::Uid(0),
        may_signal_others: true,
        requested: StartTime(1),
    };
    let details = |sockets: &[&str], along: &[&str]| UnitDetails {
        sub_state: "running".to_owned(),
        send_sigkill: true,
        main_exit: None,
        sockets: sockets.iter().map(|&name| name.to_owned()).collect(),
        stopped_along: along.iter().map(|&name| name.to_owned()).collect(),
    };
    let x = unit("/system.slice/x.service", None);
    let found =
        |cgroup, sockets: &[&str], along: &[&str]| obstacle(&x, &details(sockets, along), &asker(cgroup));
    assert_eq!(found(None, &[], &["y.service"]), None);
    assert_eq!(found(Some("/system.slice/y.service"), &[], &[]), None);
    assert_eq!(found(Some("/system.slice/xy.service"), &[], &["y.service"]), None);
    assert_eq!(found(None, &["x.socket"], &[]), Some(Obstacle::Socket("x.socket".to_owned())));
    let inside = found(Some("/system.slice/x.service/part"), &[], &[]);
    assert!(matches!(&inside, Some(Obstacle::Inside { along: false, .. })), "{inside:?}");
    let along = found(Some("/system.slice/y.service"), &[], &["y.service"]);
    assert!(
        matches!(&along, Some(Obstacle::Inside { unit, along: true, .. }) if unit == "y.service"),
        "{along:?}"
    );
}

#[test]
fn what_a_unit_leaves_has_its_own_time_and_its_stop_twice_as_much() {
    let x = |timeout| unit("/x.service", timeout);
    assert_eq!(drain(&x(Some(Duration::from_secs(315)))), Duration::from_secs(315));
    assert_eq!(longest_stop(&x(Some(Duration::from_secs(315)))), Duration::from_secs(640));
    // Without a limit of systemd's there is one of ours.
    assert!(drain(&x(None)) >= Duration::from_secs(60) && longest_stop(&x(None)) >= drain(&x(None)));
    assert_eq!(longest_stop(&x(Some(Duration::MAX))), Duration::MAX);
}
