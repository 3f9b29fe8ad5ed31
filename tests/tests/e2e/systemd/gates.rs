//! The drop-ins that are delivered: a gate before the start of a server.

use guard_tests::systemd::{Machine, Manager, Service};
use guard_tests::{DEADLINE, World, wait_until};

use super::{GATEWAY, boot, once, user_service};

once!(the_delivered_gate_of_a_system_unit, the_delivered_gate_of_a_user_s_unit);

/// The drop-in, for this port and the portguard under test.
fn delivered(machine: &Machine, text: &str, port: u16) -> String {
    let program = machine.reachable("portguard").display().to_string();
    let here = text.replace("/usr/local/sbin/portguard", &program).replace("18789", &port.to_string());
    assert!(here.contains(&format!("{program} gate")) && here.contains("--port"), "{here}");
    here
}

/// The unit waits while somebody has its port, and then binds it at the first attempt.
fn waits(world: &World, machine: &Machine, manager: Manager, port: u16) {
    let holder = world.standin("").listen("127.0.0.1", port).start();
    machine.ask(manager, &["start", "--no-block", GATEWAY]);
    let state = || machine.ask(manager, &["show", "--value", "-p", "SubState", GATEWAY]);
    assert!(wait_until(DEADLINE, || state() == "start-pre"), "{}\n{}", state(), machine.status(GATEWAY));
    assert!(holder.child.alive(), "the gate signals nobody");
    drop(holder);
    assert_eq!(machine.line(GATEWAY, "ready", 0)["bind_attempts"], 1, "{}", machine.status(GATEWAY));
    assert_eq!(machine.ask(manager, &["show", "--value", "-p", "NRestarts", GATEWAY]), "0");
}

fn the_delivered_gate_of_a_system_unit(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("").listen("127.0.0.1", port);
    machine.install(Manager::System, &Service::new(GATEWAY, &standin).with("Restart=always"));
    let text = include_str!("../../../../guard/dist/systemd/10-portguard-gate.conf");
    machine.drop_in(Manager::System, GATEWAY, &delivered(&machine, text, port));
    waits(world, &machine, Manager::System, port);
}

fn the_delivered_gate_of_a_user_s_unit(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    machine.start_user_manager();
    machine.install(Manager::User, &user_service(&machine, GATEWAY, port).with("Restart=always"));
    let text = include_str!("../../../../guard/dist/systemd/user/10-portguard-gate.conf");
    machine.drop_in(Manager::User, GATEWAY, &delivered(&machine, text, port));
    waits(world, &machine, Manager::User, port);
}
