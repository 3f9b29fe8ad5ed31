//! A real systemd as PID 1 of a PID namespace: the failure modes that need one.

use guard_tests::systemd::{Machine, Manager, Service, USER};
use guard_tests::{DEADLINE, Finished, Portguard, World, wait_until};

mod asking;
mod failing;
mod gates;
mod racing;
mod sidecar;
mod stopping;

/// What does not depend on the tier is tested once, in the one that every run begins in.
macro_rules! once {
    ($($scenario:ident),+ $(,)?) => { $(
        mod $scenario {
            #[test]
            fn netlink() {
                guard_tests::world::play(module_path!(), guard_tests::Tier::Netlink, super::$scenario);
            }
        }
    )+ };
}
use once;

/// What the tier's own events and looks take part in is tested in those that are driven by events.
macro_rules! by_events {
    ($($scenario:ident),+ $(,)?) => { $(
        mod $scenario {
            #[test]
            fn ebpf() {
                guard_tests::world::play(module_path!(), guard_tests::Tier::Ebpf, super::$scenario);
            }

            #[test]
            fn netlink() {
                guard_tests::world::play(module_path!(), guard_tests::Tier::Netlink, super::$scenario);
            }
        }
    )+ };
}
use by_events;
once!(a_machine_boots);

/// The unit under test.
const GATEWAY: &str = "gateway.service";

/// Boots a machine, or notes why there is none.
fn boot(world: &World) -> Option<Machine> {
    match Machine::missing() {
        None => Some(Machine::boot()),
        Some(reason) => {
            world.skip(reason);
            None
        }
    }
}

/// `portguard restart gateway.service`, by root in a login session of the machine.
fn restart(world: &World, machine: &Machine) -> Portguard {
    machine.portguard(Portguard::new("restart", world.tier)).arg(GATEWAY).timeout("30s")
}

/// The texts of all `run_step` events of this name.
fn steps<'a>(finished: &'a Finished, step: &str) -> Vec<&'a str> {
    let steps = finished.events.iter().filter(|event| event.is_step(step));
    steps.map(|event| event.detail()).collect()
}

/// The harness itself: both managers start, restart and stop what they are told to.
fn a_machine_boots(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("").listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin).with("Restart=always"));
    machine.line(GATEWAY, "ready", 0);
    assert_eq!(machine.show(GATEWAY, "ActiveState"), "active");
    let process = machine.main_process(GATEWAY);
    assert!(machine.alive(process));
    machine.systemctl(&["stop", GATEWAY]);
    assert!(!machine.alive(process), "{}", machine.status(GATEWAY));

    machine.start_user_manager();
    machine.install(Manager::User, &user_service(&machine, "own.service", port));
    machine.ask(Manager::User, &["start", "own.service"]);
    machine.line("own.service", "ready", 0);
    let group = machine.ask(Manager::User, &["show", "--value", "-p", "ControlGroup", "own.service"]);
    let above = format!("/user.slice/user-{USER}.slice/user@{USER}.service/app.slice/");
    assert!(group.starts_with(&above), "{group}");
    assert!(wait_until(DEADLINE, || !world.netns.bindable("127.0.0.1", port)));
}

/// A stand-in that the user may execute.
fn user_service(machine: &Machine, name: &str, port: u16) -> Service {
    let standin = machine.reachable("standin").display().to_string();
    Service::running(name, &[standin, format!("--listen=127.0.0.1:{port}")])
}
