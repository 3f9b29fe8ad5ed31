//! The sidecar: what it knows, what it does when it is asked, and what becomes of it.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::Command;

use guard_tests::child::Child;
use guard_tests::kernel::policy;
use guard_tests::schema::check;
use guard_tests::sidecar::{event, service};
use guard_tests::{DEADLINE, Portguard, Sidecar, Tier, World, each_tier, stays, wait_until};
use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, shutdown};
use serde_json::Value;
use std::time::Duration;

each_tier!(
    knows_its_services,
    sends_what_it_describes,
    restarts_on_request,
    a_second_request_joins,
    what_a_reload_has_changed_is_not_joined_as_it_was,
    a_foreign_holder_is_refused,
    a_command_that_fails_is_told,
    the_gate_opens_for_whoever_waits,
    many_services_at_once,
    after_a_calm_all_is_told_as_ever,
    a_listener_that_is_shut_down_at_rest_is_noticed_by_whoever_asks,
    reloads_during_a_run,
    learns_again_after_it_was_killed
);

fn knows_its_services(world: &World) {
    let (held, free) = (world.port(), world.port());
    let standin = world.standin("--on-term exit").listen("127.0.0.1", held).start();
    let services = service("held", held, None, "") + &service("unused", free, None, "");
    let sidecar = Sidecar::start(world, "", &services);
    assert_eq!(sidecar.verdict("held"), "busy");
    assert_eq!(sidecar.verdict("unused"), "free");
    let document = sidecar.get("/v1/services/held").expect(200).json();
    let owner = &document["snapshot"]["holders"][0]["owners"]["processes"][0];
    assert_eq!(owner["pid"], standin.child.id.pid, "{document}");
    assert_eq!((&owner["class"], &document["can_restart"]), (&Value::from("stale"), &Value::from(false)));
    assert_eq!(document["tier"], world.tier.name());
    let list = sidecar.get("/v1/services").expect(200).json();
    assert_eq!(list["services"].as_array().map(Vec::len), Some(2), "{list}");
    // Nobody asks, and it is known all the same.
    let follower = sidecar.follow(&[]);
    standin.child.signal(Signal::SIGKILL);
    event(&follower, "the port is free", |event| {
        event["type"] == "snapshot" && event["service"] == "held" && event["verdict"] == "free"
    });
    // The port may be free before its owner is gone.
    event(&follower, "its owner is gone", |event| event["type"] == "owner_exited");
    let metrics = sidecar.get("/metrics").expect(200).text;
    let verdict = "portguard_verdict{service=\"held\",portguard_verdict=\"free\"} 1\n";
    assert!(metrics.contains(verdict) && metrics.ends_with("# EOF\n"), "{metrics}");
}

/// Every answer and every event of a restart fits the schemas in `/openapi.json`.
fn sends_what_it_describes(world: &World) {
    let port = world.port();
    let _old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar =
        Sidecar::start(world, "", &service("web", port, Some(&next), "budget = { drain = \"50ms\" }"));
    let document = sidecar.get("/openapi.json").expect(200).json();
    let answer = |path: &str, method: &str, code: &str, kind: &str| {
        document["paths"][path][method]["responses"][code]["content"][kind]["schema"].clone()
    };
    let fits = |schema: &Value, value: &Value| {
        assert!(schema.is_object(), "no schema");
        check(&document, schema, value, "it").unwrap_or_else(|why| panic!("{why}\nin {value}"));
    };
    let json = "application/json";
    let follower = sidecar.follow(&[]);
    let accepted = sidecar.post("/v1/services/web/restart").expect(202);
    fits(&answer("/v1/services/{name}/restart", "post", "202", json), &accepted.json());
    let run = accepted.run();
    fits(&answer("/v1/runs/{id}", "get", "200", json), &sidecar.get(&format!("/v1/runs/{run}")).json());
    fits(&answer("/v1/runs/{id}", "get", "200", json), &sidecar.finished(&run));
    fits(&answer("/v1/services", "get", "200", json), &sidecar.get("/v1/services").json());
    fits(&answer("/v1/services/{name}", "get", "200", json), &sidecar.get("/v1/services/web").json());
    fits(&answer("/healthz", "get", "200", json), &sidecar.get("/healthz").json());
    fits(&answer("/v1/services", "get", "default", json), &sidecar.get("/v1/services/no-such").json());
    event(&follower, "the end of the run", |event| event["type"] == "run_finished");
    let events = answer("/v1/events", "get", "200", "application/x-ndjson");
    let sent: Vec<Value> =
        follower.stdout.so_far().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(sent.len() > 5, "{sent:?}");
    sent.iter().for_each(|event| fits(&events, event));
    // The check can fail.
    let mut wrong = sent[0].clone();
    wrong["type"] = "no_such_type".into();
    assert!(check(&document, &events, &wrong, "it").is_err());
}

