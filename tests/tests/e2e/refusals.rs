//! Whom portguard never ends.

use std::time::Duration;

use guard_tests::kernel::owners;
use guard_tests::{DEADLINE, Proc, Verdict, World, each_tier, stays, wait_until};

each_tier!(
    foreign,
    no_rule_no_end,
    foreign_beside_stale,
    foreign_sharer_of_a_stale_socket,
    own_parent,
    own_grandparent,
    own_grandparent_any_owner,
    itself,
    any_owner,
    dry_run,
    dry_run_foreign,
    gate_never_signals,
    status_never_signals,
);

/// Long enough for an end that was started behind the answer's back.
const AFTERMATH: Duration = Duration::from_millis(300);

fn foreign(world: &World) {
    let port = world.port();
    let other = world.standin("--tag dev-server").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("gateway").run().expect(4);
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(stays(AFTERMATH, || other.all_alive()) && !other.termed(), "{finished}");
    assert!(finished.classed(other.id(), "foreign"), "{finished}");
    assert!(finished.mentions(&other.id().pid.to_string()), "the holder is named\n{finished}");
}

fn no_rule_no_end(world: &World) {
    let port = world.port();
    let other = world.standin("").listen("127.0.0.1", port).start();
    let finished = world.free(port).run().expect(4);
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(other.all_alive() && !other.termed(), "{finished}");
}

/// One foreign holder, and nobody at all is signalled: no half-done clean-up.
fn foreign_beside_stale(world: &World) {
    let port = world.port();
    let stale = world.standin("--tag gateway").listen("127.0.0.1", port).start();
    let other = world.standin("--tag dev-server").listen("127.0.0.2", port).start();
    let finished = world.free(port).address("0.0.0.0").matching("gateway").run().expect(4);
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(stays(AFTERMATH, || stale.all_alive() && other.all_alive()), "{finished}");
    assert!(!stale.termed() && !other.termed(), "{finished}");
    assert!(finished.classed(stale.id(), "stale") && finished.classed(other.id(), "foreign"), "{finished}");
}

/// The same socket has a stale and a foreign owner: a program that has nothing of
/// the gateway but its descriptor.
fn foreign_sharer_of_a_stale_socket(world: &World) {
    let port = world.port();
    let listener = world
        .standin("--inheritable --tag gateway")
        .listen("127.0.0.1", port)
        .then_run(["tail", "-f", "/dev/null"])
        .start();
    assert!(wait_until(DEADLINE, || owners(listener.inode()).len() == 2), "tail inherits the listener");
    let both = owners(listener.inode());
    let finished = world.free(port).matching("gateway").run().expect(4);
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(stays(AFTERMATH, || both.iter().all(Proc::alive)), "{finished}");
}

fn own_parent(world: &World) {
    ancestor(world, false, false);
}

fn own_grandparent(world: &World) {
    ancestor(world, true, false);
}

/// `--any-owner` lifts the recognition, never the protection.
fn own_grandparent_any_owner(world: &World) {
    ancestor(world, true, true);
}

fn ancestor(world: &World, between: bool, any_owner: bool) {
    let port = world.port();
    let portguard = world.portguard("free", port).timeout("5s");
    let portguard = if any_owner { portguard.arg("--any-owner") } else { portguard.matching("standin") };
    let line = portguard.command_line();
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    // `exit $?` keeps the shell between the two: it cannot replace itself by its last command.
    let shell = ["sh", "-c", "\"$@\"; exit $?", "sh"];
    let line: Vec<&str> = if between { shell.into_iter().chain(line).collect() } else { line };
    let holder = world.standin("").listen("127.0.0.1", port).then_run(line).start();
    let ended = holder.line("command_exited", |_| true);
    assert_eq!(ended["code"], 4, "{ended}");
    assert!(!ended["stdout"].as_str().unwrap_or_default().contains("signal_sent"), "{ended}");
    assert!(stays(AFTERMATH, || holder.all_alive()) && !holder.termed(), "{ended}");
}

/// portguard inherited the listener's descriptor: it is an owner itself.
fn itself(world: &World) {
    let port = world.port();
    let portguard = world.portguard("free", port).timeout("5s").arg("--any-owner").command_line();
    let holder = world
        .standin("--inheritable")
        .listen("127.0.0.1", port)
        .then_run(portguard.iter().map(String::as_str))
        .start();
    let ended = holder.line("command_exited", |_| true);
    assert_eq!(ended["code"], 4, "{ended}");
    assert!(holder.all_alive() && !holder.termed(), "{ended}");
}

fn any_owner(world: &World) {
    let port = world.port();
    let other = world.standin("--tag dev-server").listen("127.0.0.1", port).start();
    let finished = world.free(port).arg("--any-owner").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(other.all_gone(), "{finished}");
}

fn dry_run(world: &World) {
    let port = world.port();
    let old = world.standin("--fork-sharer 1").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").arg("--dry-run").run().expect(0);
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(stays(AFTERMATH, || old.all_alive()) && !old.termed(), "{finished}");
    let snapshots = finished.of("snapshot");
    let look = snapshots.last().expect("a snapshot");
    assert_eq!(look.decision(), "end", "{finished}");
    assert_eq!(look.decided(), [old.id(), old.sharers[0]], "{finished}");
}

fn dry_run_foreign(world: &World) {
    let port = world.port();
    let other = world.standin("").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("gateway").arg("--dry-run").run().expect(4);
    assert!(other.all_alive() && !other.termed(), "{finished}");
}

fn gate_never_signals(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let finished = world.portguard("gate", port).timeout("500ms").run().expect(1);
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(old.all_alive() && !old.termed(), "{finished}");
}

fn status_never_signals(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let finished = world.portguard("status", port).matching("standin").run();
    assert_eq!(finished.verdict(), Verdict::Busy, "{finished}");
    assert!(finished.classed(old.id(), "stale"), "{finished}");
    assert!(old.all_alive() && !old.termed(), "{finished}");
}
