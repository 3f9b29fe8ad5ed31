//! The sidecar, as its own unit runs it, restarts units that clients ask for.

use guard_tests::child::status;
use guard_tests::sidecar_unit::{SOCKET, SidecarUnit, UNIT, signals, steps};
use guard_tests::systemd::{Machine, Manager, Service, USER};
use guard_tests::{DEADLINE, Finished, Portguard, World, each_tier, wait_until};
use serde_json::Value;

use super::{GATEWAY, boot, once, user_service};

each_tier!(a_client_restarts_a_unit_through_the_socket);
once!(
    a_unit_is_found_by_its_name_under_which_it_is_no_service,
    a_unit_of_another_user,
    a_user_s_manager_that_came_after_the_sidecar,
    asked_from_inside_the_unit_and_the_asker_dies,
    a_child_that_kill_mode_process_leaves_is_ended,
    a_gateway_outside_its_unit_is_ended,
    a_latched_start_limit_is_reset,
    a_rival_unit_is_named_and_nobody_is_stopped,
    code_78_with_a_healthy_one_is_no_crash,
    a_unit_that_does_not_exist_or_does_not_come_back,
    a_reload_and_a_second_request_during_a_restart,
    only_one_thread_may_become_another_user,
    the_socket_has_the_group_that_the_configuration_names,
    a_sidecar_that_is_stopped_half_way_says_what_it_leaves,
    a_command_is_not_told_what_the_sidecar_was_told,
);

/// A service that is [`GATEWAY`], on `127.0.0.1`.
fn gateway(port: u16, more: &str) -> String {
    format!(
        "[service.gateway]\nendpoints = [\"127.0.0.1:{port}\"]\nrestart = {{ unit = \"{GATEWAY}\" }}\n{more}\n"
    )
}

/// The run has ended with this outcome and exit code.
#[track_caller]
fn ended(sidecar: &SidecarUnit<'_>, document: &Value, outcome: &str, code: u8) {
    assert_eq!(
        (&document["outcome"], &document["exit_code"]),
        (&Value::from(outcome), &Value::from(code)),
        "{document:#}\n{}",
        sidecar.said()
    );
}

/// The new process bound its port at the first attempt.
#[track_caller]
fn came_back(machine: &Machine) {
    let ready = machine.line(GATEWAY, "ready", 1);
    assert_eq!(ready["bind_attempts"], 1, "{}", machine.status(GATEWAY));
    assert_eq!(machine.show(GATEWAY, "NRestarts"), "0", "{}", machine.status(GATEWAY));
}

fn a_client_restarts_a_unit_through_the_socket(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("").listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin).with("Restart=always"));
    machine.line(GATEWAY, "ready", 0);
    let old = machine.main_process(GATEWAY);
    let sidecar = SidecarUnit::start(world, &machine, &gateway(port, ""));
    let owner = &sidecar.get("/v1/services/gateway").expect(200).json()["snapshot"]["holders"][0]["owners"]["processes"]
        [0];
    assert_eq!(owner["class"], "stale", "a restart would stop its unit: {owner}");
    let document = sidecar.restart("gateway");
    ended(&sidecar, &document, "restarted", 0);
    for step in ["unit_seen", "unit_stopping", "unit_stopped", "unit_starting", "unit_started", "listening"] {
        assert_eq!(steps(&document, step).len(), 1, "{step}: {document:#}");
    }
    let kinds: Vec<&str> = document["events"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["type"].as_str())
        .collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "run_started").count(), 1, "{kinds:?}");
    assert!(kinds.contains(&"gate_opened") && kinds.last() == Some(&"run_finished"), "{kinds:?}");
    assert!(signals(&document).is_empty(), "systemd ended it: {document:#}");
    assert!(!machine.alive(old));
    came_back(&machine);
    // And again: nothing is left of the first run.
    ended(&sidecar, &sidecar.restart("gateway"), "restarted", 0);
}

