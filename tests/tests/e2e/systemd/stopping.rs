//! What is left behind when a unit is stopped, and ended before it is started again.

use guard_tests::systemd::{Machine, Service};
use guard_tests::{World, each_tier};

use super::{GATEWAY, boot, by_events, once, restart, steps};

each_tier!(a_stuck_unit_is_killed_by_its_own_budget_and_listens_again);
by_events!(
    an_orphan_of_kill_mode_process_is_ended,
    a_gateway_outside_its_unit_is_ended,
    what_a_unit_leaves_has_the_unit_s_own_time,
);
once!(kill_mode_none);

fn gateway(world: &World, port: u16, arguments: &str) -> Service {
    Service::new(GATEWAY, &world.standin(arguments).listen("127.0.0.1", port))
}

/// The new process bound its port at the first attempt.
fn came_back(machine: &Machine) {
    let ready = machine.line(GATEWAY, "ready", 1);
    assert_eq!(ready["bind_attempts"], 1, "{}", machine.status(GATEWAY));
    assert_eq!(machine.show(GATEWAY, "NRestarts"), "0", "{}", machine.status(GATEWAY));
}

/// Failure mode 1: alive, and stuck in its drain.
fn a_stuck_unit_is_killed_by_its_own_budget_and_listens_again(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    machine
        .start(&gateway(world, port, "--on-term hang").with("TimeoutStopSec=300ms").with("Restart=always"));
    machine.line(GATEWAY, "ready", 0);
    let old = machine.main_process(GATEWAY);
    let finished = restart(world, &machine).run().expect(0);
    assert!(!machine.alive(old), "{finished}");
    assert!(finished.signals().is_empty(), "systemd ended it, not portguard\n{finished}");
    assert_eq!(steps(&finished, "unit_stopped").len(), 1, "{finished}");
    assert!(steps(&finished, "ports_learned")[0].contains(&format!("127.0.0.1:{port}")), "{finished}");
    let listening = finished.events.iter().find(|event| event.is_step("listening")).expect("it listens");
    assert_eq!(listening.0["pid"], machine.main_process(GATEWAY).pid, "{finished}");
    came_back(&machine);
}

/// Failure mode 2: the child inherited the listener and stays.
fn an_orphan_of_kill_mode_process_is_ended(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let service = gateway(world, port, "--fork-sharer 1 --sharer-on-term hang").with("KillMode=process");
    machine.start(&service);
    let ready = machine.line(GATEWAY, "ready", 0);
    let pid = ready["children"][0].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a child");
    let child = machine.process(pid).expect("a child that lives");
    let finished = restart(world, &machine).drain("200ms").run().expect(0);
    assert_eq!(finished.signals_to(child), ["SIGTERM", "SIGKILL"], "{finished}");
    assert!(steps(&finished, "unit_note")[0].starts_with("KillMode=process"), "{finished}");
    assert!(!machine.alive(child), "{finished}");
    came_back(&machine);
}

/// Without --drain, a leftover has the time from SIGTERM to SIGKILL that its unit grants.
fn what_a_unit_leaves_has_the_unit_s_own_time(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let service = gateway(world, port, "--fork-sharer 1 --sharer-on-term hang");
    machine.start(&service.with("KillMode=process").with("TimeoutStopSec=1200ms"));
    let ready = machine.line(GATEWAY, "ready", 0);
    let pid = ready["children"][0].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a child");
    let child = machine.process(pid).expect("a child that lives");
    let finished = restart(world, &machine).run().expect(0);
    assert_eq!(finished.signals_to(child), ["SIGTERM", "SIGKILL"], "{finished}");
    let sent = finished.of("signal_sent");
    let at = |nth: usize| sent[nth].0["mono_ns"].as_u64().expect("a moment");
    let waited = std::time::Duration::from_nanos(at(1) - at(0));
    let (own, default) = (std::time::Duration::from_millis(1200), std::time::Duration::from_secs(10));
    assert!((own..default).contains(&waited), "SIGKILL after {waited:?}\n{finished}");
    came_back(&machine);
    // The same of a unit that was stopped and is only named.
    let again = machine.line(GATEWAY, "ready", 1);
    let pid = again["children"][0].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a child");
    let child = machine.process(pid).expect("a child that lives");
    machine.systemctl(&["stop", GATEWAY]);
    let rehearsed =
        machine.portguard(world.free(port)).args(&["--unit", GATEWAY, "--dry-run"]).run().expect(0);
    assert!(rehearsed.signals().is_empty() && machine.alive(child), "{rehearsed}");
    let finished = machine.portguard(world.free(port)).args(&["--unit", GATEWAY]).run().expect(0);
    let sent = finished.of("signal_sent");
    let at = |nth: usize| sent[nth].0["mono_ns"].as_u64().expect("a moment");
    let waited = std::time::Duration::from_nanos(at(1) - at(0));
    assert!((own..default).contains(&waited), "SIGKILL after {waited:?}\n{finished}");
}

fn kill_mode_none(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    machine.start(&gateway(world, port, "").with("KillMode=none"));
    machine.line(GATEWAY, "ready", 0);
    let old = machine.main_process(GATEWAY);
    let finished = restart(world, &machine).run().expect(0);
    assert_eq!(finished.signals_to(old), ["SIGTERM"], "{finished}");
    came_back(&machine);
}

/// Failure mode 3: it was respawned behind its unit's back.
fn a_gateway_outside_its_unit_is_ended(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    machine.start(&gateway(world, port, ""));
    machine.line(GATEWAY, "ready", 0);
    machine.systemctl(&["stop", GATEWAY]);
    let standin = world.standin("").listen("127.0.0.1", port).command_line();
    let line: Vec<&str> = standin.iter().map(String::as_str).collect();
    let _stray = machine.stray(&line);
    let asked = restart(world, &machine).arg("--port").arg(&port.to_string());
    let refused = asked.clone().run().expect(4);
    assert!(refused.signals().is_empty(), "{refused}");
    let finished = asked.matching("standin").run().expect(0);
    assert_eq!(finished.signals().len(), 1, "{finished}");
    let sent = finished.of("signal_sent");
    assert!(sent[0].mentions("outside_its_unit"), "{finished}");
    came_back(&machine);
}
