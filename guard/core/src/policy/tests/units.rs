//! What units and cgroups say about a process.

use std::time::Duration;

use super::*;
use crate::model::{ActiveState, KillMode, Manager, Unit, UnitId, UnitName};

const UNIT: &str = "/user.slice/user-7.slice/user@7.service/app.slice/gateway.service";

fn unit_id() -> UnitId {
    UnitId { manager: Manager::User(Uid(7)), name: UnitName::new("gateway") }
}

fn known(active_state: ActiveState, main_pid: Option<ProcessId>) -> Unit {
    Unit {
        name: UnitName::new("gateway"),
        manager: Manager::User(Uid(7)),
        main_pid,
        control_group: Some(UNIT.to_owned()),
        kill_mode: KillMode::ControlGroup,
        timeout_stop: Some(Duration::from_secs(90)),
        restart: "always".to_owned(),
        active_state,
        n_restarts: 0,
        result: "success".to_owned(),
    }
}

fn rule(state: UnitState) -> UnitRule {
    UnitRule { state, ..UnitRule::named("gateway") }
}

fn rules(state: UnitState, patterns: &[&str]) -> Rules {
    Rules { units: vec![rule(state)], ..matching(patterns) }
}

fn inside(cgroup: &str) -> Process {
    Process { cgroup: Some(cgroup.to_owned()), ..gateway() }
}

#[test]
fn a_unit_recognises_its_cgroup_and_nobody_else() {
    let named = rules(UnitState::NoManager, &[]);
    for (cgroup, expected) in [
        (UNIT, Class::Stale),
        ("/user.slice/user-7.slice/user@7.service/app.slice/gateway.service/w", Class::Stale),
        ("/system.slice/gateway.service", Class::Stale),
        ("/system.slice/nginx.service", Class::Foreign),
        ("/system.slice/docker-0.scope/system.slice/gateway.service", Class::Foreign),
        ("/docker/0/system.slice/gateway.service", Class::Foreign),
        ("/user.slice/user-7.slice/session-3.scope", Class::Foreign),
        ("/", Class::Foreign),
    ] {
        assert_eq!(class(&inside(cgroup), &named), expected, "{cgroup}");
    }
    let reasons = judged(&inside(UNIT), &named).reasons;
    assert_eq!(reasons, [matched(Field::Unit, "gateway.service", "gateway.service of user 7")]);
    let of_the_system = UnitRule { manager: Some(Manager::System), ..UnitRule::named("gateway") };
    let of_the_system = Rules { units: vec![of_the_system], ..Rules::default() };
    assert_eq!(class(&inside(UNIT), &of_the_system), Class::Foreign);
}

#[test]
fn a_cgroup_that_could_not_be_read_is_not_outside_of_every_service() {
    let unread = Process { cgroup: None, ..gateway() };
    assert_eq!(class(&unread, &rules(UnitState::NoManager, &["openclaw"])), Class::Foreign);
    let anywhere = CgroupGlob::new("*").expect("a glob");
    assert_eq!(class(&unread, &Rules { cgroups: vec![anywhere], ..Rules::default() }), Class::Foreign);
}

#[test]
fn whoever_cannot_stop_units_ends_nobody_in_a_service() {
    let careful = |cgroup: &str| {
        let rules = Rules { spare_services: true, ..matching(&["openclaw"]) };
        assert!(rules.recognises(&inside(cgroup)));
        judged(&inside(cgroup), &rules)
    };
    for cgroup in [UNIT, "/system.slice/nginx.service/worker"] {
        let judgement = careful(cgroup);
        assert_eq!(judgement.class, Class::Foreign);
        assert!(matches!(&judgement.reasons[..], [Reason::ServiceIsSpared(_)]), "{judgement:?}");
    }
    for cgroup in ["/", "/user.slice/user-7.slice/session-3.scope", "/docker/0"] {
        assert_eq!(careful(cgroup).class, Class::Stale, "{cgroup}");
    }
    let all = Rules { spare_services: true, ..any_owner() };
    assert_eq!(class(&inside(UNIT), &all), Class::Foreign);
}

