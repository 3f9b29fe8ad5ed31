//! What somebody may not see is `unknown`, never free.

use guard_tests::caller::{CAP_KILL, Caller, NOBODY};
use guard_tests::{Tier, Verdict, World, each_tier};

each_tier!(signal_not_permitted);

/// An ordinary user has no BPF: only the poll tier is asked.
macro_rules! unprivileged {
    ($($scenario:ident),+ $(,)?) => { $(
        mod $scenario {
            #[test]
            fn poll() {
                guard_tests::world::play(module_path!(), guard_tests::Tier::Poll, super::$scenario);
            }
        }
    )+ };
}
unprivileged!(
    root_owner_is_unknown,
    status_of_root_owner,
    own_process_is_ended,
    free_port_is_free,
    gate_opens,
    auto_tier
);

fn nobody() -> Caller {
    Caller::user(NOBODY)
}

fn root_owner_is_unknown(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").timeout("1s").by(nobody()).run().expect(3);
    assert_eq!(finished.verdict(), Verdict::Unknown, "{finished}");
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(old.all_alive() && !old.termed(), "{finished}");
    let snapshots = finished.of("snapshot");
    let holders = snapshots.last().expect("a snapshot").holders();
    assert!(!holders.is_empty() && holders[0].visibility() != "all", "{finished}");
    assert!(!holders[0].kernel_held(), "not seen is not the same as not there\n{finished}");
}

fn status_of_root_owner(world: &World) {
    let port = world.port();
    let _old = world.standin("").listen("127.0.0.1", port).start();
    let finished = world.portguard("status", port).by(nobody()).run();
    assert_eq!(finished.verdict(), Verdict::Unknown, "{finished}");
}

fn own_process_is_ended(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).by(nobody()).start();
    let finished = world.free(port).matching("standin").drain("200ms").by(nobody()).run();
    if finished.code == Some(0) {
        assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
        assert!(old.all_gone(), "{finished}");
    } else {
        // Other users' processes might share the descriptor: also an honest answer.
        assert_eq!(finished.code, Some(3), "{finished}");
        assert!(old.all_alive() && finished.signals().is_empty(), "{finished}");
    }
}

fn free_port_is_free(world: &World) {
    let finished = world.free(world.port()).matching("standin").by(nobody()).run().expect(0);
    assert_eq!(finished.verdict(), Verdict::Free, "{finished}");
}

/// The gate needs no owner: bind() itself tells.
fn gate_opens(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let run = world.portguard("gate", port).timeout("10s").by(nobody()).start();
    run.waits();
    drop(old);
    run.finish().expect(0);
}

fn auto_tier(world: &World) {
    let finished = guard_tests::Portguard::bare(&["free", "--json", "--port"])
        .arg(&world.port().to_string())
        .matching("standin")
        .by(nobody())
        .run()
        .expect(0);
    assert!(!finished.mentions(&format!("\"tier\":\"{}\"", Tier::Ebpf)), "{finished}");
}

/// Everything is visible, the owner is recognised, and the kernel says EPERM.
fn signal_not_permitted(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).by(nobody()).start();
    let finished =
        world.free(port).matching("standin").timeout("2s").by(Caller::root_without(CAP_KILL)).run().expect(6);
    assert!(finished.signals().is_empty(), "{finished}");
    assert!(old.all_alive() && !old.termed(), "{finished}");
}
