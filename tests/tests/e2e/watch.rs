//! `portguard watch`: on a terminal, in a pipe, and when the sidecar goes away.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use guard_tests::caller::NOBODY;
use guard_tests::child::{Child, spawn};
use guard_tests::portguard::binary;
use guard_tests::sidecar::{event, service};
use guard_tests::{Caller, DEADLINE, Event, Sidecar, Terminal, World, each_tier, wait_until};
use nix::sys::signal::Signal;

each_tier!(
    a_restart_on_a_terminal,
    whatever_ends_it_the_terminal_is_given_back,
    the_stream_as_lines,
    a_service_that_a_reload_drops_goes_from_the_table,
    a_reader_that_went_away_ends_it,
    a_sidecar_that_is_not_there
);

fn watch(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("watch").arg("--socket").arg(socket).args(arguments).env_remove("NO_COLOR");
    command
}

fn a_restart_on_a_terminal(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term exit").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let services = service("gateway", port, Some(&next), "") + &service("idle", world.port(), None, "");
    let mut sidecar = Sidecar::start(world, "", &services);
    let mut terminal = Terminal::start(watch(&sidecar.socket, &[]), 30, 140);
    let owner = format!("pid {} (standin", old.child.id.pid);
    terminal.shows(&[
        "SERVICE",
        "2 services",
        "gateway",
        "idle",
        "busy",
        "free",
        world.tier.name(),
        &format!("127.0.0.1:{port}"),
        &owner,
        "stale: ",
        "LISTEN",
    ]);
    assert!(terminal.is_coloured());
    assert!(!terminal.is_given_back());
    let run = sidecar.post("/v1/services/gateway/restart").expect(202).run();
    sidecar.finished(&run);
    let signalled = format!("SIGTERM to pid {}", old.child.id.pid);
    terminal.shows(&["restarted in", &format!("restart {run}: restarted"), &signalled, "gate open"]);
    let now = sidecar.get("/v1/services/gateway").expect(200).json();
    let pid = &now["snapshot"]["holders"][0]["owners"]["processes"][0]["pid"];
    terminal.shows(&[&format!("pid {pid} (standin")]);
    // Another one with the same services: what is known of runs is gone, what holds the port is not.
    sidecar.child.signal(Signal::SIGKILL);
    sidecar.child.wait(DEADLINE);
    terminal.shows(&["GONE, waiting for the next sidecar"]);
    sidecar.start_again(&services);
    terminal.shows(&["connected to sidecar number 2", "some events missed", "busy", "LISTEN"]);
    terminal.press(b"j");
    terminal.shows(&["idle: free"]);
    terminal.press(b"q");
    assert_eq!(terminal.wait(DEADLINE).code(), Some(0));
    assert!(wait_until(DEADLINE, || terminal.is_given_back()), "{}", terminal.text());
}

fn whatever_ends_it_the_terminal_is_given_back(world: &World) {
    let sidecar = Sidecar::start(world, "", &service("web", world.port(), None, ""));
    enum Ending {
        Key(&'static [u8]),
        Signal(Signal),
    }
    let endings = [
        ("Esc", Ending::Key(b"\x1b")),
        ("Ctrl-C", Ending::Key(b"\x03")),
        ("SIGTERM", Ending::Signal(Signal::SIGTERM)),
        ("SIGHUP", Ending::Signal(Signal::SIGHUP)),
    ];
    for (what, ending) in endings {
        let mut command = watch(&sidecar.socket, &[]);
        command.env("NO_COLOR", "1");
        let mut terminal = Terminal::start(command, 10, 60);
        terminal.shows(&["web", "free"]);
        assert!(!terminal.is_coloured(), "NO_COLOR");
        match ending {
            Ending::Key(key) => terminal.press(key),
            Ending::Signal(signal) => terminal.signal(signal),
        }
        assert_eq!(terminal.wait(DEADLINE).code(), Some(0), "{what}");
        assert!(wait_until(DEADLINE, || terminal.is_given_back()), "{what}: {}", terminal.text());
    }
    // Without a sidecar the screen is never taken, and the error stays on it.
    let mut terminal = Terminal::start(watch(Path::new("/no/such.sock"), &[]), 10, 60);
    assert_eq!(terminal.wait(DEADLINE).code(), Some(3));
    terminal.shows(&["no sidecar answers"]);
    assert!(terminal.is_given_back());
}

fn the_stream_as_lines(world: &World) {
    let port = world.port();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let services = service("web", port, Some(&next), "");
    let mut sidecar = Sidecar::start(world, "", &services);
    let mut json = Child::start(watch(&sidecar.socket, &["--json"]), "watch --json");
    let mut lines = Child::start(watch(&sidecar.socket, &[]), "watch");
    event(&json, "a snapshot", |event| event["type"] == "snapshot" && event["service"] == "web");
    let run = sidecar.post("/v1/services/web/restart").expect(202).run();
    let document = sidecar.finished(&run);
    event(&json, "the end of the run", |event| event["type"] == "run_finished" && event["run"] == *run);
    // What was sent, and nothing else.
    let sent = document["events"].as_array().expect("events");
    let said = json.stdout.so_far();
    assert!(said.iter().all(|line| Event::parse(line).is_some()), "{}", json.said());
    let of_run: Vec<serde_json::Value> = said
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|event: &serde_json::Value| event["run"] == *run)
        .collect();
    assert_eq!(&of_run, sent);
    let told = |line: &str| (line.contains(" web: restarted after ")).then_some(());
    assert!(lines.stdout.wait_for(DEADLINE, told).is_some(), "{}", lines.said());
    // The next sidecar is found by itself; the gap is an event, and the loss is said besides.
    sidecar.child.signal(Signal::SIGKILL);
    sidecar.child.wait(DEADLINE);
    let waits = |line: &str| line.contains("waiting for the next one").then_some(());
    assert!(json.stderr.wait_for(DEADLINE, waits).is_some(), "{}", json.said());
    sidecar.start_again(&services);
    event(&json, "the gap", |event| event["type"] == "lagged" && event["count"].is_null());
    let back = |line: &str| line.contains(" again").then_some(());
    assert!(json.stderr.wait_for(DEADLINE, back).is_some(), "{}", json.said());
    for (child, signal) in [(&mut json, Signal::SIGINT), (&mut lines, Signal::SIGTERM)] {
        child.signal(signal);
        assert_eq!(child.wait(DEADLINE).code(), Some(0), "{}", child.said());
    }
}

