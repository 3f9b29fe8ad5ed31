//! What a report adds: advice on a port that clients may be given, and the checks behind
//! "in use, and nobody to be seen".

use guard_tests::caller::{Caller, Forbidden};
use guard_tests::{Finished, Portguard, Verdict, World, each_tier};

each_tier!(
    client_s_port_is_advised_about,
    gate_at_its_deadline_advises,
    what_is_reserved_is_kept,
    reserved_port_needs_no_advice,
    port_outside_of_the_range_needs_no_advice,
    advice_for_a_person,
    a_refusal_for_a_person,
    a_wait_for_a_person,
    a_crowd_for_a_person,
    nobody_visible,
    listener_in_another_namespace_is_a_hint,
    owner_in_another_namespace_is_told,
);

const HERE: &str = "127.0.0.1";
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const ADVICE: &str = "reserve_port";
const NOBODY: &str = "nobody_visible";

/// In this test's own network namespace.
fn set(sysctl: &str, value: &str) {
    std::fs::write(sysctl, value).unwrap_or_else(|error| panic!("write {value} to {sysctl}: {error}"));
}

fn status(world: &World, port: u16) -> Finished {
    world.portguard("status", port).address(HERE).run()
}

/// It is listed with its owner, and the way out is named; a gate that waits for it says so at once.
fn client_s_port_is_advised_about(world: &World) {
    let port = world.port();
    let client = world.standin(&format!("--client-from {port}")).start();
    let finished = status(world, port).expect(1);
    let snapshot = finished.of("snapshot").pop().expect("a snapshot");
    assert!(snapshot.shows(client.id()), "{finished}");
    assert_eq!(
        advice(&finished),
        [format!("sysctl -w net.ipv4.ip_local_reserved_ports={port}")],
        "{finished}"
    );
    for command in ["gate", "free"] {
        let waiting = world.portguard(command, port).address(HERE).timeout("15s");
        let waiting = if command == "free" { waiting.arg("--any-owner") } else { waiting };
        let run = waiting.start();
        run.event("advice while it waits", |event| event.is_note(ADVICE));
        run.child.signal(nix::sys::signal::Signal::SIGKILL);
    }
    let ended = world.portguard("gate", port).address(HERE).timeout("500ms").run().expect(1);
    assert_eq!(ended.notes(ADVICE).len(), 1, "said once\n{ended}");
}

fn advice(finished: &Finished) -> Vec<&str> {
    finished.notes(ADVICE).iter().flat_map(|note| note.commands()).collect()
}

fn gate_at_its_deadline_advises(world: &World) {
    let port = world.port();
    let _server = world.standin("").listen(HERE, port).start();
    let finished = world.portguard("gate", port).address(HERE).timeout("300ms").run().expect(1);
    assert_eq!(advice(&finished).len(), 1, "{finished}");
}

/// Following the advice ends it.
fn what_is_reserved_is_kept(world: &World) {
    let port = world.port();
    set(RESERVED, "8080,9148-9150");
    let finished = status(world, port).expect(0);
    let list = format!("8080,9148-9150,{port}");
    assert_eq!(
        advice(&finished),
        [format!("sysctl -w net.ipv4.ip_local_reserved_ports={list}")],
        "{finished}"
    );
    let note = finished.notes(ADVICE)[0];
    let line = format!("net.ipv4.ip_local_reserved_ports = {list}");
    assert!(note.details().iter().any(|detail| detail.contains(&line)), "{finished}");
    set(RESERVED, &list);
    assert!(status(world, port).expect(0).notes(ADVICE).is_empty());
}

fn reserved_port_needs_no_advice(world: &World) {
    let port = world.port();
    set(RESERVED, &port.to_string());
    let _server = world.standin("").listen(HERE, port).start();
    assert!(status(world, port).expect(1).notes(ADVICE).is_empty());
}