fn restarts_on_request(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar =
        Sidecar::start(world, "", &service("web", port, Some(&next), "budget = { drain = \"50ms\" }"));
    let follower = sidecar.follow(&[]);
    let accepted = sidecar.post("/v1/services/web/restart").expect(202);
    let run = accepted.run();
    event(&follower, "the end of the run", |event| event["type"] == "run_finished" && event["run"] == *run);
    // Who asked can read the whole run whenever it begins to.
    let after = accepted.json()["after"].as_str().expect("the last event before it").to_owned();
    let late = sidecar.follow(&["--header", &format!("Last-Event-ID: {after}")]);
    let first = event(&late, "the next event", |event| event["seq"].is_u64());
    let number = after.rsplit_once('-').and_then(|(_, seq)| seq.parse::<u64>().ok());
    assert_eq!(first["seq"].as_u64(), number.map(|seq| seq + 1), "{first}");
    for kind in ["run_started", "run_finished"] {
        event(&late, kind, |event| event["type"] == kind && event["run"] == *run);
    }
    let document = sidecar.finished(&run);
    assert_eq!(
        (&document["outcome"], &document["exit_code"]),
        (&Value::from("restarted"), &Value::from(0)),
        "{document}"
    );
    let kinds: Vec<&str> = document["events"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["type"].as_str())
        .collect();
    let place = |kind: &str| {
        kinds.iter().position(|seen| *seen == kind).unwrap_or_else(|| panic!("no {kind}: {kinds:?}"))
    };
    assert!(
        place("run_started") < place("signal_sent") && place("signal_sent") < place("gate_opened"),
        "{kinds:?}"
    );
    assert!(!old.child.alive());
    assert_eq!(sidecar.verdict("web"), "busy", "the next one listens");
    let metrics = sidecar.get("/metrics").expect(200).text;
    assert!(
        metrics
            .contains("portguard_runs_total{service=\"web\",command=\"restart\",outcome=\"restarted\"} 1\n"),
        "{metrics}"
    );
}

fn a_second_request_joins(world: &World) {
    let port = world.port();
    let _old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar =
        Sidecar::start(world, "", &service("web", port, Some(&next), "budget = { drain = \"1s\" }"));
    let first = sidecar.post("/v1/services/web/restart").expect(202).json();
    let second = sidecar.post("/v1/services/web/restart").expect(202).json();
    assert_eq!(first["run"], second["run"]);
    assert_eq!((&first["joined"], &second["joined"]), (&Value::from(false), &Value::from(true)));
    let document = sidecar.finished(first["run"].as_str().expect("a run"));
    assert_eq!(document["outcome"], "restarted", "{document}");
    let third = sidecar.post("/v1/services/web/restart").expect(202).json();
    assert_ne!(first["run"], third["run"]);
    assert_eq!(sidecar.finished(third["run"].as_str().expect("a run"))["outcome"], "restarted");
}