fn a_service_that_a_reload_drops_goes_from_the_table(world: &World) {
    let kept = service("kept", world.port(), None, "");
    let sidecar = Sidecar::start(world, "", &(service("dropped", world.port(), None, "") + &kept));
    let lines = Child::start(watch(&sidecar.socket, &[]), "watch");
    let knows = |line: &str| line.contains(" dropped: free").then_some(());
    assert!(lines.stdout.wait_for(DEADLINE, knows).is_some(), "{}", lines.said());
    let mut terminal = Terminal::start(watch(&sidecar.socket, &[]), 20, 100);
    terminal.shows(&["2 services", "dropped", "kept"]);
    sidecar.rewrite(&kept);
    sidecar.child.signal(Signal::SIGHUP);
    terminal.shows(&["1 service ", "kept"]);
    assert!(!terminal.text().contains("dropped"), "{}", terminal.text());
    let told = |line: &str| line.contains(" dropped: guarded no longer").then_some(());
    assert!(lines.stdout.wait_for(DEADLINE, told).is_some(), "{}", lines.said());
    terminal.press(b"q");
    assert_eq!(terminal.wait(DEADLINE).code(), Some(0));
}

/// `portguard watch --json | head -1` ends although nothing more happens.
fn a_reader_that_went_away_ends_it(world: &World) {
    let sidecar = Sidecar::start(world, "", &service("web", world.port(), None, ""));
    let mut head =
        spawn(Command::new("head").arg("-n1").stdin(Stdio::piped()).stdout(Stdio::piped())).expect("head");
    let mut command = watch(&sidecar.socket, &["--json"]);
    command.stdout(head.stdin.take().expect("a pipe")).stdin(Stdio::null()).stderr(Stdio::piped());
    let child = spawn(&mut command).expect("portguard");
    drop(command);
    let pidfd = guard_tests::process::PidFd::open(child.id().cast_signed()).expect("a pidfd");
    assert!(pidfd.ended_within(DEADLINE), "it goes on although nobody reads");
    let output = child.wait_with_output().expect("its end");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let line = String::from_utf8(head.wait_with_output().expect("head").stdout).expect("UTF-8");
    assert!(Event::parse(line.trim()).is_some(), "{line:?}");
}

fn a_sidecar_that_is_not_there(world: &World) {
    let absent = tempfile::tempdir().expect("a folder");
    let mut child = Child::start(watch(&absent.path().join("none.sock"), &[]), "watch");
    assert_eq!(child.wait(DEADLINE).code(), Some(3), "{}", child.said());
    child.stderr.ended_within(Duration::from_secs(2));
    let said = child.said();
    assert!(said.contains("no sidecar answers at") && said.contains("portguard run"), "{said}");
    let services = service("web", world.port(), None, "");
    let sidecar = Sidecar::start(world, "", &services);
    // It was made for everybody: now it is for root alone.
    std::fs::set_permissions(&sidecar.socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("chmod");
    let nobody = Caller::user(NOBODY);
    let mut command = Command::new(nobody.reachable(&binary()));
    command.arg("watch").arg("--socket").arg(&sidecar.socket);
    nobody.apply(&mut command);
    let mut child = Child::start(command, "watch by nobody");
    assert_eq!(child.wait(DEADLINE).code(), Some(6), "{}", child.said());
}