/// `portguard restart UNIT` goes through the sidecar whose service that unit is, whatever it calls it.
fn a_unit_is_found_by_its_name_under_which_it_is_no_service(world: &World) {
    let Some(machine) = boot(world) else { return };
    let (port, own) = (world.port(), world.port());
    machine.start(&Service::new(GATEWAY, &world.standin("").listen("127.0.0.1", port)));
    machine.line(GATEWAY, "ready", 0);
    machine.start_user_manager();
    machine.install(Manager::User, &user_service(&machine, "own.service", own));
    machine.ask(Manager::User, &["start", "own.service"]);
    machine.line("own.service", "ready", 0);
    let users = gateway(own, "")
        .replace("service.gateway", "service.of-user")
        .replace(&format!("unit = \"{GATEWAY}\""), &format!("user = {USER}, unit = \"own.service\""));
    let services = gateway(port, "").replace("service.gateway", "service.web") + &users;
    let sidecar = SidecarUnit::start(world, &machine, &services);
    let document = sidecar.get("/v1/services/web").expect(200).json();
    assert_eq!(document["unit"], serde_json::json!({ "name": GATEWAY, "manager": "system" }), "{document}");
    let asked = |arguments: &[&str]| Portguard::bare(&["restart", "--json"]).args(arguments);
    let came_through =
        |finished: &Finished| finished.events.iter().all(|event| event.0["through"].is_string());
    for (arguments, unit) in [
        (&[GATEWAY][..], GATEWAY),
        (&["gateway"], GATEWAY),
        (&["own", "--user-of", &USER.to_string()], "own.service"),
    ] {
        let finished = machine.portguard(asked(arguments)).run().expect(0);
        assert!(came_through(&finished), "{arguments:?}\n{finished}");
        assert!(finished.mentions(unit), "{finished}");
    }
    machine.line(GATEWAY, "ready", 2);
    machine.line("own.service", "ready", 1);
    // Whom the sidecar does not let restart it may be allowed to by its manager.
    let finished = machine.portguard_of_user(asked(&["own", "--user"])).run().expect(0);
    assert!(!finished.events.is_empty() && !came_through(&finished), "{finished}");
    assert!(finished.stderr.contains("going on without the sidecar"), "{finished}");
    machine.line("own.service", "ready", 2);
}

fn a_unit_of_another_user(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    machine.start_user_manager();
    machine.install(Manager::User, &user_service(&machine, GATEWAY, port).with("Restart=always"));
    machine.ask(Manager::User, &["start", GATEWAY]);
    machine.line(GATEWAY, "ready", 0);
    let services = gateway(port, "").replace("restart = {", &format!("restart = {{ user = {USER},"));
    let sidecar = SidecarUnit::start(world, &machine, &services);
    let document = sidecar.restart("gateway");
    ended(&sidecar, &document, "restarted", 0);
    assert!(steps(&document, "unit_seen")[0].contains(&format!("of user {USER}")), "{document:#}");
    assert_eq!(machine.line(GATEWAY, "ready", 1)["bind_attempts"], 1);
}

/// A user's folder is mounted when the user logs in: the sidecar's sandbox must let it in.
fn a_user_s_manager_that_came_after_the_sidecar(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let run = |words: &[&str]| {
        assert!(status(&mut machine.command(words)).expect("a command").success(), "{words:?}");
    };
    // As a systemd does that is not in a container.
    run(&["mount", "--make-rshared", "/"]);
    let services = gateway(port, "").replace("restart = {", &format!("restart = {{ user = {USER},"));
    let sidecar = SidecarUnit::start(world, &machine, &services);
    let early = sidecar.restart("gateway");
    ended(&sidecar, &early, "manager_lost", 3);
    let folder = format!("/run/user/{USER}");
    run(&["mkdir", "-p", &folder]);
    run(&["mount", "-t", "tmpfs", "tmpfs", &folder]);
    machine.start_user_manager();
    machine.install(Manager::User, &user_service(&machine, GATEWAY, port));
    machine.ask(Manager::User, &["start", GATEWAY]);
    machine.line(GATEWAY, "ready", 0);
    ended(&sidecar, &sidecar.restart("gateway"), "restarted", 0);
}

