//! kill -9 of portguard at any moment: nothing stays attached, nobody is ended later.

use std::time::Duration;

use guard_tests::kernel::{BpfId, bpf_ids};
use guard_tests::process::{Proc, only_child, tasks};
use guard_tests::{DEADLINE, Tier, World, each_tier, stays, wait_until};
use nix::sys::signal::Signal;

each_tier!(in_the_middle_of_an_escalation, after_each_line, with_its_container);

const DRAIN: Duration = Duration::from_millis(400);

fn in_the_middle_of_an_escalation(world: &World) {
    let port = world.port();
    let old = world
        .standin("--on-term hang --fork-sharer 1 --sharer-on-term hang")
        .listen("127.0.0.1", port)
        .start();
    let mut run = world.free(port).matching("standin").drain("400ms").start();
    run.sent("SIGTERM", old.id());
    let attached = bpf_ids(run.child.id.pid);
    if world.tier == Tier::Ebpf {
        assert!(
            attached.iter().any(|id| matches!(id, BpfId::Prog(_))),
            "no BPF program was loaded: {attached:?}"
        );
    }
    run.child.signal(Signal::SIGKILL);
    run.child.wait(DEADLINE);
    assert!(
        wait_until(DEADLINE, || !attached.iter().any(|id| id.exists())),
        "still in the kernel: {:?}",
        attached.iter().filter(|id| id.exists()).collect::<Vec<_>>()
    );
    // Twice the time after which SIGKILL would have come.
    assert!(stays(2 * DRAIN, || old.all_alive()), "somebody went on with the escalation");
}

/// Killed after its first line, its second, and so on until it ends by itself.
fn after_each_line(world: &World) {
    for lines in 1.. {
        let port = world.port();
        let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
        let mut run = world.free(port).matching("standin").drain("100ms").start();
        let mut seen = 0;
        let reached = run.child.stdout.wait_for(DEADLINE, |_| {
            seen += 1;
            (seen == lines).then_some(())
        });
        if reached.is_none() {
            let finished = run.finish().expect(0);
            assert!(old.all_gone(), "{finished}");
            assert!(lines > 4, "it said only {lines} lines\n{finished}");
            return;
        }
        let attached = bpf_ids(run.child.id.pid);
        run.child.signal(Signal::SIGKILL);
        run.child.wait(DEADLINE);
        assert!(wait_until(DEADLINE, || !attached.iter().any(|id| id.exists())), "after line {lines}");
        let killed = run.child.stdout.so_far().iter().any(|line| line.contains("SIGKILL"));
        if !killed && old.all_alive() {
            // What it had not done by then it never does. The last signal may have been on its way
            // without its line; then the stand-in is dead by now.
            assert!(stays(Duration::from_millis(250), || old.all_alive()), "after line {lines}");
        }
    }
}

/// Whoever ends a container kills its first process, which waits within its own exit for all others. Before Linux 6.9 a
/// preemptible kernel took no program off its functions meanwhile: portguard, in that container, never ended, and nobody
/// on that machine could attach or detach any more.
fn with_its_container(world: &World) {
    if !nix::unistd::geteuid().is_root() {
        return world.skip("a PID namespace needs root");
    }
    const CONTAINER: [&str; 6] = ["unshare", "--pid", "--fork", "sh", "-c", "\"$0\" \"$@\" & wait"];
    let port = world.port();
    let holder = world.standin("").listen("127.0.0.1", port).start();
    let container = CONTAINER.iter().map(|word| (*word).to_owned()).collect();
    let mut run = world.portguard("gate", port).timeout("10m").through(container).start();
    run.waits();
    let child = |pid| only_child(pid).expect("a child");
    let first = child(run.child.id.pid);
    let inside = Proc::of(child(first)).expect("portguard");
    let attached = bpf_ids(inside.pid);
    assert_eq!(attached.is_empty(), world.tier != Tier::Ebpf, "{attached:?}");
    Proc::of(first).and_then(|first| first.pidfd()).expect("the first process").signal(Signal::SIGKILL);
    let gone = || !inside.alive() && !attached.iter().any(|id| id.exists());
    assert!(wait_until(DEADLINE, gone), "portguard is still there\n{}", tasks(inside.pid));
    run.child.wait(DEADLINE);
    drop(holder);
    world.portguard("gate", port).run().expect(0);
}