#[test]
fn a_gateway_that_was_respawned_outside_its_unit_is_stale() {
    for cgroup in [
        "/user.slice/user-7.slice/session-3.scope",
        "/user.slice/user-7.slice/user@7.service/app.slice/run-r0.scope",
        "/user.slice/user-7.slice/user@7.service/init.scope",
        "/",
    ] {
        let outside = Process { cgroup: Some(cgroup.to_owned()), ..gateway() };
        let judgement = judged(&outside, &rules(UnitState::NoManager, &["openclaw"]));
        assert_eq!(judgement.class, Class::Stale, "{cgroup}");
        assert!(matches!(&judgement.reasons[0], Reason::OutsideItsUnit { .. }), "{judgement:?}");
    }
}

#[test]
fn who_is_in_another_service_or_container_is_foreign_although_it_looks_like_the_gateway() {
    for cgroup in [
        "/system.slice/openclaw-old.service",
        "/user.slice/user-8.slice/user@8.service/app.slice/other.service",
        "/system.slice/docker-0123.scope",
        "/machine.slice/libpod-0123.scope",
        "/user.slice/user-7.slice/user@7.service/user.slice/libpod-0123.scope",
        "/kubepods/burstable/pod1/0123",
    ] {
        let judgement = judged(&inside(cgroup), &rules(UnitState::NoManager, &["openclaw"]));
        assert_eq!(judgement.class, Class::Foreign, "{cgroup}");
        assert!(
            matches!(&judgement.reasons[..], [Reason::NotMatched { field: Field::Unit, value: Some(_), .. }]),
            "{judgement:?}"
        );
    }
}

#[test]
fn outside_its_unit_a_user_or_a_comm_is_not_enough() {
    let outside = inside("/user.slice/user-7.slice/session-3.scope");
    let by_uid = Rules { uid: vec![Uid(7)], ..rules(UnitState::NoManager, &[]) };
    assert_eq!(class(&outside, &by_uid), Class::Foreign);
    let by_comm = Rules { comm: vec!["MainThread".to_owned()], ..rules(UnitState::NoManager, &[]) };
    assert_eq!(class(&outside, &by_comm), Class::Foreign);
    // Inside, the unit is the other kind that a comm needs.
    assert_eq!(class(&inside(UNIT), &by_comm), Class::Stale);
    // And the other kinds still have to hold.
    assert_eq!(class(&inside(UNIT), &rules(UnitState::NoManager, &["nginx"])), Class::Foreign);
}

#[test]
fn the_running_instance_of_a_unit_is_current_whatever_else_is_asked_for() {
    let main = known(ActiveState::Active, Some(gateway().id));
    let judgement = judged(&inside("/"), &rules(UnitState::Known(main.clone()), &["openclaw"]));
    assert_eq!(judgement.class, Class::Current);
    assert_eq!(judgement.reasons, [Reason::MainProcess(unit_id())]);
    for state in [ActiveState::Active, ActiveState::Activating, ActiveState::Other("new".to_owned())] {
        let sibling = UnitState::Known(known(state, None));
        let everybody = Rules { any_owner: true, ..rules(sibling, &[]) };
        let judgement = judged(&inside(UNIT), &everybody);
        assert_eq!(judgement.class, Class::Current);
        assert_eq!(judgement.reasons, [Reason::InRunningUnit(unit_id())]);
    }
    // A process that has the main process's number and is another.
    let other = Process { id: id(100, 901), ..inside("/") };
    assert_eq!(class(&other, &rules(UnitState::Known(main), &["openclaw"])), Class::Stale);
}