/// Whoever asks after the reload asks for the new command.
fn what_a_reload_has_changed_is_not_joined_as_it_was(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let newer = world.standin("--on-term delay=1ms").listen("127.0.0.1", port);
    let web = |plan| service("web", port, Some(plan), "budget = { drain = \"1s\" }");
    let sidecar = Sidecar::start(world, "", &web(&next));
    let follower = sidecar.follow(&[]);
    let first = sidecar.post("/v1/services/web/restart").expect(202).run();
    event(&follower, "SIGTERM", |event| event["type"] == "signal_sent");
    let mark = service("mark", world.port(), None, "");
    sidecar.rewrite(&(web(&newer) + &mark));
    sidecar.child.signal(Signal::SIGHUP);
    assert!(
        wait_until(DEADLINE, || sidecar.get("/v1/services/mark").code == 200),
        "{}",
        sidecar.child.said()
    );
    let refused = sidecar.post("/v1/services/web/restart").expect(409).json();
    assert_eq!(refused["error"], "outdated_run", "{refused}");
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(message.contains(&first) && message.contains("ask again"), "{message}");
    // Nor does a command begin one of its own beside it.
    let socket = sidecar.socket.to_str().expect("a path in UTF-8");
    let asked = Portguard::bare(&["restart", "web", "--socket", socket]).run().expect(3);
    assert!(asked.stderr.contains("has not begun") && asked.stderr.contains(&first), "{asked}");
    assert_eq!(sidecar.finished(&first)["outcome"], "restarted");
    assert!(!old.child.alive());
    let again = sidecar.post("/v1/services/web/restart").expect(202).json();
    assert_eq!(again["joined"], false);
    assert_eq!(sidecar.finished(again["run"].as_str().expect("a run"))["outcome"], "restarted");
}

fn a_foreign_holder_is_refused(world: &World) {
    let port = world.port();
    let stranger = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let config = service("web", port, Some(&next), "").replace("\"standin\"", "\"openclaw\"");
    let sidecar = Sidecar::start(world, "", &config);
    let run = sidecar.post("/v1/services/web/restart").expect(202).run();
    let document = sidecar.finished(&run);
    assert_eq!(
        (&document["outcome"], &document["exit_code"]),
        (&Value::from("refused"), &Value::from(4)),
        "{document}"
    );
    assert!(stranger.child.alive());
}

fn a_command_that_fails_is_told(world: &World) {
    let port = world.port();
    let config = service("web", port, None, "restart = { command = [\"/bin/false\"] }")
        + &service("gone", world.port(), None, "restart = { command = [\"/no/such/program\"] }")
        + &service(
            "silent",
            world.port(),
            None,
            "restart = { command = [\"/bin/true\"] }\nbudget = { start = \"200ms\" }",
        );
    let sidecar = Sidecar::start(world, "", &config);
    for (name, words) in [("web", "failed"), ("gone", "cannot start"), ("silent", "nobody listens")] {
        let run = sidecar.post(&format!("/v1/services/{name}/restart")).expect(202).run();
        let document = sidecar.finished(&run);
        assert_eq!(
            (&document["outcome"], &document["exit_code"]),
            (&Value::from("command_failed"), &Value::from(7))
        );
        let detail = document["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(words), "{document}");
    }
}

fn the_gate_opens_for_whoever_waits(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let sidecar = Sidecar::start(world, "", &service("web", port, None, ""));
    let first = sidecar.follow(&[]);
    let busy = sidecar.get("/v1/gate/web?timeout=300ms");
    assert_eq!((busy.code, &busy.json()["error"]), (504, &Value::from("still_busy")), "{}", busy.text);
    event(&first, "nobody waits", |event| event["type"] == "run_finished" && event["outcome"] == "abandoned");
    let pid = sidecar.child.id.pid;
    assert!(wait_until(DEADLINE, || !urgent(pid)), "whoever only watches is in no hurry");
    let follower = sidecar.follow(&[]);
    let opened = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| sidecar.get("/v1/gate/web"));
        event(&follower, "a gate", |event| event["type"] == "run_started" && event["command"] == "gate");
        assert!(urgent(pid), "the gate would open late on a busy machine");
        assert!(stays(Duration::from_millis(200), || !waiting.is_finished()), "it opened on a busy port");
        old.child.signal(Signal::SIGTERM);
        waiting.join().expect("an answer")
    });
    let opened = opened.expect(200).json();
    assert_eq!((&opened["open"], &opened["service"]), (&Value::from(true), &Value::from("web")), "{opened}");
    // Known at once, even before the hub has heard of it.
    let run = opened["run"].as_str().expect("a run");
    assert_eq!(sidecar.get(&format!("/v1/runs/{run}")).expect(200).json()["command"], "gate");
}

