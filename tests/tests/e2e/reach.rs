//! Whom the end of a stale holder reaches: descendants, cgroups, the stopped.

use std::time::Duration;

use guard_tests::{Caller, Cgroup, DEADLINE, Proc, Standin, World, each_tier, stays, wait_until};
use nix::sys::signal::Signal;

each_tier!(
    tree_ends_descendants,
    tree_spares_them_without_the_flag,
    tree_ends_the_process_group_that_the_owner_leads,
    tree_refuses_whole,
    a_descendant_that_moved_to_another_service_is_spared,
    cgroup_kill_ends_everybody_in_it,
    cgroup_kill_refuses_strangers,
    cgroup_kill_refuses_a_session,
    dry_run_lists_who_is_reached,
    stopped_owner_is_woken_up,
    respawn_of_its_own_unit,
);

/// Long enough for a stray signal to arrive.
const AFTERMATH: Duration = Duration::from_millis(150);

/// A gateway whose child has no socket: `portguard` could not find it by the port.
fn with_child(world: &World, port: u16, arguments: &str, by: Caller) -> (Standin, Proc) {
    let child = world.standin("--tag child --on-term hang").command_line();
    let script = format!("{} & echo \"{{\\\"child\\\":$!}}\"; wait", child.join(" "));
    let old = world
        .standin(&format!("--tag gateway {arguments}"))
        .by(by)
        .listen("127.0.0.1", port)
        .then_run(["sh", "-c", &script])
        .start();
    let found = std::cell::Cell::new(None);
    let is_child = |pid: i32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Not the shell, nor whoever is about to become it, whose script names the child.
        line.split('\0').any(|word| word == "child") && waits_for_sigterm(pid) && descends(pid, old.id().pid)
    };
    assert!(wait_until(DEADLINE, || {
        let pids = std::fs::read_dir("/proc").expect("/proc");
        let pid = pids.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).find(|pid| is_child(*pid));
        found.set(pid.and_then(Proc::of));
        found.get().is_some()
    }));
    let child = found.get().expect("the child");
    (old, child)
}

/// It is ready for SIGTERM.
fn waits_for_sigterm(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    blocked.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & (1 << 14) != 0)
}

fn descends(pid: i32, ancestor: i32) -> bool {
    let parent = |pid: i32| -> Option<i32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let mut at = pid;
    while let Some(next) = parent(at).filter(|next| *next > 1) {
        if next == ancestor {
            return true;
        }
        at = next;
    }
    false
}

fn tree_ends_descendants(world: &World) {
    let port = world.port();
    let (old, child) = with_child(world, port, "--on-term exit", Caller::default());
    let finished = world.free(port).matching("--tag gateway").arg("--tree").drain("300ms").run().expect(0);
    assert!(child.gone_within(DEADLINE) && old.all_gone(), "{finished}");
    assert!(!finished.signals_to(child).is_empty(), "{finished}");
}

fn tree_spares_them_without_the_flag(world: &World) {
    let port = world.port();
    let (old, child) = with_child(world, port, "--on-term exit", Caller::default());
    let finished = world.free(port).matching("--tag gateway").run().expect(0);
    assert!(finished.signals_to(child).is_empty(), "{finished}");
    assert!(old.all_gone(), "{finished}");
}

/// Between SIGTERM and SIGKILL another service takes it in hand.
fn a_descendant_that_moved_to_another_service_is_spared(world: &World) {
    let Some(unit) = cgroup(world, "other.service") else { return };
    let port = world.port();
    let (old, child) = with_child(world, port, "--on-term ignore", Caller::default());
    let run = world.free(port).matching("--tag gateway").arg("--tree").drain("2s").start();
    run.sent("SIGTERM", child);
    unit.take_in(child);
    let finished = run.finish().expect(0);
    assert_eq!(finished.signals_to(child), ["SIGTERM"], "{finished}");
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM", "SIGKILL"], "{finished}");
    let spared = finished.of("run_step").into_iter().find(|event| event.is_step("spared"));
    assert!(spared.is_some_and(|event| event.mentions("moved") && event.mentions(&unit.path)), "{finished}");
    assert!(child.alive(), "{finished}");
    // Nobody else ends it.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.pid), Signal::SIGKILL).expect("end the child");
}

/// Its parent is gone, so it descends from nobody here; but it is still in the gateway's group.
fn tree_ends_the_process_group_that_the_owner_leads(world: &World) {
    let port = world.port();
    let worker = world.standin("--tag worker --on-term hang").command_line();
    let script = format!("{} </dev/zero >/dev/null 2>&1 & exit 0", worker.join(" "));
    let old = world
        .standin("--tag gateway")
        .by(Caller::leading())
        .listen("127.0.0.1", port)
        .then_run(["sh", "-c", &script])
        .start();
    old.line("command_exited", |_| true);
    let found = std::cell::Cell::new(None);
    let is_worker = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let group =
            stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(2)?.parse().ok());
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let itself = line.split('\0').any(|word| word == "worker") && waits_for_sigterm(pid);
        itself && group == Some(old.id().pid)
    };
    assert!(wait_until(DEADLINE, || {
        let pids = std::fs::read_dir("/proc").expect("/proc");
        let pid = pids.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).find(|pid| is_worker(*pid));
        found.set(pid.and_then(Proc::of));
        found.get().is_some()
    }));
    let worker = found.get().expect("the worker");
    assert!(!descends(worker.pid, old.id().pid));
    let free = world.free(port).matching("--tag gateway").drain("300ms");
    let rehearsed = free.clone().arg("--tree").arg("--dry-run").run().expect(0);
    assert!(rehearsed.mentions("in_group_of") && worker.alive(), "{rehearsed}");
    let finished = free.arg("--tree").run().expect(0);
    assert_eq!(finished.signals_to(worker), ["SIGTERM", "SIGKILL"], "{finished}");
    assert!(worker.gone_within(DEADLINE) && old.all_gone(), "{finished}");
}

