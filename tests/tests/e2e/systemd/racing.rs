//! Who else starts something while a unit's port is waited for.

use guard_tests::systemd::{Machine, Manager, Service};
use guard_tests::{DEADLINE, Proc, World, wait_until};

use super::{GATEWAY, boot, by_events, restart, steps};

by_events!(
    two_units_fight_until_the_duel_is_broken_off,
    its_own_unit_is_started_while_its_port_is_waited_for
);

/// The gateway, with a child that its stop leaves behind; and that child.
fn leaving_a_child(world: &World, machine: &Machine, port: u16, on_term: &str) -> Proc {
    let arguments = format!("--fork-sharer 1 --sharer-on-term {on_term}");
    let standin = world.standin(&arguments).listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin).with("KillMode=process").with("Restart=always"));
    let ready = machine.line(GATEWAY, "ready", 0);
    let pid = ready["children"][0].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a child");
    machine.process(pid).expect("a child that lives")
}

/// Failure mode 4: the rival dies and is started again, over and over, each time faster than us.
fn two_units_fight_until_the_duel_is_broken_off(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    // It gives the port up and does not exit, so the gate stays shut while the rivals come and go.
    let child = leaving_a_child(world, &machine, port, "close-hang");
    let rival = world.standin("--bind-attempts 1000000").listen("127.0.0.1", port);
    let rival = Service::new("rival.service", &rival).with("Restart=always").with("RestartSec=0");
    machine.install(Manager::System, &rival.unit("StartLimitIntervalSec=0"));
    let run = restart(world, &machine).drain("20s").start();
    run.sent("SIGTERM", child);
    machine.systemctl(&["start", "rival.service"]);
    for round in 0..3 {
        machine.line("rival.service", "ready", round);
        let seen = machine.main_process("rival.service");
        run.event("the rival", |event| {
            event.kind() == "duel" || (event.kind() == "snapshot" && event.shows_listening(seen))
        });
        assert!(machine.alive(seen), "portguard ends no rival");
        // Whatever ends it: its own service starts it again.
        machine.try_systemctl(&["kill", "--signal=SIGKILL", "rival.service"]);
    }
    let finished = run.finish().expect(5);
    let duels = finished.of("duel");
    assert_eq!(duels[0].units(), ["rival.service"; 3], "{finished}");
    assert!(duels[0].mentions(GATEWAY), "both parties\n{finished}");
    assert!(duels[0].way_out().contains("systemctl disable --now rival.service"), "{finished}");
    assert_eq!(finished.signals(), [(child, "SIGTERM")], "{finished}");
    assert_eq!(machine.show(GATEWAY, "ActiveState"), "inactive", "it is left stopped\n{finished}");
}

/// An operator, or the gateway's own updater, was faster: that is what was wanted.
fn its_own_unit_is_started_while_its_port_is_waited_for(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let child = leaving_a_child(world, &machine, port, "hang");
    let run = restart(world, &machine).drain("1500ms").start();
    run.sent("SIGTERM", child);
    machine.systemctl(&["start", "--no-block", GATEWAY]);
    let finished = run.finish().expect(0);
    assert_eq!(finished.signals(), [(child, "SIGTERM"), (child, "SIGKILL")], "{finished}");
    let listening = finished.events.iter().find(|event| event.is_step("listening")).expect("it listens");
    assert_eq!(listening.0["pid"], machine.main_process(GATEWAY).pid, "{finished}");
    assert_eq!(steps(&finished, "unit_stopped").len(), 1, "{finished}");
    assert!(wait_until(DEADLINE, || machine.show(GATEWAY, "ActiveState") == "active"), "{finished}");
}