/// Whether one of its threads goes before ordinary ones.
fn urgent(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let numbers = threads.filter_map(|thread| thread.ok()?.file_name().to_string_lossy().parse().ok());
    numbers.into_iter().any(|number: i32| policy(number) == nix::libc::SCHED_FIFO)
}

fn many_services_at_once(world: &World) {
    let ports: Vec<u16> = (0..20).map(|_| world.port()).collect();
    let old: Vec<_> = ports
        .iter()
        .map(|&port| world.standin("--on-term delay=20ms").listen("127.0.0.1", port).start())
        .collect();
    let services: String = ports
        .iter()
        .map(|&port| {
            let next = world.standin("--on-term exit").listen("127.0.0.1", port);
            service(&format!("s{port}"), port, Some(&next), "")
        })
        .collect();
    let sidecar = Sidecar::start(world, "", &services);
    let restart = |port: &u16| sidecar.post(&format!("/v1/services/s{port}/restart")).expect(202).run();
    let runs: Vec<String> = ports.iter().map(restart).collect();
    for run in runs {
        let document = sidecar.finished(&run);
        assert_eq!(document["outcome"], "restarted", "{document}");
    }
    assert!(old.iter().all(|standin| !standin.child.alive()));
}

/// In the ebpf tier, whoever listens alone is watched by his end only, after a while. What follows upon it is told as if
/// nothing had been left out.
fn after_a_calm_all_is_told_as_ever(world: &World) {
    let port = world.port();
    let sidecar = Sidecar::start(world, "", &service("web", port, None, ""));
    let follower = sidecar.follow(&[]);
    let mut last = 0;
    let mut told = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        let next = |event: &Value| event["seq"].as_u64().is_some_and(|seq| seq > last) && wanted(event);
        last = event(&follower, what, next)["seq"].as_u64().expect("a number");
    };
    let verdict =
        |word: &'static str| move |event: &Value| event["type"] == "snapshot" && event["verdict"] == word;
    for round in 0..2 {
        let service = world.standin("--on-term exit").listen("127.0.0.1", port).start();
        if world.tier == Tier::Ebpf {
            told("a new listener", &|event| event["type"] == "listener_opened");
        } else {
            // Nobody tells of it: whoever looks sees it, when the last look is a while ago.
            assert!(wait_until(DEADLINE, || sidecar.verdict("web") == "busy"));
        }
        told("a busy port", &verdict("busy"));
        let may_rest = world.tier == Tier::Ebpf;
        assert!(!may_rest || wait_until(DEADLINE, || sidecar.rests()), "round {round}: it does not rest");
        // A look is no reason to get up.
        assert_eq!(sidecar.verdict("web"), "busy");
        assert_eq!(sidecar.rests(), may_rest);
        service.child.signal(Signal::SIGKILL);
        if world.tier == Tier::Ebpf {
            for kind in ["listener_closed", "socket_released"] {
                told(kind, &|event| event["type"] == kind && event["port"] == port);
            }
        }
        told("a free port", &verdict("free"));
        assert!(wait_until(DEADLINE, || !sidecar.rests()), "round {round}: it rests although nobody listens");
    }
}

/// Nobody tells of it, and it must not go on for long: whoever listens in its place later is told of again.
fn a_listener_that_is_shut_down_at_rest_is_noticed_by_whoever_asks(world: &World) {
    let port = world.port();
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a listener");
    let sidecar = Sidecar::start(world, "", &service("web", port, None, ""));
    let follower = sidecar.follow(&[]);
    let becomes = |word: &str| wait_until(DEADLINE, || sidecar.verdict("web") == word);
    let comes_to_rest = || world.tier != Tier::Ebpf || wait_until(DEADLINE, || sidecar.rests());
    assert!(becomes("busy") && comes_to_rest());
    shutdown(first.as_raw_fd(), Shutdown::Read).expect("no listener any more");
    assert!(becomes("free"));
    assert!(wait_until(DEADLINE, || !sidecar.rests()), "it rests although nobody listens");
    // The first one is still bound: with SO_REUSEADDR, which both have, that is in nobody's way.
    let _second = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("another listener");
    if world.tier == Tier::Ebpf {
        event(&follower, "another listener", |event| event["type"] == "listener_opened");
    }
    assert!(becomes("busy") && comes_to_rest());
}