/// A descendant that another service has in hand saves everybody.
fn tree_refuses_whole(world: &World) {
    let port = world.port();
    let Some(other) = cgroup(world, "other.service") else { return };
    let (old, child) = with_child(world, port, "--on-term exit", Caller::default());
    other.take_in(child);
    let finished = world.free(port).matching("--tag gateway").arg("--tree").run().expect(4);
    assert!(finished.signals().is_empty() && finished.mentions("other.service"), "{finished}");
    assert!(stays(AFTERMATH, || old.all_alive() && child.alive()), "{finished}");
}

fn cgroup(world: &World, name: &str) -> Option<Cgroup> {
    Cgroup::new(name).map_err(|why| world.skip(&why)).ok()
}

fn cgroup_kill_ends_everybody_in_it(world: &World) {
    let Some(unit) = cgroup(world, "gateway.service") else { return };
    let port = world.port();
    let (old, child) = with_child(world, port, "--on-term hang", Caller::within(&unit));
    let finished = world.free(port).arg("--unit=gateway").arg("--cgroup-kill").drain("300ms").run().expect(0);
    assert!(child.gone_within(DEADLINE) && old.all_gone(), "{finished}");
    assert_eq!(finished.signals_to(child), ["SIGTERM", "SIGKILL"], "{finished}");
    let steps = finished.of("run_step");
    let one_by_one = steps.iter().any(|event| event.is_step("cgroup_not_killed"));
    assert_eq!(one_by_one, !unit.can_be_killed(), "{finished}");
}

/// Who shares the cgroup and is not recognised saves everybody.
fn cgroup_kill_refuses_strangers(world: &World) {
    let Some(unit) = cgroup(world, "gateway.service") else { return };
    let port = world.port();
    let old = world.standin("--tag gateway").by(Caller::within(&unit)).listen("127.0.0.1", port).start();
    let other = world.standin("--tag neighbour").by(Caller::within(&unit)).start();
    let finished = world.free(port).matching("--tag gateway").arg("--cgroup-kill").run().expect(4);
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(stays(AFTERMATH, || old.all_alive() && other.all_alive()), "{finished}");
    // By its unit everybody in it is recognised.
    world.free(port).arg("--unit=gateway").arg("--cgroup-kill").run().expect(0);
    assert!(old.all_gone() && other.all_gone());
}

fn cgroup_kill_refuses_a_session(world: &World) {
    let Some(session) = cgroup(world, "session-9.scope") else { return };
    let port = world.port();
    let old = world.standin("--tag gateway").by(Caller::within(&session)).listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("--tag gateway").arg("--cgroup-kill").run().expect(4);
    assert!(finished.mentions("cgroup_is_shared"), "{finished}");
    assert!(stays(AFTERMATH, || old.all_alive()) && !old.termed(), "{finished}");
}

fn dry_run_lists_who_is_reached(world: &World) {
    let port = world.port();
    let (old, child) = with_child(world, port, "--on-term exit", Caller::default());
    let finished = world.free(port).matching("--tag gateway").arg("--tree").arg("--dry-run").run().expect(0);
    let snapshots = finished.of("snapshot");
    let decided = snapshots.last().expect("a snapshot").decided();
    assert!(decided.contains(&old.id()) && decided.contains(&child), "{finished}");
    assert!(finished.signals().is_empty() && old.all_alive() && child.alive(), "{finished}");
}

/// SIGTERM waits for a stopped process to go on; SIGCONT lets it close what it has to.
fn stopped_owner_is_woken_up(world: &World) {
    let port = world.port();
    let mut old = world.standin("").listen("127.0.0.1", port).start();
    old.child.signal(Signal::SIGSTOP);
    let stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", old.id().pid)).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    };
    assert!(wait_until(DEADLINE, stopped));
    let finished = world.free(port).matching("standin").drain("10s").run().expect(0);
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM", "SIGCONT"], "{finished}");
    assert_eq!(old.child.killed_by(), None, "it ended by itself\n{finished}");
}

/// What the unit's own manager started again meanwhile is the service, not a rival.
fn respawn_of_its_own_unit(world: &World) {
    let Some(unit) = cgroup(world, "gateway.service") else { return };
    let port = world.port();
    let old = world
        .standin("--tag gateway --on-term close-then=1s")
        .by(Caller::within(&unit))
        .listen("127.0.0.1", port)
        .start();
    let run = world.free(port).address("127.0.0.1").arg("--unit=gateway").timeout("15s").start();
    run.sent("SIGTERM", old.id());
    assert!(wait_until(DEADLINE, || world.netns.bindable("127.0.0.1", port)));
    let again = world.standin("--tag gateway").by(Caller::within(&unit)).listen("127.0.0.1", port).start();
    let finished = run.finish().expect(1);
    assert_eq!(finished.of("respawned")[0].units(), ["gateway.service"], "{finished}");
    assert!(finished.signals_to(again.id()).is_empty() && again.all_alive(), "{finished}");
}