/// Failure mode 12: the one who asks is ended by what it asked for, and the restart goes on.
fn asked_from_inside_the_unit_and_the_asker_dies(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let flag = machine.folder().join("asked").display().to_string();
    let ask = format!(
        "test -e {flag} && exit; touch {flag}; curl -sf --unix-socket {SOCKET} -X POST \
         http://portguard/v1/services/gateway/restart; tail -f /dev/null; touch {flag}.outlived"
    );
    let standin = world.standin("").listen("127.0.0.1", port).then_run(["sh", "-c", &ask]);
    let sidecar = SidecarUnit::start(world, &machine, &gateway(port, ""));
    machine.start(&Service::new(GATEWAY, &standin));
    machine.line(GATEWAY, "ready", 0);
    came_back(&machine);
    let last = || sidecar.get("/v1/services/gateway").json()["last_run"].as_str().map(str::to_owned);
    assert!(wait_until(DEADLINE, || last().is_some()), "{}", sidecar.said());
    ended(&sidecar, &sidecar.finished(&last().expect("a run")), "restarted", 0);
    assert!(!machine.folder().join("asked.outlived").exists(), "the asker was ended");
}

/// Failure mode 2.
fn a_child_that_kill_mode_process_leaves_is_ended(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("--fork-sharer 1 --sharer-on-term hang").listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin).with("KillMode=process"));
    let ready = machine.line(GATEWAY, "ready", 0);
    let child = ready["children"][0].as_i64().expect("a child");
    let sidecar = SidecarUnit::start(world, &machine, &gateway(port, "budget = { drain = \"200ms\" }"));
    let document = sidecar.restart("gateway");
    ended(&sidecar, &document, "restarted", 0);
    assert_eq!(signals(&document), [(child, "SIGTERM"), (child, "SIGKILL")], "{document:#}");
    assert!(steps(&document, "unit_note")[0].starts_with("KillMode=process"), "{document:#}");
    came_back(&machine);
}

/// Failure mode 3: it was respawned behind its unit's back.
fn a_gateway_outside_its_unit_is_ended(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("").listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin));
    machine.line(GATEWAY, "ready", 0);
    machine.systemctl(&["stop", GATEWAY]);
    let line = standin.command_line();
    let _stray = machine.stray(&line.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(wait_until(DEADLINE, || !world.netns.bindable("127.0.0.1", port)));
    let sidecar = SidecarUnit::start(world, &machine, &gateway(port, ""));
    let refused = sidecar.restart("gateway");
    ended(&sidecar, &refused, "refused", 4);
    assert!(signals(&refused).is_empty() && steps(&refused, "unit_stopping").is_empty(), "{refused:#}");
    sidecar.rewrite(&gateway(port, "recognise = { match = [\"standin\"] }"));
    machine.systemctl(&["reload", UNIT]);
    let mut document = Value::Null;
    // `systemctl reload` is over when the signal was sent, not when it was heeded.
    let taken_up = || {
        document = sidecar.restart("gateway");
        document["outcome"] != "refused"
    };
    assert!(wait_until(DEADLINE, taken_up), "{document:#}");
    ended(&sidecar, &document, "restarted", 0);
    assert_eq!(signals(&document).len(), 1, "{document:#}");
    assert!(document.to_string().contains("outside_its_unit"), "{document:#}");
    came_back(&machine);
}

