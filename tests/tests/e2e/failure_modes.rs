//! The failure modes seen in the field, row by row. Those that need a service
//! manager are tested where one runs.

use guard_tests::caller::{Caller, Forbidden, NOBODY};
use guard_tests::{Cgroup, DEADLINE, Finished, Verdict, World, each_tier, stays, wait_until};
use std::time::Duration;

each_tier!(
    row_01_stuck_closing_websockets,
    row_02_orphan_keeps_the_inherited_listener,
    row_03_respawned_outside_its_unit,
    row_04_two_supervisors_fight,
    row_05_cleaner_ends_its_own_ancestor_or_the_successor,
    row_06_owner_is_root_s,
    row_07_port_freed_late_after_sigkill,
    row_08_wrong_address_dual_stack_and_time_wait,
    row_09_foreign_holder,
    row_10_nobody_holds_it,
    row_10_something_outside_of_the_kernel_s_tables_refuses,
    row_11_restart_loop,
    row_12_asked_from_inside_its_own_cgroup,
    row_14_a_healthy_one_already_runs,
    row_14_nobody_runs,
    row_15_client_source_port,
);
// Row 13, the reused PID: `pid_reuse`.

/// Long enough for a stray signal to arrive.
const AFTERMATH: Duration = Duration::from_millis(150);

/// A cgroup, unless this machine has none to give.
fn cgroup(world: &World, name: &str) -> Option<Cgroup> {
    Cgroup::new(name).map_err(|why| world.skip(&why)).ok()
}

fn reasons(finished: &Finished, process: guard_tests::Proc) -> Vec<String> {
    let snapshots = finished.of("snapshot");
    let holders = snapshots.iter().flat_map(|snapshot| snapshot.holders());
    let owners = holders.flat_map(|holder| holder.owners());
    let ours = owners.filter(|owner| owner.process() == process);
    ours.flat_map(|owner| owner.reasons().into_iter().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn row_01_stuck_closing_websockets(world: &World) {
    let port = world.port();
    let mut old = world.standin("--accept --on-term hang").listen("127.0.0.1", port).start();
    let _client = world.standin(&format!("--connect 127.0.0.1:{port} --hold-connections 3")).start();
    let finished = world.free(port).address("127.0.0.1").matching("--on-term").drain("300ms").run().expect(0);
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM", "SIGKILL"], "{finished}");
    assert_eq!(old.child.killed_by(), Some(nix::sys::signal::Signal::SIGKILL), "{finished}");
    let exits = finished.of("owner_exited");
    let exit = exits.iter().find(|event| event.process() == old.id()).expect("its end is told");
    assert_eq!(exit.answered(), Some("SIGKILL"), "{finished}");
    assert!(exit.answered_after_us().is_some_and(|after| after > 0.0), "{finished}");
}

fn row_02_orphan_keeps_the_inherited_listener(world: &World) {
    let port = world.port();
    let mut old = world.standin("--fork-sharer 2 --orphan").listen("127.0.0.1", port).start();
    old.child.wait(DEADLINE);
    let finished = world.free(port).matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port) && old.all_gone(), "{finished}");
    for &sharer in &old.sharers {
        assert_eq!(finished.signals_to(sharer), ["SIGTERM"], "{finished}");
    }
}

fn row_03_respawned_outside_its_unit(world: &World) {
    let Some(session) = cgroup(world, "session-7.scope") else { return };
    let port = world.port();
    let old = world.standin("--tag gateway").by(Caller::within(&session)).listen("127.0.0.1", port).start();
    let twin = cgroup(world, "other.service").expect("a second cgroup");
    let finished = world.free(port).matching("gateway").arg("--unit=gateway").run().expect(0);
    assert!(reasons(&finished, old.id()).contains(&"outside_its_unit".to_owned()), "{finished}");
    assert!(old.all_gone(), "{finished}");
    // The same in another service is that service's.
    let other = world.standin("--tag gateway").by(Caller::within(&twin)).listen("127.0.0.1", port).start();
    let refused = world.free(port).matching("gateway").arg("--unit=gateway").run().expect(4);
    assert!(refused.mentions("other.service"), "{refused}");
    assert!(stays(AFTERMATH, || other.all_alive()) && !other.termed(), "{refused}");
}

