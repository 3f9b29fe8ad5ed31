//! `gate`, `status` and `restart NAME` through a running sidecar: the same verdicts, the same exit codes.

use guard_tests::caller::NOBODY;
use guard_tests::schema::check;
use guard_tests::sidecar::service;
use guard_tests::{Caller, DEADLINE, Finished, Portguard, Sidecar, Verdict, World, each_tier, stays};
use nix::sys::signal::Signal;
use std::time::Duration;

each_tier!(
    a_gate_goes_through_the_sidecar,
    a_status_goes_through_the_sidecar,
    what_the_sidecar_does_not_serve_is_done_without_it,
    another_network_namespace_is_another_port,
    a_gate_goes_on_when_the_sidecar_dies,
    a_restart_goes_through_the_sidecar,
    each_end_of_a_restart_has_its_exit_code,
    a_restart_is_never_begun_twice,
    events_that_came_through_fit_the_schema
);

/// `portguard COMMAND --json` about `127.0.0.1:port`, in whatever tier.
fn about(command: &str, sidecar: &Sidecar, port: u16) -> Portguard {
    let socket = sidecar.socket.to_str().expect("a path in UTF-8");
    Portguard::bare(&[command, "--json", "--port", &port.to_string(), "--address", "127.0.0.1"])
        .args(&["--socket", socket])
}

fn restart(sidecar: &Sidecar, name: &str) -> Portguard {
    let socket = sidecar.socket.to_str().expect("a path in UTF-8");
    Portguard::bare(&["restart", "--json", name, "--socket", socket])
}

/// Every event came through the sidecar, and it was said; or none did. Advice is the command's own.
#[track_caller]
fn through(finished: &Finished, expected: bool) {
    let all = finished
        .events
        .iter()
        .filter(|event| event.0["step"] != "note")
        .all(|event| event.0["through"].is_string() == expected);
    assert!(all && !finished.events.is_empty(), "through the sidecar: {expected}\n{finished}");
    assert_eq!(finished.stderr.contains("through the sidecar at"), expected, "{finished}");
}

fn a_gate_goes_through_the_sidecar(world: &World) {
    let port = world.port();
    let sidecar = Sidecar::start(world, "", &service("web", port, None, ""));
    let free = about("gate", &sidecar, port).run().expect(0);
    through(&free, true);
    assert_eq!(free.of("gate_opened").len(), 1, "{free}");
    let holder = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let late = about("gate", &sidecar, port).timeout("400ms").run().expect(1);
    through(&late, true);
    assert_eq!(late.verdict(), Verdict::Busy, "{late}");
    assert!(late.classed(holder.child.id, "foreign") || late.classed(holder.child.id, "stale"), "{late}");
    let waiting = about("gate", &sidecar, port).timeout("30s").start();
    waiting.waits();
    holder.child.signal(Signal::SIGKILL);
    through(&waiting.finish().expect(0), true);
}

fn a_status_goes_through_the_sidecar(world: &World) {
    let port = world.port();
    let sidecar = Sidecar::start(world, "", &service("web", port, None, ""));
    let free = about("status", &sidecar, port).run().expect(0);
    through(&free, true);
    assert_eq!(free.verdict(), Verdict::Free);
    let holder = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    // Also in a tier that tells nothing of new listeners: what it knows may not be older than the question.
    let busy = about("status", &sidecar, port).run().expect(1);
    through(&busy, true);
    assert_eq!(busy.verdict(), Verdict::Busy, "{busy}");
    assert!(busy.classed(holder.child.id, "stale"), "judged by the rules of the service\n{busy}");
    let human = Portguard::bare(&["status", "--port", &port.to_string(), "--address", "127.0.0.1"])
        .args(&["--socket", sidecar.socket.to_str().expect("a path")]);
    let human = human.run().expect(1);
    let text = human.others.join("\n");
    for words in [format!("127.0.0.1:{port} is busy"), format!("pid {}", holder.child.id.pid)] {
        assert!(text.contains(&words), "{words:?}\n{human}");
    }
}

fn what_the_sidecar_does_not_serve_is_done_without_it(world: &World) {
    let port = world.port();
    let sidecar = Sidecar::start(world, "", &service("web", port, None, ""));
    let gate = || about("gate", &sidecar, port).timeout("5s");
    through(&gate().run().expect(0), true);
    let socket = sidecar.socket.to_str().expect("a path in UTF-8");
    let everywhere = ["gate", "--json", "--port", &port.to_string(), "--socket", socket];
    for other in [
        gate().arg("--strict-bind"),
        gate().address("127.0.0.2"),
        gate().args(&["--tier", "poll"]),
        about("gate", &sidecar, world.port()),
        Portguard::bare(&everywhere),
        about("status", &sidecar, port).matching("standin"),
        about("status", &sidecar, port).arg("--any-owner"),
    ] {
        let finished = other.run().expect(0);
        through(&finished, false);
        assert!(finished.stderr.contains("not through the sidecar"), "somebody named it\n{finished}");
    }
    let here = Portguard::bare(&["gate", "--json", "--port", &port.to_string(), "--address", "127.0.0.1"]);
    let alone = here.arg("--no-sidecar").run().expect(0);
    through(&alone, false);
    assert_eq!(alone.stderr, "", "{alone}");
}

