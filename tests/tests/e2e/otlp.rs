//! Runs exported as traces, to a collector on loopback.

use std::process::Command;
use std::time::Duration;

use guard_tests::child::Child;
use guard_tests::collector::{Collector, Manner, exporting};
use guard_tests::sidecar::service;
use guard_tests::{DEADLINE, Sidecar, World, each_tier};
use nix::sys::signal::Signal;
use serde_json::Value;

each_tier!(
    a_restart_is_a_trace_with_its_steps,
    a_collector_that_is_away_is_told_of_once_and_delays_nothing,
    a_collector_that_hangs_keeps_neither_gates_nor_the_end_waiting
);

/// A sidecar that exports to this port of `127.0.0.1`, or a note why there is none.
fn exporter(world: &World, collector: u16, services: &str) -> Option<Sidecar> {
    let Some(program) = exporting() else {
        world.skip(
            "needs a portguard with the feature otlp in PORTGUARD_OTLP_BIN, which `cargo xtask test` builds",
        );
        return None;
    };
    let otlp = format!("[otlp]\nendpoint = \"http://127.0.0.1:{collector}\"\n");
    Some(Sidecar::of(program, world.tier, "", &(otlp + services)))
}

fn spans(body: &Value) -> Vec<Value> {
    let within = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let resources = within(body, "resourceSpans");
    let scopes = resources.iter().flat_map(|resource| within(resource, "scopeSpans"));
    scopes.flat_map(|scope| within(&scope, "spans")).collect()
}

