//! kill -9 of portguard at any moment: nothing stays attached, nobody is ended later.

use std::time::Duration;

use guard_tests::kernel::{BpfId, bpf_ids};
use guard_tests::{DEADLINE, Tier, World, each_tier, stays, wait_until};
use nix::sys::signal::Signal;

each_tier!(in_the_middle_of_an_escalation, after_each_line);

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
