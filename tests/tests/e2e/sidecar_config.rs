//! What a configuration of the sidecar leads to, and what a reload takes up.

use std::process::Command;

use guard_tests::caller::NOBODY;
use guard_tests::child::Child;
use guard_tests::portguard::binary;
use guard_tests::sidecar::{event, service};
use guard_tests::{Caller, DEADLINE, Sidecar, Standin, Tier, World, each_tier, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

each_tier!(
    a_group_that_the_socket_may_not_be_given_to_is_told_with_the_way_out,
    a_service_in_another_network_namespace,
    a_reload_cannot_add_a_network_namespace_and_loses_nothing,
    a_reload_that_fails_in_one_namespace_changes_nothing_in_any,
    a_reload_that_drops_a_network_namespace_abandons_no_restart_there,
    a_service_that_a_reload_moves_is_not_restarted_twice,
    a_thousand_services_take_some_kilobytes_each,
);

fn a_group_that_the_socket_may_not_be_given_to_is_told_with_the_way_out(world: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open).expect("permissions");
    let (config, socket) = (folder.path().join("portguard.toml"), folder.path().join("p.sock"));
    let web = service("web", world.port(), None, "");
    let text = format!("tier = \"poll\"\n[api]\nsocket = {socket:?}\ngroup = 4711\n{web}");
    std::fs::write(&config, text).expect("a configuration");
    let nobody = Caller::user(NOBODY);
    let mut command = Command::new(nobody.reachable(&binary()));
    command.arg("run").arg("--config").arg(&config);
    nobody.apply(&mut command);
    let mut child = Child::start(command, "portguard run by nobody");
    assert_eq!(child.wait(DEADLINE).code(), Some(6), "{}", child.said());
    assert!(child.stderr.ended_within(DEADLINE));
    let said = child.said();
    for words in ["to the group 4711", "CAP_CHOWN", "SocketGroup="] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

/// Kilobytes that are no file's.
fn anonymous(sidecar: &Sidecar) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", sidecar.child.id.pid)).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// There were 9 of them, and 15 after a reload: each service had its configuration several times over, a state machine
/// that did nothing, and a compiled pattern, and what the file was read with was never given back.
fn a_thousand_services_take_some_kilobytes_each(world: &World) {
    // In the poll tier all of them are looked at together every second, for which room is kept.
    let (most, most_after_reload) = if world.tier == Tier::Poll { (8, 10) } else { (4, 6) };
    let services = |ports: std::ops::Range<u16>| -> String {
        ports.map(|port| service(&format!("s{port}"), port, None, "")).collect()
    };
    let one = Sidecar::start(world, "", &services(10_000..10_001));
    let thousand = Sidecar::start(world, "", &services(10_000..11_000));
    let each = || (anonymous(&thousand) - anonymous(&one)) / 999;
    let settles = |most: i64| wait_until(DEADLINE, || each() < most);
    assert!(wait_until(DEADLINE, || thousand.verdict("s10999") == "free"), "{}", thousand.child.said());
    assert!(settles(most), "{} kB each\n{}", each(), thousand.child.said());
    thousand.rewrite(&services(10_001..11_001));
    thousand.child.signal(Signal::SIGHUP);
    let taken_up = || thousand.get("/v1/services/s11000").code == 200;
    assert!(wait_until(DEADLINE, taken_up), "{}", thousand.child.said());
    assert!(settles(most_after_reload), "{} kB each\n{}", each(), thousand.child.said());
}

/// The keys of a service that is where `resident` lives.
fn inside(resident: &Standin) -> String {
    format!("netns = \"pid:{}\"\n", resident.id().pid)
}

fn namespace(pid: i32) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("a network namespace")
}

fn a_service_in_another_network_namespace(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term exit").listen("127.0.0.1", port).by(Caller::elsewhere()).start();
    let there = namespace(old.id().pid);
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar = Sidecar::start(
        world,
        "",
        &(service("there", port, Some(&next), &inside(&old)) + &service("here", port, None, "")),
    );
    assert_eq!((sidecar.verdict("there"), sidecar.verdict("here")), ("busy".to_owned(), "free".to_owned()));
    let run = sidecar.post("/v1/services/there/restart").expect(202).run();
    let document = sidecar.finished(&run);
    assert_eq!(document["outcome"], "restarted", "{document}");
    assert!(!old.child.alive());
    let document = sidecar.get("/v1/services/there").expect(200).json();
    let new = document["snapshot"]["holders"][0]["owners"]["processes"][0]["pid"].as_i64();
    let new = new.and_then(|pid| i32::try_from(pid).ok()).unwrap_or_else(|| panic!("no owner in {document}"));
    assert_eq!(namespace(new), there);
    assert_eq!(sidecar.verdict("here"), "free");
    // It is outside of the test's own namespace, whose end would end it.
    drop(sidecar);
    if let Some(pidfd) = guard_tests::process::PidFd::open(new) {
        pidfd.signal(Signal::SIGKILL);
    }
}

fn a_reload_cannot_add_a_network_namespace_and_loses_nothing(world: &World) {
    let port = world.port();
    let resident = world.standin("--on-term exit").listen("127.0.0.1", port).by(Caller::elsewhere()).start();
    let here = service("here", port, None, "");
    let sidecar = Sidecar::start(world, "", &here);
    sidecar.rewrite(
        &(here
            + &service("more", world.port(), None, "")
            + &service("there", port, None, &inside(&resident))),
    );
    sidecar.child.signal(Signal::SIGHUP);
    let complaint = |line: &str| {
        (line.contains("cannot add the network namespace") && line.contains("restart the sidecar"))
            .then_some(())
    };
    assert!(sidecar.child.stderr.wait_for(DEADLINE, complaint).is_some(), "{}", sidecar.child.said());
    assert_eq!(sidecar.verdict("here"), "free");
    for name in ["more", "there"] {
        assert_eq!(sidecar.get(&format!("/v1/services/{name}")).code, 404, "{name}");
    }
}

