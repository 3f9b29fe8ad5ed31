//! Units that cannot be restarted, or do not come back.

use guard_tests::systemd::{Manager, Service};
use guard_tests::{DEADLINE, Portguard, World, wait_until};

use super::{GATEWAY, boot, once, restart, steps};

once!(
    another_unit_on_the_port_is_named_and_nobody_is_stopped,
    a_latched_start_limit_is_reset,
    a_gate_before_the_start_never_burns_an_attempt,
    code_78_with_a_healthy_one_is_no_crash,
    a_unit_that_dies_is_told_with_its_result,
    a_unit_that_does_not_listen_has_no_ports_to_learn,
    a_unit_that_does_not_exist,
    a_socket_unit_keeps_the_port,
);

/// Failure mode 4: the other supervisor's service is not ours to end.
fn another_unit_on_the_port_is_named_and_nobody_is_stopped(world: &World) {
    let Some(machine) = boot(world) else { return };
    let (port, own) = (world.port(), world.port());
    let rival = world.standin("").listen("127.0.0.1", port);
    machine.start(&Service::new("rival.service", &rival).with("Restart=always"));
    machine.line("rival.service", "ready", 0);
    machine.start(&Service::new(GATEWAY, &world.standin("").listen("127.0.0.1", own)));
    machine.line(GATEWAY, "ready", 0);
    let running = [machine.main_process(GATEWAY), machine.main_process("rival.service")];
    let finished =
        restart(world, &machine).arg("--port").arg(&port.to_string()).matching("standin").run().expect(4);
    assert!(finished.mentions("rival.service"), "{finished}");
    assert!(finished.signals().is_empty() && steps(&finished, "unit_stopping").is_empty(), "{finished}");
    assert!(running.into_iter().all(|process| machine.alive(process)), "{finished}");
}

/// Failure mode 11: it lost its port so often that systemd starts it no more.
fn a_latched_start_limit_is_reset(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("").listen("127.0.0.1", port);
    let line = standin.command_line();
    let mut stray = machine.stray(&line.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(wait_until(DEADLINE, || !world.netns.bindable("127.0.0.1", port)), "{}", stray.said());
    let service = Service::new(GATEWAY, &standin)
        .with("Restart=on-failure")
        .with("RestartSec=0")
        .unit("StartLimitBurst=3")
        .unit("StartLimitIntervalSec=1h");
    machine.start(&service);
    let latched = || machine.show(GATEWAY, "ActiveState") == "failed";
    assert!(wait_until(DEADLINE, latched), "{}", machine.status(GATEWAY));
    assert!(!machine.try_systemctl(&["start", GATEWAY]).status.success(), "the limit is latched");
    let finished =
        restart(world, &machine).arg("--port").arg(&port.to_string()).matching("standin").run().expect(0);
    assert_eq!(finished.signals().len(), 1, "{finished}");
    machine.line(GATEWAY, "ready", 0);
    stray.wait(DEADLINE);
}

/// Failure mode 11: the gate before the start.
fn a_gate_before_the_start_never_burns_an_attempt(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("").listen("127.0.0.1", port);
    let line = standin.command_line();
    let stray = machine.stray(&line.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(wait_until(DEADLINE, || !world.netns.bindable("127.0.0.1", port)), "{}", stray.said());
    let gate = Portguard::bare(&["gate", "--address", "127.0.0.1", "--timeout", "20s", "--port"]);
    let gate = gate.arg(&port.to_string()).command_line().join(" ");
    let service = Service::new(GATEWAY, &standin)
        .with("Restart=always")
        .with("TimeoutStartSec=30s")
        .with(&format!("ExecStartPre={gate}"));
    machine.install(Manager::System, &service);
    machine.systemctl(&["start", "--no-block", GATEWAY]);
    let waits = || machine.show(GATEWAY, "SubState") == "start-pre";
    assert!(wait_until(DEADLINE, waits), "{}", machine.status(GATEWAY));
    assert!(stray.alive(), "the gate signals nobody");
    drop(stray);
    let ready = machine.line(GATEWAY, "ready", 0);
    assert_eq!(ready["bind_attempts"], 1, "{}", machine.status(GATEWAY));
    assert_eq!(machine.show(GATEWAY, "NRestarts"), "0");
}

/// Failure mode 14: the unit gives up because somebody else serves.
fn code_78_with_a_healthy_one_is_no_crash(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let healthy = world.standin("").listen("127.0.0.1", port);
    machine.install(Manager::System, &Service::new("healthy.service", &healthy));
    let output = machine.folder().join("healthy.service.out").display().to_string();
    let script =
        format!("systemctl start healthy.service; until grep -q bind_attempts {output}; do :; done; exit 78");
    let line = ["sh".to_owned(), "-c".to_owned(), script];
    machine.install(Manager::System, &Service::running(GATEWAY, &line));
    let finished = restart(world, &machine)
        .arg("--port")
        .arg(&port.to_string())
        .args(&["--already-running-code", "78"])
        .run()
        .expect(5);
    let healthy = machine.main_process("healthy.service");
    assert!(machine.alive(healthy) && finished.signals().is_empty(), "{finished}");
    let last = finished.of("run_finished")[0].detail().to_owned();
    assert!(
        last.contains("a healthy one already runs") && last.contains(&healthy.pid.to_string()),
        "{finished}"
    );
}

fn a_unit_that_dies_is_told_with_its_result(world: &World) {
    let Some(machine) = boot(world) else { return };
    let line = ["sh", "-c", "exit 3"].map(str::to_owned);
    machine.install(Manager::System, &Service::running(GATEWAY, &line));
    let port = world.port().to_string();
    let finished = restart(world, &machine).arg("--port").arg(&port).run().expect(7);
    let last = finished.of("run_finished")[0].detail().to_owned();
    for word in ["exited with code 3", "Result=exit-code", "journalctl", GATEWAY] {
        assert!(last.contains(word), "{word}\n{finished}");
    }
    // A start job that fails is the other way to die.
    let missing = ["/nonexistent/gateway".to_owned()];
    machine.install(Manager::System, &Service::running(GATEWAY, &missing).with("Type=exec"));
    let finished = restart(world, &machine).arg("--port").arg(&port).run().expect(7);
    assert!(steps(&finished, "unit_started")[0].contains("failed"), "{finished}");
}

fn a_unit_that_does_not_listen_has_no_ports_to_learn(world: &World) {
    let Some(machine) = boot(world) else { return };
    let standin = world.standin("").listen("127.0.0.1", world.port());
    machine.install(Manager::System, &Service::new(GATEWAY, &standin));
    let finished = restart(world, &machine).run().expect(2);
    assert!(finished.stderr.contains("--port"), "{finished}");
}

fn a_unit_that_does_not_exist(world: &World) {
    let Some(machine) = boot(world) else { return };
    let finished = restart(world, &machine).arg("--port=1").run().expect(2);
    assert!(finished.stderr.contains("has no unit gateway.service"), "{finished}");
}

/// systemd itself holds the port, so waiting for it would never end.
fn a_socket_unit_keeps_the_port(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    machine.install(
        Manager::System,
        &Service::running(GATEWAY, &["cat".to_owned()]).with("StandardInput=socket"),
    );
    machine.install_text("gateway.socket", &format!("[Socket]\nListenStream=127.0.0.1:{port}\n"));
    machine.systemctl(&["start", "gateway.socket"]);
    let finished = restart(world, &machine).arg("--port").arg(&port.to_string()).run().expect(2);
    assert!(finished.stderr.contains("gateway.socket"), "{finished}");
}