/// The file of the socket is seen from everywhere, the port is not.
fn another_network_namespace_is_another_port(world: &World) {
    let port = world.port();
    let _holder = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let everywhere = service("web", port, None, "").replace("127.0.0.1", "0.0.0.0");
    let sidecar = Sidecar::start(world, "", &everywhere);
    let socket = sidecar.socket.to_str().expect("a path in UTF-8");
    let gate = ["gate", "--json", "--port", &port.to_string(), "--address", "0.0.0.0", "--socket", socket];
    let gate = Portguard::bare(&gate).timeout("400ms");
    through(&gate.clone().run().expect(1), true);
    through(&gate.by(Caller::elsewhere()).run().expect(0), false);
}

fn a_gate_goes_on_when_the_sidecar_dies(world: &World) {
    let port = world.port();
    let mut sidecar = Sidecar::start(world, "", &service("web", port, None, ""));
    let holder = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let waiting = about("gate", &sidecar, port).timeout("30s").start();
    waiting.waits();
    sidecar.child.signal(Signal::SIGKILL);
    sidecar.child.wait(DEADLINE);
    waiting.event("it looks for itself", |event| event.kind() == "snapshot" && event.0["through"].is_null());
    holder.child.signal(Signal::SIGKILL);
    let finished = waiting.finish().expect(0);
    assert!(finished.stderr.contains("going on without the sidecar"), "{finished}");
    assert_eq!(finished.of("run_started").len(), 1, "{finished}");
    // The socket is still there, and nobody behind it.
    through(&about("gate", &sidecar, port).run().expect(0), false);
}

fn a_restart_goes_through_the_sidecar(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar = Sidecar::start(world, "", &service("web", port, Some(&next), ""));
    let finished = restart(&sidecar, "web").run().expect(0);
    through(&finished, true);
    assert_eq!(finished.signals_to(old.child.id), ["SIGTERM"], "{finished}");
    assert_eq!(finished.of("gate_opened").len(), 1, "{finished}");
    let socket = sidecar.socket.to_str().expect("a path in UTF-8");
    let human = Portguard::bare(&["restart", "web", "--socket", socket]).run().expect(0);
    assert!(human.stderr.contains("through the sidecar at") && human.stderr.contains("gate open"), "{human}");
    assert!(human.stderr.contains("restarted after"), "{human}");
}

fn each_end_of_a_restart_has_its_exit_code(world: &World) {
    let (open, foreign, failing) = (world.port(), world.port(), world.port());
    let plan = |port| world.standin("--on-term exit").listen("127.0.0.1", port);
    let _stranger = plan(foreign).start();
    let services = service("open", open, Some(&plan(open)), "")
        + &service("foreign", foreign, Some(&plan(foreign)), "").replace("[\"standin\"]", "[\"somebody\"]")
        + &format!(
            "[service.failing]\nendpoints = [\"127.0.0.1:{failing}\"]\nrestart = {{ command = [\"/bin/false\"] }}\n"
        );
    let sidecar = Sidecar::start(world, "", &services);
    through(&restart(&sidecar, "foreign").run().expect(4), true);
    through(&restart(&sidecar, "failing").run().expect(7), true);
    let refused = restart(&sidecar, "open").by(Caller::user(NOBODY)).run().expect(6);
    assert!(refused.stderr.contains("may not restart open"), "{refused}");
    // Whoever may not restart it may wait for it.
    through(&about("gate", &sidecar, open).by(Caller::user(NOBODY)).run().expect(0), true);
}

fn a_restart_is_never_begun_twice(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let budget = "budget = { drain = \"30s\", timeout = \"60s\" }";
    let sidecar = Sidecar::start(world, "", &service("web", port, Some(&next), budget));
    let asked = restart(&sidecar, "web").start();
    asked.sent("SIGTERM", old.child.id);
    sidecar.child.signal(Signal::SIGKILL);
    let finished = asked.finish().expect(3);
    assert!(finished.stderr.contains("is not known") || finished.mentions("is not known"), "{finished}");
    assert!(stays(Duration::from_millis(300), || old.child.alive()), "nothing goes on");
}

/// Whoever reads a command's events with the published schema knows the field `through` from it.
fn events_that_came_through_fit_the_schema(world: &World) {
    let port = world.port();
    let _old = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar = Sidecar::start(world, "", &service("web", port, Some(&next), ""));
    let document = sidecar.get("/openapi.json").expect(200).json();
    let schema = &document["components"]["schemas"]["Event"];
    let described = &schema["properties"]["through"];
    assert!(described["description"].is_string(), "{schema}");
    for (command, code) in [
        (about("status", &sidecar, port), 1),
        (about("gate", &sidecar, port).timeout("300ms"), 1),
        (restart(&sidecar, "web"), 0),
    ] {
        let finished = command.run().expect(code);
        through(&finished, true);
        for event in &finished.events {
            check(&document, schema, &event.0, "it").unwrap_or_else(|why| panic!("{why}\nin {}", event.0));
        }
    }
}
