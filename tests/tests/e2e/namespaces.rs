//! `--netns`: portguard runs in one network namespace and guards a port in another.

use std::path::PathBuf;

use guard_tests::caller::NOBODY;
use guard_tests::{Caller, DEADLINE, Finished, Portguard, Proc, Standin, Verdict, World, each_tier};

each_tier!(
    status_looks_inside,
    free_ends_the_holder_inside,
    same_port_elsewhere_is_left_alone,
    holder_that_moved_away_is_found,
    gate_follows_events_inside,
    restart_starts_inside,
    restart_becomes_the_command_inside,
    doctor_inside,
    another_s_proc,
    wrong_places,
    denied,
);

/// A namespace's file as `/proc` names it.
fn file(process: Proc) -> PathBuf {
    format!("/proc/{}/ns/net", process.pid).into()
}

/// `command`, run elsewhere, about the namespace of `inside`.
fn from_elsewhere(command: Portguard, inside: &Standin) -> Portguard {
    command.arg("--netns").arg(&format!("pid:{}", inside.id().pid)).by(Caller::elsewhere())
}

fn status_looks_inside(world: &World) {
    let port = world.port();
    let holder = world.standin("").listen("127.0.0.1", port).start();
    let status = || world.portguard("status", port).matching("standin");
    // The test of the test: out there the port is free.
    let outside = status().by(Caller::elsewhere()).run().expect(0);
    assert_eq!(outside.verdict(), Verdict::Free, "{outside}");
    for inside in [
        from_elsewhere(status(), &holder),
        status().arg("--netns").arg(&file(holder.id()).display().to_string()).by(Caller::elsewhere()),
    ] {
        let inside = inside.run().expect(1);
        assert_eq!(inside.verdict(), Verdict::Busy, "{inside}");
        assert!(inside.classed(holder.id(), "stale"), "{inside}");
    }
}

fn free_ends_the_holder_inside(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let free = world.free(port).address("127.0.0.1").matching("standin").drain("200ms");
    let finished = from_elsewhere(free, &old).run().expect(0);
    assert!(old.all_gone(), "{finished}");
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
}

fn same_port_elsewhere_is_left_alone(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let other = world.standin("").listen("0.0.0.0", port).by(Caller::elsewhere()).start();
    let finished = from_elsewhere(world.free(port).matching("standin"), &old).run().expect(0);
    assert!(old.all_gone(), "{finished}");
    assert!(other.all_alive() && !other.termed(), "{finished}");
    assert!(!finished.classed(other.id(), "stale"), "{finished}");
}

/// A process may live in another namespace than the socket that it owns.
fn holder_that_moved_away_is_found(world: &World) {
    let port = world.port();
    let resident = world.standin("").start();
    let old = world.standin("--move-away").listen("127.0.0.1", port).start();
    assert_ne!(std::fs::read_link(file(old.id())).ok(), std::fs::read_link(file(resident.id())).ok());
    let finished = from_elsewhere(world.free(port).matching("move-away"), &resident).run().expect(0);
    assert!(old.all_gone(), "{finished}");
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
}

/// The last event before the gate opens may be overtaken by the probe that opens it. So the event that is waited for is
/// about another port than the one that keeps the gate shut.
fn gate_follows_events_inside(world: &World) {
    let (first, last) = (world.port(), world.port());
    let resident = world.standin("").start();
    let goes_first = world.standin("").listen("127.0.0.1", first).start();
    let goes_last = world.standin("").listen("127.0.0.1", last).start();
    let gate = world.portguard("gate", first).arg("--port").arg(&last.to_string()).address("127.0.0.1");
    let run = from_elsewhere(gate.timeout("30s"), &resident).start();
    run.waits();
    drop(goes_first);
    if world.tier == guard_tests::Tier::Ebpf {
        run.event("the release of the first port", |event| {
            event.kind() == "socket_released" && event.port() == first
        });
    }
    drop(goes_last);
    let finished = run.finish().expect(0);
    for port in [first, last] {
        assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    }
}

fn restarted(world: &World, exec: bool) -> (Standin, Portguard, u16) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let mut restart =
        world.portguard("restart", port).address("127.0.0.1").matching("standin").timeout("15s");
    if exec {
        restart = restart.arg("--exec");
    }
    // It says where it was started; nobody else could listen there.
    let new = world.standin("--exit-when-ready").listen("127.0.0.1", port).with("--tag new");
    let script = format!("readlink /proc/self/ns/net; exec {}", new.command_line().join(" "));
    (old, restart.then(&["sh", "-c", &script]), port)
}

fn started_inside(finished: &Finished) {
    let here = std::fs::read_link("/proc/thread-self/ns/net").expect("this namespace");
    let here = here.display().to_string();
    assert!(finished.others.contains(&here), "not started in {here}\n{finished}");
}

fn restart_starts_inside(world: &World) {
    let (old, restart, port) = restarted(world, false);
    let finished = from_elsewhere(restart, &old).run().expect(0);
    assert!(old.all_gone(), "{finished}");
    started_inside(&finished);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
}

fn restart_becomes_the_command_inside(world: &World) {
    let (old, restart, _) = restarted(world, true);
    let finished = from_elsewhere(restart, &old).run().expect(0);
    started_inside(&finished);
}

fn doctor_inside(world: &World) {
    let resident = world.standin("").start();
    from_elsewhere(Portguard::bare(&["doctor"]), &resident).run().expect(0);
}

/// In a PID namespace of its own and with the `/proc` of the one around it, portguard's own number is somebody else's there:
/// who is protected cannot be told, so nobody is ended.
fn another_s_proc(world: &World) {
    if !nix::unistd::geteuid().is_root() {
        return world.skip("a PID namespace needs root");
    }
    let port = world.port();
    let holder = world.standin("").listen("127.0.0.1", port).start();
    let inside = ["unshare", "--pid", "--fork"].iter().map(|word| (*word).to_owned()).collect();
    let finished = world.free(port).matching("standin").through(inside).run().expect(3);
    assert!(finished.stderr.contains("it belongs to another PID namespace"), "{finished}");
    assert!(finished.signals().is_empty() && holder.child.alive(), "{finished}");
}

fn wrong_places(world: &World) {
    let gone = {
        let mut gone = world.standin("--exit-when-ready").start();
        gone.child.wait(DEADLINE);
        gone.id().pid
    };
    for (place, word) in [
        ("/run/netns/no-such-namespace".to_owned(), "no network namespace"),
        (format!("pid:{gone}"), "no network namespace"),
        ("/proc/self/ns/uts".to_owned(), "not a network namespace"),
        ("/etc/passwd".to_owned(), "not a network namespace"),
        ("pid:".to_owned(), "pid:"),
        (String::new(), "pid:N"),
    ] {
        let finished = world.portguard("status", world.port()).arg("--netns").arg(&place).run().expect(2);
        assert!(finished.stderr.contains(word), "{place}\n{finished}");
    }
}

/// Seeing another user's namespace needs a privilege, entering it another one.
fn denied(world: &World) {
    let resident = world.standin("").start();
    let place = format!("pid:{}", resident.id().pid);
    // An ordinary user has no BPF: whatever the world's tier, this one is asked.
    let status = Portguard::new("status", guard_tests::Tier::Poll).arg("--port").arg("1");
    let finished = status.arg("--netns").arg(&place).by(Caller::user(NOBODY)).run().expect(6);
    assert!(finished.stderr.contains("CAP_SYS_ADMIN"), "{finished}");
}
