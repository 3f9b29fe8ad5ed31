//! Who may ask, and from where.

use guard_tests::child::status;
use guard_tests::systemd::{Manager, Service, USER};
use guard_tests::{Portguard, World};

use super::{GATEWAY, boot, once, restart, steps, user_service};

once!(
    from_inside_the_unit_it_is_refused,
    the_user_restarts_an_own_unit,
    root_restarts_a_unit_of_another_user,
    a_unit_named_once_more_as_the_rule_is_restarted,
    a_dry_run_stops_nothing,
    what_systemd_would_start_again_is_not_ended,
    a_running_unit_is_current_and_a_dead_one_leaves_leftovers,
);

/// Failure mode 12: its own stop would end the one who asks.
fn from_inside_the_unit_it_is_refused(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let asking = Portguard::bare(&["restart", "--json", "--port"]).arg(&port.to_string()).arg(GATEWAY);
    let standin = world
        .standin("")
        .listen("127.0.0.1", port)
        .then_run(asking.command_line().iter().map(String::as_str));
    machine.start(&Service::new(GATEWAY, &standin));
    let ended = machine.line(GATEWAY, "command_exited", 0);
    assert_eq!(ended["code"], 4, "{ended}");
    let said = ended["stderr"].as_str().expect("its report");
    assert!(said.contains("runs inside gateway.service"), "{said}");
    assert!(said.contains("systemd-run --collect portguard restart gateway.service"), "{said}");
    assert!(machine.alive(machine.main_process(GATEWAY)));
    assert_eq!(machine.said(GATEWAY, "term").len(), 0);
    // The command that it names works.
    let mut advice = machine.command(&["systemd-run", "--collect", "--wait", "--quiet"]);
    advice.args(asking.command_line());
    assert!(status(&mut advice).expect("run systemd-run").success(), "{}", machine.status(GATEWAY));
    machine.line(GATEWAY, "ready", 1);
}

fn the_user_restarts_an_own_unit(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    machine.start_user_manager();
    machine.install(Manager::User, &user_service(&machine, "own.service", port).with("Restart=always"));
    machine.ask(Manager::User, &["start", "own.service"]);
    machine.line("own.service", "ready", 0);
    let portguard = Portguard::new("restart", world.tier).args(&["own.service", "--user"]).timeout("30s");
    let finished = machine.portguard_of_user(portguard).run().expect(0);
    assert!(steps(&finished, "unit_seen")[0].contains(&format!("of user {USER}")), "{finished}");
    machine.line("own.service", "ready", 1);
}

fn root_restarts_a_unit_of_another_user(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    machine.start_user_manager();
    machine.install(Manager::User, &user_service(&machine, GATEWAY, port).with("KillMode=process"));
    machine.ask(Manager::User, &["start", GATEWAY]);
    machine.line(GATEWAY, "ready", 0);
    let finished = restart(world, &machine).args(&["--user-of", &USER.to_string()]).run().expect(0);
    assert!(steps(&finished, "unit_seen")[0].contains(&format!("of user {USER}")), "{finished}");
    machine.line(GATEWAY, "ready", 1);
    assert_eq!(machine.ask(Manager::User, &["show", "--value", "-p", "ActiveState", GATEWAY]), "active");
}

/// `restart UNIT --unit UNIT` is no contradiction: its processes are those to be restarted.
fn a_unit_named_once_more_as_the_rule_is_restarted(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("").listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin).with("Restart=always"));
    machine.line(GATEWAY, "ready", 0);
    let other = world.port();
    machine.start(&Service::new("other.service", &world.standin("").listen("127.0.0.1", other)));
    machine.line("other.service", "ready", 0);
    let finished = restart(world, &machine).args(&["--unit", "gateway"]).run().expect(0);
    assert_eq!(steps(&finished, "unit_stopped").len(), 1, "{finished}");
    machine.line(GATEWAY, "ready", 1);
    // Another unit that is named is asked about, and its running instance is not ended.
    let ports = ["--port", &other.to_string(), "--unit", "other.service"];
    let refused = restart(world, &machine).args(&ports).run().expect(4);
    let running = machine.main_process("other.service");
    assert!(refused.classed(running, "current") && machine.alive(running), "{refused}");
}

fn a_dry_run_stops_nothing(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    machine.start(&Service::new(GATEWAY, &world.standin("").listen("127.0.0.1", port)));
    machine.line(GATEWAY, "ready", 0);
    let running = machine.main_process(GATEWAY);
    let finished = restart(world, &machine).arg("--dry-run").run().expect(0);
    assert!(machine.alive(running) && finished.signals().is_empty(), "{finished}");
    assert!(steps(&finished, "unit_stopping").is_empty(), "{finished}");
}

/// Ending it would make systemd start a rival to whoever waits for the port.
fn what_systemd_would_start_again_is_not_ended(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("").listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin).with("Restart=always"));
    machine.line(GATEWAY, "ready", 0);
    let running = machine.main_process(GATEWAY);
    let free = machine.portguard(world.free(port)).matching("standin");
    let restart = machine.portguard(world.portguard("restart", port)).matching("standin");
    let asked = [
        free.clone(),
        free.clone().arg("--dry-run"),
        restart.clone().then(&["true"]),
        restart.arg("--dry-run").then(&["true"]),
    ];
    for asked in asked {
        let finished = asked.run().expect(4);
        assert!(finished.signals().is_empty() && machine.alive(running), "{finished}");
        let advice = finished.of("run_finished")[0].detail().to_owned();
        assert!(advice.contains("portguard restart gateway.service"), "{finished}");
    }
    // SIGTERM is a clean end, after which this one is not started again.
    machine.install(Manager::System, &Service::new(GATEWAY, &standin).with("Restart=on-failure"));
    let finished = free.run().expect(0);
    assert_eq!(finished.signals_to(running), ["SIGTERM"], "{finished}");
}

fn a_running_unit_is_current_and_a_dead_one_leaves_leftovers(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("--fork-sharer 1").listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin).with("KillMode=process"));
    machine.line(GATEWAY, "ready", 0);
    let running = machine.main_process(GATEWAY);
    let free = machine.portguard(world.free(port)).args(&["--unit", GATEWAY]);
    let finished = free.run().expect(4);
    assert!(finished.classed(running, "current") && machine.alive(running), "{finished}");
    machine.systemctl(&["stop", GATEWAY]);
    let finished = free.run().expect(0);
    assert_eq!(finished.signals().len(), 1, "the child that KillMode=process left\n{finished}");
}
