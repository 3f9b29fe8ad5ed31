//! Ending holders: the polite, the stubborn, and those who share a descriptor.

use guard_tests::{DEADLINE, Verdict, World, each_tier};

each_tier!(
    free_port,
    polite,
    slow_but_willing,
    stubborn,
    term_ignored,
    closes_but_never_exits,
    closes_first_exits_later,
    forked_sharer,
    orphaned_sharer,
    stubborn_orphans,
    many_sharers,
    reuseport_group,
    threads,
    title,
    dead_leader,
);

fn free_port(world: &World) {
    let finished = world.free(world.port()).matching("standin").run().expect(0);
    assert_eq!(finished.verdict(), Verdict::Free, "{finished}");
    assert!(finished.signals().is_empty(), "{finished}");
}

fn polite(world: &World) {
    let port = world.port();
    let mut old = world.standin("").listen("127.0.0.1", port).start();
    assert!(!world.netns.bindable("127.0.0.1", port));
    let finished = world.free(port).matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert_eq!(old.child.killed_by(), None, "it exits by itself after SIGTERM\n{finished}");
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM"], "{finished}");
    assert!(finished.classed(old.id(), "stale"), "{finished}");
    assert_eq!(finished.of("gate_opened").len(), 1, "{finished}");
}

/// An escalation never comes before the drain budget is spent.
fn slow_but_willing(world: &World) {
    let port = world.port();
    let mut old = world.standin("--on-term delay=700ms").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").drain("10s").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert_eq!(old.child.killed_by(), None, "{finished}");
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM"], "{finished}");
}

fn stubborn(world: &World) {
    ends_by_sigkill(world, "hang");
}

fn term_ignored(world: &World) {
    ends_by_sigkill(world, "ignore");
}

fn ends_by_sigkill(world: &World, on_term: &str) {
    let port = world.port();
    let mut old = world.standin(&format!("--on-term {on_term}")).listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").drain("300ms").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM", "SIGKILL"], "{finished}");
    assert_eq!(old.child.killed_by(), Some(nix::sys::signal::Signal::SIGKILL), "{finished}");
    let sent = finished.of("signal_sent");
    let waited = sent[1].mono_ns() - sent[0].mono_ns();
    assert!(waited >= 300_000_000, "SIGKILL after {waited} ns, before the drain was over\n{finished}");
}

/// The port is free at once, but a successor would meet the old process's lock.
fn closes_but_never_exits(world: &World) {
    let port = world.port();
    let mut old = world.standin("--on-term close-hang").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").drain("300ms").run().expect(0);
    assert!(!old.child.alive(), "the gate opened before the old process was gone\n{finished}");
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM", "SIGKILL"], "{finished}");
    assert_eq!(old.child.killed_by(), Some(nix::sys::signal::Signal::SIGKILL));
}

fn closes_first_exits_later(world: &World) {
    let port = world.port();
    let mut old = world.standin("--on-term close-then=500ms").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").drain("10s").run().expect(0);
    assert!(!old.child.alive(), "the gate opened before the old process was gone\n{finished}");
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM"], "{finished}");
    assert_eq!(old.child.killed_by(), None);
}

fn forked_sharer(world: &World) {
    let port = world.port();
    let old = world.standin("--fork-sharer 1").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM"], "{finished}");
    assert_eq!(finished.signals_to(old.sharers[0]), ["SIGTERM"], "{finished}");
}

/// The parent died; its child keeps the inherited listener for ever.
fn orphaned_sharer(world: &World) {
    let port = world.port();
    let mut old = world.standin("--fork-sharer 1 --orphan").listen("127.0.0.1", port).start();
    old.child.wait(DEADLINE);
    assert!(old.sharers[0].alive() && !world.netns.bindable("127.0.0.1", port));
    let finished = world.free(port).matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
    assert_eq!(finished.signals_to(old.sharers[0]), ["SIGTERM"], "{finished}");
}

fn stubborn_orphans(world: &World) {
    let port = world.port();
    let mut old =
        world.standin("--fork-sharer 3 --sharer-on-term hang --orphan").listen("127.0.0.1", port).start();
    old.child.wait(DEADLINE);
    let finished = world.free(port).matching("standin").drain("200ms").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
    for &sharer in &old.sharers {
        assert_eq!(finished.signals_to(sharer), ["SIGTERM", "SIGKILL"], "{finished}");
    }
}

fn many_sharers(world: &World) {
    let port = world.port();
    let old = world.standin("--fork-sharer 40 --sharer-on-term hang").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").drain("200ms").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
}

fn reuseport_group(world: &World) {
    let port = world.port();
    let group: Vec<_> =
        (0..3).map(|_| world.standin("--reuseport").listen("127.0.0.1", port).start()).collect();
    let finished = world.free(port).matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    for member in &group {
        assert!(member.all_gone(), "{finished}");
        assert_eq!(finished.signals_to(member.id()), ["SIGTERM"], "{finished}");
    }
}

fn threads(world: &World) {
    let port = world.port();
    let old = world.standin("--threads 50 --on-term hang").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").drain("200ms").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
}

/// OpenClaw hides its argv behind a title.
fn title(world: &World) {
    let port = world.port();
    let old = world.standin("--title openclaw-gateway").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("^openclaw-gateway").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
}

/// The thread group leader is a zombie with an empty `/proc/PID/fd`; another thread
/// keeps the listener.
fn dead_leader(world: &World) {
    let port = world.port();
    let old = world.standin("--threads 1 --leader-exits").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM"], "{finished}");
}