/// An attribute, whatever its type, as text.
fn attribute(holder: &Value, key: &str) -> Option<String> {
    let found = holder["attributes"].as_array()?.iter().find(|attribute| attribute["key"] == key)?;
    let value = found["value"].as_object()?.values().next()?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

fn nanos(span: &Value, name: &str) -> u64 {
    let text = span[name].as_str().unwrap_or_else(|| panic!("no {name} in {span}"));
    text.parse().expect("nanoseconds")
}

fn restarted(sidecar: &Sidecar) -> String {
    let run = sidecar.post("/v1/services/web/restart").expect(202).run();
    let document = sidecar.finished(&run);
    assert_eq!(document["outcome"], "restarted", "{document}");
    run
}

fn a_restart_is_a_trace_with_its_steps(world: &World) {
    let (port, collector) = (world.port(), Collector::start(0, Manner::Takes));
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let services = service("web", port, Some(&next), "budget = { drain = \"50ms\" }");
    let Some(sidecar) = exporter(world, collector.address.port(), &services) else { return };
    let run = restarted(&sidecar);
    let posted = collector.next();
    assert!(posted.request.starts_with("POST /v1/traces "), "{posted:?}");
    assert!(
        posted.headers.iter().any(|line| line.starts_with("content-type: application/json")),
        "{posted:?}"
    );
    let resource = &posted.body["resourceSpans"][0]["resource"];
    assert_eq!(attribute(resource, "service.name").as_deref(), Some("portguard"), "{resource}");
    let spans = spans(&posted.body);
    let named = |name: &str| {
        let found: Vec<&Value> = spans.iter().filter(|span| span["name"] == name).collect();
        assert_eq!(found.len(), 1, "{name}: {spans:#?}");
        found[0]
    };
    let root = named("restart web");
    for (key, value) in [
        ("portguard.run", run.as_str()),
        ("portguard.service", "web"),
        ("portguard.command", "restart"),
        ("portguard.outcome", "restarted"),
        ("portguard.exit_code", "0"),
        ("portguard.tier", world.tier.name()),
    ] {
        assert_eq!(attribute(root, key).as_deref(), Some(value), "{key} in {root:#}");
    }
    let endpoints = attribute(root, "portguard.endpoints").unwrap_or_default();
    assert!(endpoints.contains(&format!("127.0.0.1:{port}")), "{endpoints}");
    assert_eq!(root["status"]["code"], 1, "{root:#}");
    let events = root["events"].as_array().expect("events");
    assert!(events.iter().any(|event| event["name"] == "probed"), "{root:#}");
    let pid = old.child.id.pid.to_string();
    for name in ["SIGTERM", "SIGKILL", "gate", "start"] {
        let span = named(name);
        assert_eq!(
            (&span["traceId"], &span["parentSpanId"]),
            (&root["traceId"], &root["spanId"]),
            "{span:#}"
        );
        assert!(nanos(span, "startTimeUnixNano") <= nanos(span, "endTimeUnixNano"), "{span:#}");
        if name.starts_with("SIG") {
            assert_eq!(attribute(span, "portguard.pid").as_deref(), Some(pid.as_str()), "{span:#}");
        }
    }
    let took = |span: &Value| nanos(span, "endTimeUnixNano") - nanos(span, "startTimeUnixNano");
    assert!(took(named("SIGTERM")) >= 50_000_000, "the drain budget: {:#}", named("SIGTERM"));
    assert!(took(root) >= took(named("SIGTERM")), "{root:#}");
    // The gate of whoever only waits is a trace too.
    assert_eq!(sidecar.get("/v1/gate/web?timeout=50ms").code, 504);
    let waited = self::spans(&collector.next().body);
    assert_eq!(waited[0]["name"], "gate web", "{waited:#?}");
    assert_eq!(attribute(&waited[0], "portguard.outcome").as_deref(), Some("abandoned"));
}

fn a_collector_that_is_away_is_told_of_once_and_delays_nothing(world: &World) {
    let (port, away) = (world.port(), world.port());
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let Some(mut sidecar) = exporter(world, away, &service("web", port, Some(&next), "")) else { return };
    restarted(&sidecar);
    let warned = |line: &str| line.contains("runs are not exported as traces").then(|| line.to_owned());
    let warning = sidecar.child.stderr.wait_for(DEADLINE, warned).expect("a warning");
    assert!(
        warning.contains("refused") && warning.contains(&format!("127.0.0.1:{away}/v1/traces")),
        "{warning}"
    );
    let mut runs: Vec<String> = (0..3).map(|_| restarted(&sidecar)).collect();
    let collector = Collector::start(away, Manner::Takes);
    let back = |line: &str| line.contains("exported as traces again").then_some(());
    while sidecar.child.stderr.wait_for(Duration::from_millis(300), back).is_none() {
        assert!(runs.len() < 20, "{}", sidecar.child.said());
        runs.push(restarted(&sidecar));
    }
    let ids: Vec<Option<String>> =
        spans(&collector.next().body).iter().map(|span| attribute(span, "portguard.run")).collect();
    assert!(ids.iter().flatten().any(|id| runs.contains(id)), "{ids:?} {runs:?}");
    let warnings = sidecar.child.stderr.so_far().iter().filter(|line| warned(line).is_some()).count();
    assert_eq!(warnings, 1, "{}", sidecar.child.said());
    // What it was told last is posted before it ends.
    let last = restarted(&sidecar);
    sidecar.child.signal(Signal::SIGTERM);
    assert_eq!(sidecar.child.wait(DEADLINE).code(), Some(0), "{}", sidecar.child.said());
    let mut seen = Vec::new();
    while !seen.contains(&Some(last.clone())) {
        seen.extend(spans(&collector.next().body).iter().map(|span| attribute(span, "portguard.run")));
    }
}

fn a_collector_that_hangs_keeps_neither_gates_nor_the_end_waiting(world: &World) {
    let (port, collector) = (world.port(), Collector::start(0, Manner::Hangs));
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let services = service("web", port, Some(&next), "") + &service("idle", world.port(), None, "");
    let Some(mut sidecar) = exporter(world, collector.address.port(), &services) else { return };
    restarted(&sidecar);
    collector.next();
    // It has the first one, and says nothing.
    restarted(&sidecar);
    assert_eq!(sidecar.get("/v1/gate/idle?timeout=5s").code, 200);
    sidecar.child.signal(Signal::SIGTERM);
    // It would have five seconds for its answer.
    assert_eq!(sidecar.child.wait(Duration::from_secs(4)).code(), Some(0), "{}", sidecar.child.said());
}

/// Outside of the tiers' macro: it needs no world but a configuration.
#[test]
fn without_the_feature_the_configuration_says_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("traces.toml");
    let text = "[service.web]\nendpoints = [80]\n[otlp]\nendpoint = \"http://127.0.0.1:4318\"\n";
    std::fs::write(&file, text).expect("a file");
    let mut command = Command::new(guard_tests::portguard::binary());
    command.arg("check-config").arg(&file);
    let mut child = Child::start(command, "portguard check-config");
    assert_eq!(child.wait(DEADLINE).code(), Some(2), "{}", child.said());
    assert!(child.stderr.ended_within(DEADLINE));
    let said = child.said();
    assert!(said.contains("traces.toml:3:1: ") && said.contains("built without the feature otlp"), "{said}");
}