/// The range belongs to the network namespace that is guarded, wherever portguard is started.
fn port_outside_of_the_range_needs_no_advice(world: &World) {
    let port = world.port();
    let resident = world.standin("").start();
    let (first, last) = if port < 40_000 { (50_000, 60_000) } else { (10_000, 20_000) };
    set(RANGE, &format!("{first} {last}"));
    let inside = world.portguard("status", port).arg("--netns").arg(&format!("pid:{}", resident.id().pid));
    let inside = inside.by(Caller::elsewhere()).run().expect(0);
    assert!(inside.notes(ADVICE).is_empty(), "{inside}");
    let outside = world.portguard("status", port).by(Caller::elsewhere()).run().expect(0);
    assert_eq!(outside.notes(ADVICE).len(), 1, "{outside}");
}

fn person(world: &World, port: u16) -> Portguard {
    Portguard::bare(&["status", "--address", HERE, "--tier", world.tier.name(), "--port", &port.to_string()])
}

fn advice_for_a_person(world: &World) {
    let port = world.port();
    let client = world.standin(&format!("--client-from {port}")).start();
    let finished = person(world, port).run().expect(1);
    for part in [
        format!("ESTABLISHED {HERE}:{port} to "),
        format!("pid {} (standin", client.id().pid),
        format!("note: port {port} lies in net.ipv4.ip_local_port_range ("),
        format!("  run: sysctl -w net.ipv4.ip_local_reserved_ports={port}"),
        "/etc/sysctl.d/".to_owned(),
    ] {
        assert!(finished.others.iter().any(|line| line.contains(&part)), "{part}\n{finished}");
    }
}

/// Each owner and its reason once, then what to do.
fn a_refusal_for_a_person(world: &World) {
    let port = world.port();
    let tunnel = world.standin("--tag tunnel").listen(HERE, port).start();
    let tier = world.tier.name();
    let port = port.to_string();
    let free = ["free", "--match", "gateway", "--address", HERE, "--tier", tier, "--port", &port];
    for dry_run in [&["--dry-run"][..], &[]] {
        let finished = Portguard::bare(&free).args(dry_run).run().expect(4);
        let lines = |part: &str| finished.others.iter().filter(|line| line.contains(part)).count();
        assert_eq!(lines("foreign: neither comm, exe nor argv matches /gateway/"), 1, "{finished}");
        assert_eq!(lines("what to do: if that is the service"), 1, "{finished}");
    }
    assert!(tunnel.all_alive() && !tunnel.termed());
}

/// What a wait is for, and how long it will last at most.
fn a_wait_for_a_person(world: &World) {
    let port = world.port();
    let mut gone = world
        .standin("--strict --leave time-wait --close-listeners --exit-when-ready")
        .listen(HERE, port)
        .start();
    gone.child.wait(guard_tests::DEADLINE);
    let finished = person(world, port).run().expect(1);
    let told = |part: &str| finished.others.iter().any(|line| line.contains(part));
    assert!(told("it expires in ") && told("--timeout must be longer than that"), "{finished}");
    assert!(told("--evict destroys it as the last resort"), "{finished}");
}

/// A gateway with 512 connections was shown with 32, which is as many as a run keeps of them.
fn a_crowd_for_a_person(world: &World) {
    let port = world.port();
    let old = world.standin("--accept").listen(HERE, port).start();
    let clients = world.standin(&format!("--connect {HERE}:{port} --hold-connections 40")).start();
    let tier = world.tier.name();
    let number = port.to_string();
    let crowd = |finished: &Finished| {
        let line = "  besides 32 ESTABLISHED and 8 more, which block only";
        finished.others.iter().filter(|it| it.contains(line)).count()
    };
    let here = ["--address", HERE, "--tier", tier, "--port", &number];
    // It is told live, and not again when the run ends busy: before a second look, for which connections may have
    // been accepted.
    let gate = [&["gate", "--timeout", "950ms"], here.as_slice()].concat();
    let finished = Portguard::bare(&gate).run().expect(1);
    assert_eq!(crowd(&finished), 1, "{finished}");
    assert_eq!(finished.others.iter().filter(|line| line.contains("besides")).count(), 1, "{finished}");
    let free = [&["free", "--match=--listen"], here.as_slice()].concat();
    let finished = Portguard::bare(&free).run().expect(0);
    assert_eq!(crowd(&finished), 1, "{finished}");
    assert!(old.all_gone() && clients.all_alive(), "{finished}");
}