#[test]
fn who_is_in_the_unit_that_is_to_be_restarted_needs_no_other_rule() {
    let own = UnitRule { restarted: true, ..UnitRule::named("gateway") };
    let rules = || Rules {
        comm: vec!["another".to_owned()],
        uid: vec![Uid(4711)],
        units: vec![own.clone()],
        spare_services: true,
        ..Rules::default()
    };
    assert_eq!(class(&inside(UNIT), &rules()), Class::Stale);
    // Another service's manager would start a rival, whoever is recognised.
    assert_eq!(class(&inside("/system.slice/other.service"), &rules()), Class::Foreign);
    let any = Rules { any_owner: true, ..rules() };
    assert_eq!(class(&inside("/system.slice/other.service"), &any), Class::Foreign);
    assert_eq!(class(&inside(UNIT), &any), Class::Stale);
}

#[test]
fn the_instance_of_a_unit_that_is_to_be_restarted_is_stale() {
    let state = UnitState::Known(known(ActiveState::Active, Some(gateway().id)));
    let restarted = UnitRule { restarted: true, ..rule(state) };
    let judgement = judged(&inside(UNIT), &Rules { units: vec![restarted], ..Rules::default() });
    assert_eq!(judgement.class, Class::Stale);
    assert!(judgement.reasons.contains(&Reason::UnitIsRestarted(unit_id())));
}

#[test]
fn what_a_dead_unit_left_behind_is_stale() {
    for state in [ActiveState::Inactive, ActiveState::Failed] {
        let judgement = judged(&inside(UNIT), &rules(UnitState::Known(known(state.clone(), None)), &[]));
        assert_eq!(judgement.class, Class::Stale);
        assert!(judgement.reasons.contains(&Reason::UnitDoesNotRun(unit_id(), state)));
    }
}

#[test]
fn who_may_be_the_running_instance_is_protected() {
    let unknown = UnitState::Unknown("timed out".to_owned());
    let judgement = judged(&inside(UNIT), &rules(unknown.clone(), &[]));
    assert_eq!(judgement.class, Class::Protected);
    assert_eq!(judgement.reasons, [Reason::UnitStateUnknown(unit_id(), "timed out".to_owned())]);
    let everybody = Rules { any_owner: true, ..rules(unknown, &[]) };
    assert_eq!(class(&inside(UNIT), &everybody), Class::Protected);
}

#[test]
fn a_newcomer_in_the_unit_is_its_successor_and_names_it() {
    let state = UnitState::Known(known(ActiveState::Active, Some(id(100, 1_001))));
    let successor = Process { id: id(100, 1_001), ..inside(UNIT) };
    let judgement = judged(&successor, &rules(state, &[]));
    assert_eq!(judgement.class, Class::Newcomer);
    assert_eq!(judgement.reasons, [Reason::StartedAfterRequest, Reason::RunsIn(unit_id())]);
}

#[test]
fn a_stranger_s_service_is_named() {
    let judgement = judged(&inside("/system.slice/nginx.service"), &matching(&["caddy"]));
    let nginx = UnitId { manager: Manager::System, name: UnitName::new("nginx") };
    assert!(judgement.reasons.contains(&Reason::RunsIn(nginx)), "{judgement:?}");
}

#[test]
fn a_cgroup_is_one_more_kind_of_rule() {
    let glob = CgroupGlob::new("**/gateway.service").expect("a glob");
    let by_cgroup = Rules { cgroups: vec![glob.clone()], ..Rules::default() };
    assert_eq!(class(&inside(UNIT), &by_cgroup), Class::Stale);
    assert_eq!(class(&inside("/"), &by_cgroup), Class::Foreign);
    assert_eq!(class(&Process { cgroup: None, ..gateway() }, &by_cgroup), Class::Foreign);
    assert_eq!(class(&inside(UNIT), &Rules { cgroups: vec![glob], ..matching(&["nginx"]) }), Class::Foreign);
}

#[test]
fn a_title_is_told_from_arguments() {
    let titled = Process { argv: Seen::Known(vec!["openclaw-gateway".to_owned()]), ..gateway() };
    assert_eq!(
        judged(&titled, &matching(&["openclaw"])).reasons,
        [matched(Field::Title, "/openclaw/", "openclaw-gateway")]
    );
    let called = Process { argv: Seen::Known(vec!["node".to_owned()]), ..gateway() };
    assert_eq!(called.title(), None);
    assert_eq!(gateway().title(), None);
}