fn row_04_two_supervisors_fight(world: &World) {
    let Some(unit) = cgroup(world, "rival.service") else { return };
    let port = world.port();
    // It lets go of the port and does not exit: the gate stays shut while the rivals come and go.
    let old = world.standin("--tag gateway --on-term close-hang").listen("127.0.0.1", port).start();
    let run = world.free(port).address("127.0.0.1").matching("gateway").drain("20s").timeout("25s").start();
    run.sent("SIGTERM", old.id());
    assert!(wait_until(DEADLINE, || world.netns.bindable("127.0.0.1", port)));
    for _ in 0..3 {
        let rival = world.standin("").by(Caller::within(&unit)).listen("127.0.0.1", port).start();
        let seen = rival.id();
        run.event("the rival", |event| {
            event.kind() == "duel" || (event.kind() == "snapshot" && event.shows_listening(seen))
        });
        assert!(rival.all_alive() && !rival.termed());
    }
    let finished = run.finish().expect(5);
    let duels = finished.of("duel");
    assert_eq!(duels[0].units(), ["rival.service"; 3], "{finished}");
    assert!(duels[0].way_out().contains("systemctl disable --now rival.service"), "{finished}");
    assert_eq!(finished.signals(), [(old.id(), "SIGTERM")], "{finished}");
}

fn row_05_cleaner_ends_its_own_ancestor_or_the_successor(world: &World) {
    let port = world.port();
    let line = world.portguard("free", port).timeout("5s").matching("standin").command_line();
    let gateway =
        world.standin("").listen("127.0.0.1", port).then_run(line.iter().map(String::as_str)).start();
    let ended = gateway.line("command_exited", |_| true);
    assert_eq!(ended["code"], 4, "{ended}");
    assert!(gateway.all_alive() && !gateway.termed(), "{ended}");
    drop(gateway);
    // The successor that a restart by signal leaves behind.
    let old = world.standin("--on-term successor").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").timeout("2s").run();
    let successor = old.line("ready", |line| line["tag"] == "successor");
    let pid = i32::try_from(successor["pid"].as_i64().expect("a PID")).expect("a PID");
    assert!(guard_tests::Proc::of(pid).is_some_and(|successor| successor.alive()), "{finished}");
    assert!(finished.signals().iter().all(|(process, _)| *process == old.id()), "{finished}");
}

fn row_06_owner_is_root_s(world: &World) {
    if world.tier == guard_tests::Tier::Ebpf {
        // An ordinary user has no BPF.
        return;
    }
    let port = world.port();
    let old = world.standin("--title node").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("node").timeout("1s").by(Caller::user(NOBODY)).run().expect(3);
    assert_eq!(finished.verdict(), Verdict::Unknown, "{finished}");
    assert!(finished.mentions("held by uid 0"), "{finished}");
    assert!(old.all_alive() && !old.termed(), "{finished}");
}

fn row_07_port_freed_late_after_sigkill(world: &World) {
    let port = world.port();
    let old = world.standin("--rss 200M --threads 4 --on-term ignore").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").drain("100ms").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(!old.child.alive(), "{finished}");
}

fn row_08_wrong_address_dual_stack_and_time_wait(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    world.portguard("gate", port).address("::1").timeout("5s").run().expect(0);
    world.portguard("gate", port).address("127.0.0.2").timeout("5s").run().expect(0);
    world.portguard("gate", port).address("::").timeout("300ms").run().expect(1);
    assert!(old.all_alive());
    drop(old);
    let other = world.port();
    let mut gone = world.standin("--time-wait --exit-when-ready").listen("127.0.0.1", other).start();
    gone.child.wait(DEADLINE);
    world.portguard("gate", other).address("127.0.0.1").timeout("5s").run().expect(0);
}

fn row_09_foreign_holder(world: &World) {
    let port = world.port();
    let tunnel = world.standin("--tag ssh-tunnel").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("gateway").run().expect(4);
    assert!(finished.classed(tunnel.id(), "foreign"), "{finished}");
    assert!(finished.mentions("ssh-tunnel"), "{finished}");
    assert!(stays(AFTERMATH, || tunnel.all_alive()) && !tunnel.termed(), "{finished}");
}

fn row_10_nobody_holds_it(world: &World) {
    let port = world.port();
    let sender = world.standin("--inflight").listen("127.0.0.1", port).start();
    let finished = world.free(port).arg("--any-owner").timeout("1s").run();
    // A machine that hides somebody's descriptors cannot say that nobody has it.
    assert!(matches!(finished.code, Some(1 | 3)), "{finished}");
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(sender.all_alive() && !sender.termed(), "{finished}");
}