fn status_without_netlink(world: &World, port: u16) -> Finished {
    let caller = Caller::default().forbidding(Forbidden::Netlink);
    world.portguard("status", port).address(HERE).by(caller).run()
}

/// Where only `/proc/net/tcp` is left to look at, nobody sees a socket that is merely bound.
fn nobody_visible(world: &World) {
    if world.tier == guard_tests::Tier::Netlink {
        // Netlink is what is forbidden.
        return;
    }
    let port = world.port();
    let bound = world.standin("--bind-only --strict").listen(HERE, port).start();
    let caller = Caller::default().forbidding(Forbidden::Netlink);
    let status = status_without_netlink(world, port).expect(1);
    let gate = world.portguard("gate", port).address(HERE).timeout("3s").by(caller.clone()).run().expect(1);
    let free =
        world.free(port).address(HERE).arg("--any-owner").timeout("3s").by(caller.clone()).run().expect(1);
    for finished in [status, gate, free] {
        assert_eq!(finished.verdict(), Verdict::Busy, "{finished}");
        let [note] = finished.notes(NOBODY)[..] else { panic!("one such note\n{finished}") };
        assert!(note.mentions("the kernel answers EADDRINUSE and shows no holder in this network namespace"));
        for part in ["/proc/net/tcp", "no bound-only sockets", "descriptors", "other network namespace"] {
            assert!(note.details().iter().any(|detail| detail.contains(part)), "{part}\n{finished}");
        }
        assert!(finished.signals().is_empty(), "{finished}");
    }
    let finished = person(world, port).by(caller).run().expect(1);
    let line = format!(
        "{HERE}:{port} is busy: the kernel answers EADDRINUSE and shows no holder in this network namespace"
    );
    assert!(finished.others.contains(&line), "{finished}");
    assert!(finished.others.iter().any(|line| line.contains("may have the port")), "{finished}");
    assert!(bound.all_alive() && !bound.termed());
}

/// The one that is meant may listen in another namespace.
fn listener_in_another_namespace_is_a_hint(world: &World) {
    if world.tier == guard_tests::Tier::Netlink {
        return;
    }
    let port = world.port();
    let _bound = world.standin("--bind-only --strict").listen(HERE, port).start();
    let other = world.standin("--tag elsewhere").listen("0.0.0.0", port).by(Caller::elsewhere()).start();
    let finished = status_without_netlink(world, port).expect(1);
    let note = finished.notes(NOBODY)[0];
    let pid = other.id().pid;
    let hint = format!("LISTEN 0.0.0.0:{port}");
    let told = note
        .details()
        .iter()
        .any(|detail| detail.contains(&hint) && detail.contains(&format!("pid {pid} (standin)")));
    assert!(told, "{finished}");
    assert_eq!(note.commands(), [format!("portguard status --netns pid:{pid} --port {port}")], "{finished}");
    assert!(other.all_alive() && !other.termed(), "{finished}");
}

/// Its socket is here, it lives elsewhere.
fn owner_in_another_namespace_is_told(world: &World) {
    let port = world.port();
    let old = world.standin("--move-away").listen(HERE, port).start();
    let finished = status(world, port).expect(1);
    let [note] = finished.notes("owner_elsewhere")[..] else { panic!("one such note\n{finished}") };
    let [detail] = note.details()[..] else { panic!("one owner\n{finished}") };
    assert!(
        detail.starts_with(&format!("pid {} lives in another network namespace", old.id().pid)),
        "{finished}"
    );
    let port = world.port();
    let _here = world.standin("").listen(HERE, port).start();
    let finished = status(world, port).expect(1);
    assert!(finished.notes("owner_elsewhere").is_empty(), "{finished}");
}