/// Failure mode 11.
fn a_latched_start_limit_is_reset(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("").listen("127.0.0.1", port);
    let line = standin.command_line();
    let _stray = machine.stray(&line.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(wait_until(DEADLINE, || !world.netns.bindable("127.0.0.1", port)));
    let service = Service::new(GATEWAY, &standin)
        .with("Restart=on-failure")
        .with("RestartSec=0")
        .unit("StartLimitBurst=3")
        .unit("StartLimitIntervalSec=1h");
    machine.start(&service);
    let latched = || machine.show(GATEWAY, "ActiveState") == "failed";
    assert!(wait_until(DEADLINE, latched), "{}", machine.status(GATEWAY));
    assert!(!machine.try_systemctl(&["start", GATEWAY]).status.success(), "the limit is latched");
    let services = gateway(port, "recognise = { match = [\"standin\"] }");
    let sidecar = SidecarUnit::start(world, &machine, &services);
    let document = sidecar.restart("gateway");
    ended(&sidecar, &document, "restarted", 0);
    machine.line(GATEWAY, "ready", 0);
}

/// Failure modes 4, 5 and 9: the other supervisor's service is not ours to end, whatever the rules.
fn a_rival_unit_is_named_and_nobody_is_stopped(world: &World) {
    let Some(machine) = boot(world) else { return };
    let (port, own) = (world.port(), world.port());
    let rival = world.standin("").listen("127.0.0.1", port);
    machine.start(&Service::new("rival.service", &rival).with("Restart=always"));
    machine.line("rival.service", "ready", 0);
    machine.start(&Service::new(GATEWAY, &world.standin("").listen("127.0.0.1", own)));
    machine.line(GATEWAY, "ready", 0);
    let running = [machine.main_process(GATEWAY), machine.main_process("rival.service")];
    let mut sidecar = None;
    for rules in ["match = [\"standin\"]", "any-owner = true"] {
        let services = gateway(port, &format!("recognise = {{ {rules} }}"));
        if sidecar.is_some() {
            machine.systemctl(&["stop", UNIT]);
        }
        let sidecar = sidecar.insert(SidecarUnit::start(world, &machine, &services));
        let document = sidecar.restart("gateway");
        ended(sidecar, &document, "refused", 4);
        assert!(
            document["detail"].as_str().is_some_and(|text| text.contains("rival.service")),
            "{document:#}"
        );
        assert!(
            signals(&document).is_empty() && steps(&document, "unit_stopping").is_empty(),
            "{document:#}"
        );
        assert!(running.into_iter().all(|process| machine.alive(process)), "{document:#}");
    }
}

/// Failure mode 14.
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
    let sidecar = SidecarUnit::start(world, &machine, &gateway(port, "preset = \"openclaw\""));
    let document = sidecar.restart("gateway");
    ended(&sidecar, &document, "rival", 5);
    let healthy = machine.main_process("healthy.service");
    assert!(machine.alive(healthy) && signals(&document).is_empty(), "{document:#}");
    let detail = document["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("a healthy one already runs") && detail.contains(&healthy.pid.to_string()),
        "{detail}"
    );
}

fn a_unit_that_does_not_exist_or_does_not_come_back(world: &World) {
    let Some(machine) = boot(world) else { return };
    let sidecar = SidecarUnit::start(world, &machine, &gateway(world.port(), ""));
    let document = sidecar.restart("gateway");
    ended(&sidecar, &document, "no_unit", 2);
    assert!(document["detail"].as_str().is_some_and(|text| text.contains("no unit file")), "{document:#}");
    let line = ["sh", "-c", "exit 3"].map(str::to_owned);
    machine.install(Manager::System, &Service::running(GATEWAY, &line));
    let document = sidecar.restart("gateway");
    ended(&sidecar, &document, "died", 7);
    let detail = document["detail"].as_str().unwrap_or_default();
    for word in ["exited with code 3", "Result=exit-code", "journalctl", GATEWAY] {
        assert!(detail.contains(word), "{word}: {detail}");
    }
}

fn a_reload_and_a_second_request_during_a_restart(world: &World) {
    let Some(machine) = boot(world) else { return };
    let (port, other) = (world.port(), world.port());
    let standin = world.standin("--on-term delay=1500ms").listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin));
    machine.line(GATEWAY, "ready", 0);
    let sidecar = SidecarUnit::start(world, &machine, &gateway(port, ""));
    let first = sidecar.post("/v1/services/gateway/restart").expect(202).run();
    sidecar.waits_for(&first, |event| event["step"] == "unit_stopping");
    // A run that waits for systemd keeps nobody waiting.
    sidecar.rewrite(&(gateway(port, "") + &format!("[service.other]\nendpoints = [{other}]\n")));
    machine.systemctl(&["reload", UNIT]);
    assert!(wait_until(DEADLINE, || sidecar.get("/v1/services/other").code == 200), "{}", sidecar.said());
    assert_eq!(sidecar.get("/v1/gate/other?timeout=5s").code, 200);
    let second = sidecar.post("/v1/services/gateway/restart").expect(202).json();
    assert_eq!((second["run"].as_str(), &second["joined"]), (Some(&*first), &Value::from(true)));
    ended(&sidecar, &sidecar.finished(&first), "restarted", 0);
    came_back(&machine);
}

