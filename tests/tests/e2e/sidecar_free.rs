//! A port is freed by the sidecar, and nothing is started.

use guard_tests::sidecar::{event, service};
use guard_tests::{Finished, Portguard, Sidecar, World, each_tier};
use serde_json::Value;

each_tier!(
    on_request,
    by_the_command,
    a_stream_that_forgets_loses_nothing_of_the_run,
    a_foreign_holder_is_named_and_left_alone,
    not_beside_a_restart,
    not_beside_a_run_of_another_service_on_the_port,
    a_unit_is_left_to_its_manager
);

/// `portguard free` of what this sidecar serves under `name`.
fn free(sidecar: &Sidecar, name: &str, more: &[&str]) -> Finished {
    let socket = sidecar.socket.to_str().expect("a path in UTF-8");
    let words = ["free", name, "--socket", socket];
    Portguard::bare(&[&words, more].concat()).run()
}

fn on_request(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let config = service("web", port, Some(&next), "budget = { drain = \"50ms\" }");
    let sidecar = Sidecar::start(world, "", &config);
    let run = sidecar.post("/v1/services/web/free").expect(202).run();
    let document = sidecar.finished(&run);
    assert_eq!(
        (&document["command"], &document["outcome"], &document["exit_code"]),
        (&Value::from("free"), &Value::from("opened"), &Value::from(0)),
        "{document}"
    );
    assert!(!old.child.alive());
    assert_eq!(sidecar.verdict("web"), "free", "nothing was started");
    let service = sidecar.get("/v1/services/web").expect(200).json();
    assert_eq!((&service["run"], &service["last_run"]), (&Value::Null, &Value::Null), "these are restarts");
    let metrics = sidecar.get("/metrics").expect(200).text;
    let counted = "portguard_runs_total{service=\"web\",command=\"free\",outcome=\"opened\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(sidecar.get("/v1/services/web/free").code, 405);
}

fn by_the_command(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let sidecar = Sidecar::start(world, "", &service("web", port, None, ""));
    let finished = free(&sidecar, "web", &["--json"]).expect(0);
    assert!(!old.child.alive());
    assert_eq!(finished.of("signal_sent").len(), 1, "{finished}");
    assert_eq!(finished.of("run_finished").len(), 1, "{finished}");
    assert!(finished.stderr.contains("through the sidecar"), "{finished}");
    // It is free already.
    free(&sidecar, "web", &[]).expect(0);
    let wrong = free(&sidecar, "no-such", &[]).expect(2);
    assert!(wrong.stderr.contains("no-such") && wrong.stderr.contains("--port"), "{wrong}");
    let wrong = free(&sidecar, "web", &["--match", "node"]).expect(2);
    assert!(wrong.stderr.contains("configuration says"), "{wrong}");
    let wrong = Portguard::bare(&["free", "web", "--no-sidecar"]).run().expect(2);
    assert!(wrong.stderr.contains("--no-sidecar"), "{wrong}");
    let absent = Portguard::bare(&["free", "web", "--socket", "/nowhere/portguard.sock"]).run().expect(3);
    assert!(absent.stderr.contains("no sidecar answers"), "{absent}");
}

/// It keeps a single event, so the beginning of a run is forgotten before its client reads.
fn a_stream_that_forgets_loses_nothing_of_the_run(world: &World) {
    let port = world.port();
    let sidecar = Sidecar::start(world, "history = 1", &service("web", port, None, ""));
    for _ in 0..5 {
        let _old = world.standin("--on-term exit").listen("127.0.0.1", port).start();
        let finished = free(&sidecar, "web", &["--json"]).expect(0);
        for kind in ["run_started", "signal_sent", "gate_opened", "run_finished"] {
            assert_eq!(finished.of(kind).len(), 1, "{kind}\n{finished}");
        }
        let seqs: Vec<u64> = finished.events.iter().filter_map(|event| event.0["seq"].as_u64()).collect();
        assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}\n{finished}");
    }
}