fn reloads_during_a_run(world: &World) {
    let (port, added) = (world.port(), world.port());
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let web = |drain: &str| service("web", port, Some(&next), &format!("budget = {{ drain = \"{drain}\" }}"));
    let sidecar = Sidecar::start(world, "", &web("1s"));
    let follower = sidecar.follow(&[]);
    let run = sidecar.post("/v1/services/web/restart").expect(202).run();
    event(&follower, "SIGTERM", |event| event["type"] == "signal_sent");
    sidecar.rewrite(&(web("1s") + &service("added", added, None, "")));
    sidecar.child.signal(Signal::SIGHUP);
    assert!(
        wait_until(DEADLINE, || sidecar.get("/v1/services/added").code == 200),
        "{}",
        sidecar.child.said()
    );
    assert_eq!(sidecar.verdict("added"), "free");
    // The run that was under way goes on, and the stream was not cut.
    event(&follower, "the end of the run", |event| event["type"] == "run_finished" && event["run"] == *run);
    assert_eq!(sidecar.finished(&run)["outcome"], "restarted");
    assert!(!old.child.alive());
    // A mistake changes nothing.
    sidecar.rewrite("[service.web]\nendpoints = 7\n");
    sidecar.child.signal(Signal::SIGHUP);
    let complaint = |line: &str| line.contains("the old one holds").then_some(());
    assert!(sidecar.child.stderr.wait_for(DEADLINE, complaint).is_some(), "{}", sidecar.child.said());
    assert_eq!(sidecar.verdict("added"), "free");
    // What is no longer named is no longer there.
    sidecar.rewrite(&web("1s"));
    sidecar.child.signal(Signal::SIGHUP);
    event(&follower, "its end", |event| event["type"] == "service_removed" && event["service"] == "added");
    assert!(
        wait_until(DEADLINE, || sidecar.get("/v1/services/added").code == 404),
        "{}",
        sidecar.child.said()
    );
}

fn learns_again_after_it_was_killed(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let services = service("web", port, Some(&next), "budget = { drain = \"15s\" }");
    let mut sidecar = Sidecar::start(world, "", &services);
    let follower = sidecar.follow(&[]);
    let run = sidecar.post("/v1/services/web/restart").expect(202).run();
    event(&follower, "SIGTERM", |event| event["type"] == "signal_sent");
    sidecar.child.signal(Signal::SIGKILL);
    sidecar.child.wait(DEADLINE);
    assert!(sidecar.socket.exists(), "what a killed one leaves behind");
    // Nothing goes on by itself: the drain budget is nobody's any more.
    let services = services.replace("15s", "50ms");
    sidecar.start_again(&services);
    assert!(old.child.alive());
    assert_eq!(sidecar.verdict("web"), "busy");
    assert_eq!(sidecar.get(&format!("/v1/runs/{run}")).code, 404, "runs of another life");
    let again = sidecar.post("/v1/services/web/restart").expect(202).run();
    assert_ne!(run, again);
    assert_eq!(sidecar.finished(&again)["outcome"], "restarted");
    sidecar.child.signal(Signal::SIGTERM);
    assert_eq!(sidecar.child.wait(DEADLINE).code(), Some(0), "{}", sidecar.child.said());
    assert!(!sidecar.socket.exists(), "its socket goes with it");
}

/// Outside of the tiers' macro: it needs no world but a configuration.
#[test]
fn a_mistake_in_the_configuration_is_told_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("wrong.toml");
    std::fs::write(&file, "[service.web]\nendpoints = [80]\nbugdet = {}\n").expect("a file");
    for arguments in [vec!["check-config"], vec!["run", "--config"]] {
        let mut command = Command::new(guard_tests::portguard::binary());
        command.args(&arguments).arg(&file);
        let mut child = Child::start(command, "portguard");
        assert_eq!(child.wait(DEADLINE).code(), Some(2), "{}", child.said());
        assert!(child.stderr.ended_within(DEADLINE));
        let said = child.said();
        assert!(said.contains("wrong.toml:3:1: ") && said.contains("did you mean `budget`?"), "{said}");
    }
}
