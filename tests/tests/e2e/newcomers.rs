//! Who came after the request is not ended.

use guard_tests::{DEADLINE, World, each_tier, wait_until};

each_tier!(
    joins_the_group,
    successor_takes_the_port,
    supervisor_starts_another,
    gate_waits_for_newcomers_too
);

/// A new member joins the SO_REUSEPORT group while the old one drains.
fn joins_the_group(world: &World) {
    let port = world.port();
    let mut old = world.standin("--reuseport --on-term hang").listen("127.0.0.1", port).start();
    let run = world.free(port).matching("standin").drain("700ms").timeout("3s").start();
    run.sent("SIGTERM", old.id());
    let newcomer = world.standin("--reuseport").listen("127.0.0.1", port).start();
    let finished = run.finish();
    assert_ne!(finished.code, Some(0), "the newcomer holds the port\n{finished}");
    assert!(finished.signals_to(newcomer.id()).is_empty(), "{finished}");
    assert!(newcomer.all_alive() && !newcomer.termed(), "{finished}");
    assert_eq!(old.child.killed_by(), Some(nix::sys::signal::Signal::SIGKILL), "{finished}");
}

/// A restart by signal: the old gateway starts a detached successor and exits.
fn successor_takes_the_port(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term successor").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").timeout("3s").run();
    let successor = old.line("ready", |line| line["tag"] == "successor");
    let pid = i32::try_from(successor["pid"].as_i64().expect("a PID")).expect("a PID");
    let successor = guard_tests::Proc::of(pid).expect("the successor lives");
    assert!(finished.signals_to(successor).is_empty(), "{finished}");
    assert!(successor.alive(), "{finished}");
    assert!(wait_until(DEADLINE, || !old.child.alive()), "{finished}");
    // Free for a moment, or taken all the time: both may be seen, neither is the successor's end.
    assert!(matches!(finished.code, Some(0 | 1 | 5)), "{finished}");
}

/// A supervisor without mercy starts its charge again; the new one started after the request.
fn supervisor_starts_another(world: &World) {
    let port = world.port();
    // The supervisor has no ready line of its own: the first one is its charge's.
    let supervisor = world.standin("--supervise --reuseport").listen("127.0.0.1", port).start();
    let first = supervisor.ready["pid"].clone();
    let finished = world.free(port).matching("--listen").timeout("3s").run();
    let second = supervisor.line("ready", |line| line["pid"] != first);
    let pid = i32::try_from(second["pid"].as_i64().expect("a PID")).expect("a PID");
    let second =
        guard_tests::Proc::of(pid).unwrap_or_else(|| panic!("the second charge was ended\n{finished}"));
    assert!(finished.signals_to(second).is_empty(), "{finished}");
    assert!(second.alive() && supervisor.child.alive(), "{finished}");
    assert!(matches!(finished.code, Some(0 | 1 | 5)), "{finished}");
}

/// The gate is never open while somebody else has the port.
fn gate_waits_for_newcomers_too(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let run = world.portguard("gate", port).timeout("1500ms").start();
    run.waits();
    drop(old);
    let finished = run.finish().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
}