/// As under WSL's mirrored networking: the bind fails, and there is no socket at all.
fn row_10_something_outside_of_the_kernel_s_tables_refuses(world: &World) {
    const SAID: &str = "the kernel answers EADDRINUSE and shows no holder in this network namespace";
    let port = world.port();
    let caller = Caller::init_emptied().forbidding(Forbidden::Binding);
    let bystander = world.standin("--tag gateway").listen("127.0.0.1", world.port()).start();
    let free = world.free(port).arg("--any-owner").timeout("1s").by(caller.clone()).run().expect(1);
    let gate = world.portguard("gate", port).timeout("1s").by(caller.clone()).run().expect(1);
    let status = world.portguard("status", port).by(caller).run().expect(1);
    for finished in [free, gate, status] {
        assert_eq!(finished.verdict(), Verdict::Busy, "{finished}");
        let [note] = finished.notes("nobody_visible")[..] else { panic!("one such note\n{finished}") };
        assert!(note.mentions(SAID), "{finished}");
        for part in ["were listed by sock_diag", "other network namespace", "mirrored networking"] {
            assert!(note.details().iter().any(|detail| detail.contains(part)), "{part}\n{finished}");
        }
        assert!(finished.signals().is_empty(), "{finished}");
    }
    assert!(bystander.all_alive() && !bystander.termed());
}

fn row_11_restart_loop(world: &World) {
    let port = world.port();
    let old = world.standin("--tag gateway --on-term delay=400ms").listen("127.0.0.1", port).start();
    let next = world.standin("--exit-when-ready").listen("127.0.0.1", port);
    let run = world.portguard("restart", port).address("127.0.0.1").matching("gateway").then_start(&next);
    let finished = run.timeout("15s").run().expect(0);
    let starts = finished.of("run_step").into_iter().filter(|event| event.is_step("command_started"));
    assert_eq!(starts.count(), 1, "the server is never loaded in vain\n{finished}");
    assert!(finished.others.iter().any(|line| line.contains("\"bind_attempts\":1")), "{finished}");
    assert!(old.all_gone(), "{finished}");
}

fn row_12_asked_from_inside_its_own_cgroup(world: &World) {
    let Some(unit) = cgroup(world, "gateway.service") else { return };
    let port = world.port();
    let old = world.standin("--tag gateway").by(Caller::within(&unit)).listen("127.0.0.1", port).start();
    let asked = world.free(port).matching("gateway").by(Caller::within(&unit)).run().expect(4);
    assert!(reasons(&asked, old.id()).contains(&"same_service_cgroup".to_owned()), "{asked}");
    assert!(stays(AFTERMATH, || old.all_alive()) && !old.termed(), "{asked}");
    // Asked from outside, the same is done.
    world.free(port).matching("gateway").run().expect(0);
    assert!(old.all_gone());
}

/// The command finds a healthy instance, says so with code 78, and is taken at its word.
fn row_14_a_healthy_one_already_runs(world: &World) {
    let port = world.port();
    let healthy = world.standin("--tag healthy").listen("127.0.0.1", port).command_line().join(" ");
    let script = format!("{healthy} & until grep -q ' 0A ' /proc/$!/net/tcp; do :; done; exit 78");
    let finished = restart_with_preset(world, port, &script).expect(0);
    let steps = finished.of("run_step");
    assert!(steps.iter().any(|event| event.is_step("already_running")), "{finished}");
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(!world.netns.bindable("127.0.0.1", port), "the healthy one was left alone\n{finished}");
}

/// Nobody listens: it is a failure like any other.
fn row_14_nobody_runs(world: &World) {
    let port = world.port();
    restart_with_preset(world, port, "exit 78").expect(7);
}

fn restart_with_preset(world: &World, port: u16, script: &str) -> Finished {
    let restart = world.portguard("restart", port).address("127.0.0.1").arg("--preset=openclaw");
    restart.timeout("10s").then(&["sh", "-c", script]).run()
}

fn row_15_client_source_port(world: &World) {
    let port = world.port();
    let client = world.standin(&format!("--client-from {port}")).start();
    let finished = world.free(port).matching("gateway").timeout("700ms").run().expect(1);
    assert!(finished.of("snapshot").iter().any(|look| look.shows(client.id())), "{finished}");
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(client.all_alive() && !client.termed(), "{finished}");
}