fn a_sidecar_that_is_stopped_half_way_says_what_it_leaves(world: &World) {
    let Some(machine) = boot(world) else { return };
    let port = world.port();
    let standin = world.standin("--on-term delay=2s").listen("127.0.0.1", port);
    machine.start(&Service::new(GATEWAY, &standin));
    machine.line(GATEWAY, "ready", 0);
    let sidecar = SidecarUnit::start(world, &machine, &gateway(port, ""));
    let run = sidecar.post("/v1/services/gateway/restart").expect(202).run();
    sidecar.waits_for(&run, |event| event["step"] == "unit_stopping");
    machine.systemctl(&["stop", UNIT]);
    assert!(sidecar.said().contains("after gateway.service was stopped"), "{}", sidecar.said());
    let stopped = || machine.show(GATEWAY, "ActiveState") == "inactive";
    assert!(wait_until(DEADLINE, stopped), "{}", machine.status(GATEWAY));
    // Whoever starts the sidecar again can ask again.
    machine.systemctl(&["start", UNIT]);
    ended(&sidecar, &sidecar.restart("gateway"), "restarted", 0);
}

/// `CAP_SETUID` is for the thread that speaks to users' managers.
fn only_one_thread_may_become_another_user(world: &World) {
    let Some(machine) = boot(world) else { return };
    let _sidecar = SidecarUnit::start(world, &machine, &gateway(world.port(), ""));
    let tasks = machine.root().join(format!("proc/{}/task", machine.main_process(UNIT).pid));
    let mut privileged = Vec::new();
    for task in std::fs::read_dir(tasks).expect("its threads").flatten() {
        let text = std::fs::read_to_string(task.path().join("status")).expect("a thread's status");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
        };
        let permitted = u64::from_str_radix(&field("CapPrm:"), 16).expect("a set of capabilities");
        // CAP_CHOWN is 0, CAP_SETUID 7, CAP_SYS_ADMIN 21.
        assert_eq!(permitted & (1 << 21 | 1), 0, "{text}");
        if permitted & (1 << 7) != 0 {
            privileged.push(field("Name:"));
        }
    }
    assert_eq!(privileged, ["units"]);
}

fn the_socket_has_the_group_that_the_configuration_names(world: &World) {
    use std::os::unix::fs::MetadataExt;
    let Some(machine) = boot(world) else { return };
    let _sidecar = SidecarUnit::with(world, &machine, "group = 4711", &gateway(world.port(), ""));
    let socket = machine.root().join(SOCKET.trim_start_matches('/'));
    let there = std::fs::metadata(socket).expect("the socket");
    assert_eq!((there.gid(), there.mode() & 0o777), (4711, 0o660));
}

/// It could call itself ready, or feed a watchdog, in the sidecar's place.
fn a_command_is_not_told_what_the_sidecar_was_told(world: &World) {
    let Some(machine) = boot(world) else { return };
    let file = machine.folder().join("environment");
    let script = format!("/usr/bin/env > {}; exit 3", file.display());
    let services = gateway(world.port(), "")
        .replace(&format!("unit = \"{GATEWAY}\""), &format!("command = [\"/bin/sh\", \"-c\", {script:?}]"));
    let sidecar = SidecarUnit::start(world, &machine, &services);
    ended(&sidecar, &sidecar.restart("gateway"), "command_failed", 7);
    let told = std::fs::read_to_string(file).expect("its environment");
    let names: Vec<&str> =
        told.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    assert!(names.contains(&"INVOCATION_ID"), "systemd started the sidecar: {told}");
    for name in names {
        let own = ["NOTIFY_", "WATCHDOG_", "LISTEN_"].iter().any(|prefix| name.starts_with(prefix));
        assert!(!own, "{name} in {told}");
    }
}