fn a_foreign_holder_is_named_and_left_alone(world: &World) {
    let port = world.port();
    let stranger = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let config = service("web", port, None, "").replace("\"standin\"", "\"openclaw\"");
    let sidecar = Sidecar::start(world, "", &config);
    let finished = free(&sidecar, "web", &[]).expect(4);
    let owner = format!("pid {}", stranger.child.id.pid);
    assert!(finished.others.iter().any(|line| line.contains(&owner)), "{finished}");
    assert!(stranger.all_alive() && !stranger.termed());
}

/// The holder would get two stop signals, and the successor be taken for a stale holder.
fn not_beside_a_restart(world: &World) {
    let port = world.port();
    let _old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term hang").listen("127.0.0.1", port);
    let sidecar =
        Sidecar::start(world, "", &service("web", port, Some(&next), "budget = { drain = \"1s\" }"));
    for (first, second, outcome) in [("restart", "free", "restarted"), ("free", "restart", "opened")] {
        let follower = sidecar.follow(&[]);
        let run = sidecar.post(&format!("/v1/services/web/{first}")).expect(202).run();
        event(&follower, "SIGTERM", |event| event["type"] == "signal_sent" && event["run"] == *run);
        let refused = sidecar.post(&format!("/v1/services/web/{second}")).expect(409).json();
        assert_eq!(refused["error"], "other_run", "{refused}");
        assert!(refused["message"].as_str().is_some_and(|why| why.contains(&run)), "{refused}");
        let joined = sidecar.post(&format!("/v1/services/web/{first}")).expect(202).json();
        assert_eq!((&joined["run"], &joined["joined"]), (&Value::from(run.as_str()), &Value::from(true)));
        let document = sidecar.finished(&run);
        assert_eq!(document["outcome"], outcome, "{document}");
    }
}

/// Two names for one port: its holder would get two stop signals.
fn not_beside_a_run_of_another_service_on_the_port(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let budget = "budget = { drain = \"20s\" }";
    let other = |name: &str, address: &str| {
        service(name, port, None, budget).replace(&format!("127.0.0.1:{port}"), &format!("{address}:{port}"))
    };
    let services =
        [service("web", port, None, budget), other("any", "0.0.0.0"), other("elsewhere", "127.0.0.2")]
            .concat();
    let sidecar = Sidecar::start(world, "", &services);
    let follower = sidecar.follow(&[]);
    let run = sidecar.post("/v1/services/web/free").expect(202).run();
    event(&follower, "SIGTERM", |event| event["type"] == "signal_sent" && event["run"] == *run);
    let refused = sidecar.post("/v1/services/any/free").expect(409).json();
    assert_eq!(refused["error"], "other_run", "{refused}");
    let named = |word: &str| refused["message"].as_str().is_some_and(|why| why.contains(word));
    assert!(named(&run) && named("the service web"), "{refused}");
    let beside = sidecar.post("/v1/services/elsewhere/free").expect(202).run();
    assert_eq!(sidecar.finished(&beside)["outcome"], "opened");
    drop(old);
    assert_eq!(sidecar.finished(&run)["outcome"], "opened");
    let after = sidecar.post("/v1/services/any/free").expect(202).run();
    assert_eq!(sidecar.finished(&after)["outcome"], "opened");
}

/// It would start it again, or take it for failed.
fn a_unit_is_left_to_its_manager(world: &World) {
    let port = world.port();
    let holder = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let unit = service("web", port, None, "restart = { unit = \"gateway.service\" }");
    let sidecar = Sidecar::start(world, "", &unit);
    let refused = sidecar.post("/v1/services/web/free").expect(409).json();
    assert_eq!(refused["error"], "is_unit", "{refused}");
    let finished = free(&sidecar, "web", &[]).expect(4);
    assert!(finished.stderr.contains("systemctl stop"), "{finished}");
    assert!(holder.all_alive() && !holder.termed());
}