fn a_reload_that_drops_a_network_namespace_abandons_no_restart_there(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).by(Caller::elsewhere()).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let here = service("here", port, None, "");
    let budget = "budget = { drain = \"1s\" }\n";
    let there = service("there", port, Some(&next), &format!("{budget}{}", inside(&old)));
    let mut sidecar = Sidecar::start(world, "", &format!("{here}{there}"));
    let follower = sidecar.follow(&[]);
    let engines = || threads(sidecar.child.id.pid, "engine");
    assert_eq!(engines(), 2);
    let run = sidecar.post("/v1/services/there/restart").expect(202).run();
    event(&follower, "SIGTERM", |event| event["type"] == "signal_sent");
    sidecar.rewrite(&here);
    sidecar.child.signal(Signal::SIGHUP);
    let dropped = || sidecar.get("/v1/services/there").code == 404;
    assert!(wait_until(DEADLINE, dropped), "{}", sidecar.child.said());
    assert_eq!(sidecar.post("/v1/services/there/restart").code, 404);
    // Whoever asked for it learns of its end.
    event(&follower, "the end of the run", |event| event["type"] == "run_finished" && event["run"] == *run);
    let document = sidecar.finished(&run);
    assert_eq!(document["outcome"], "restarted", "{document}");
    assert!(!old.child.alive());
    assert!(wait_until(DEADLINE, || engines() == 1), "its event loop ends with it");
    assert_eq!(sidecar.get("/healthz").code, 200);
    assert_eq!(sidecar.verdict("here"), "free");
    sidecar.child.signal(Signal::SIGTERM);
    assert_eq!(sidecar.child.wait(DEADLINE).code(), Some(0), "{}", sidecar.child.said());
    end_listener(&document);
}

/// The event loop that it moves to knows nothing of the run that the other one still carries out.
fn a_service_that_a_reload_moves_is_not_restarted_twice(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).by(Caller::elsewhere()).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let here = service("here", world.port(), None, "");
    let web =
        |keys: &str| service("web", port, Some(&next), &format!("budget = {{ drain = \"1s\" }}\n{keys}"));
    let sidecar = Sidecar::start(world, "", &format!("{here}{}", web(&inside(&old))));
    let follower = sidecar.follow(&[]);
    let run = sidecar.post("/v1/services/web/restart").expect(202).run();
    event(&follower, "SIGTERM", |event| event["type"] == "signal_sent");
    sidecar.rewrite(&format!("{here}{}", web("")));
    sidecar.child.signal(Signal::SIGHUP);
    let moved = || sidecar.get("/v1/services/web").json()["netns"].is_u64();
    assert!(wait_until(DEADLINE, moved), "{}", sidecar.child.said());
    let refused = sidecar.post("/v1/services/web/restart").expect(409).json();
    assert_eq!(refused["error"], "other_run", "{refused}");
    let document = sidecar.finished(&run);
    assert_eq!(document["outcome"], "restarted", "{document}");
    let again = sidecar.post("/v1/services/web/restart").expect(202).run();
    assert_eq!(sidecar.finished(&again)["outcome"], "restarted");
    end_listener(&document);
}

/// Ends what a restart started outside of the test's own namespace, whose end would end it.
fn end_listener(document: &Value) {
    let listening =
        document["events"].as_array().into_iter().flatten().find(|event| event["step"] == "listening");
    let pid = listening.and_then(|event| event["pid"].as_i64()).and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.unwrap_or_else(|| panic!("nobody listens: {document}"));
    if let Some(pidfd) = guard_tests::process::PidFd::open(pid) {
        pidfd.signal(Signal::SIGKILL);
    }
}

/// How many threads of this name a process has.
fn threads(pid: i32, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|comm| comm.trim_end() == name).count()
}

fn a_reload_that_fails_in_one_namespace_changes_nothing_in_any(world: &World) {
    let port = world.port();
    let resident = world.standin("--on-term exit").listen("127.0.0.1", port).by(Caller::elsewhere()).start();
    let here = service("here", port, None, "");
    let there = service("there", port, None, &inside(&resident));
    let sidecar = Sidecar::start(world, "", &format!("{here}{there}"));
    assert_eq!((sidecar.verdict("here"), sidecar.verdict("there")), ("free".to_owned(), "busy".to_owned()));
    let wrong = there.replace("127.0.0.1:", "[fe80::1%no-such]:");
    let _taken = world.standin("").listen("127.0.0.2", port).start();
    sidecar.rewrite(&format!("{}{wrong}", here.replace("127.0.0.1", "127.0.0.2")));
    sidecar.child.signal(Signal::SIGHUP);
    let complaint =
        |line: &str| (line.contains("the old one holds") && line.contains("no-such")).then_some(());
    assert!(sidecar.child.stderr.wait_for(DEADLINE, complaint).is_some(), "{}", sidecar.child.said());
    assert_eq!((sidecar.verdict("here"), sidecar.verdict("there")), ("free".to_owned(), "busy".to_owned()));
    // What is right in both is taken up in both.
    sidecar.rewrite(&format!("{}{there}", here.replace("127.0.0.1", "127.0.0.2")));
    sidecar.child.signal(Signal::SIGHUP);
    assert!(wait_until(DEADLINE, || sidecar.verdict("here") == "busy"), "{}", sidecar.child.said());
    assert_eq!(sidecar.verdict("there"), "busy");
}
