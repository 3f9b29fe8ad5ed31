//! What holds a port without listening on it: TIME_WAIT, clients, bound sockets,
//! listeners in flight.

use std::time::Duration;

use guard_tests::standin::Plan;
use guard_tests::{Caller, Finished, Portguard, Tier, Verdict, World, each_tier};

each_tier!(
    time_wait_of_reuse,
    time_wait_of_strict,
    time_wait_against_strict_bind,
    time_wait_beside_a_listener,
    established_of_reuse,
    established_of_strict,
    bound_only_reuse,
    bound_only_strict,
    client_source_port,
    client_source_port_waited_for,
    in_flight,
);

/// TIME_WAIT lasts `TCP_TIMEWAIT_LEN`: 60 s. Both tiers wait for the same two sockets.
#[test]
fn slow_time_wait_expires() {
    guard_tests::world::play("leftovers::slow_time_wait_expires", Tier::Poll, |world| {
        let (reuse, strict) = (world.port(), world.port());
        leave(world.standin("--time-wait --exit-when-ready").listen("127.0.0.1", reuse));
        leave(world.standin("--time-wait --exit-when-ready --strict").listen("127.0.0.1", strict));
        let runs: Vec<_> = Tier::ALL
            .into_iter()
            .filter(|tier| tier.asked_for())
            .flat_map(|tier| {
                let gate = |port: u16| {
                    let gate = Portguard::new("gate", tier)
                        .arg("--port")
                        .arg(&port.to_string())
                        .address("127.0.0.1")
                        .timeout("90s")
                        .within(Duration::from_secs(100));
                    // Twelve thousand probes in a minute would show no more than six hundred.
                    if tier == Tier::Poll { gate.arg("--poll-interval=100ms") } else { gate }
                };
                [(strict, gate(strict)), (reuse, gate(reuse).arg("--strict-bind"))]
            })
            .map(|(port, gate)| (port, gate.start()))
            .collect();
        for (port, run) in runs {
            let finished = run.finish().expect(0);
            assert!(world.netns.strictly_bindable("127.0.0.1", port), "{finished}");
            assert!(finished.signals().is_empty(), "{finished}");
        }
    });
}

fn leave(plan: Plan) {
    let mut gone = plan.start();
    gone.child.wait(guard_tests::DEADLINE);
}

fn time_wait_of_reuse(world: &World) {
    let port = world.port();
    leave(world.standin("--time-wait --exit-when-ready").listen("127.0.0.1", port));
    assert!(!world.netns.strictly_bindable("127.0.0.1", port), "there is a TIME_WAIT socket");
    let finished = world.free(port).address("127.0.0.1").matching("standin").run().expect(0);
    assert_eq!(finished.verdict(), Verdict::Free, "{finished}");
}

fn time_wait_of_strict(world: &World) {
    let port = world.port();
    leave(world.standin("--time-wait --exit-when-ready --strict").listen("127.0.0.1", port));
    assert!(!world.netns.bindable("127.0.0.1", port), "a TIME_WAIT socket in the way");
    let finished = world.free(port).address("127.0.0.1").matching("standin").timeout("2s").run().expect(1);
    lists_time_wait(&finished);
}

fn time_wait_against_strict_bind(world: &World) {
    let port = world.port();
    leave(world.standin("--time-wait --exit-when-ready").listen("127.0.0.1", port));
    let finished = world
        .free(port)
        .address("127.0.0.1")
        .matching("standin")
        .arg("--strict-bind")
        .timeout("2s")
        .run()
        .expect(1);
    lists_time_wait(&finished);
}

fn lists_time_wait(finished: &Finished) {
    assert_eq!(finished.verdict(), Verdict::Busy, "{finished}");
    let snapshots = finished.of("snapshot");
    let holders = snapshots.last().expect("a snapshot").holders();
    let [holder] = holders[..] else { panic!("one holder\n{finished}") };
    assert_eq!(holder.state(), "TIME_WAIT", "{finished}");
    let left = holder.time_wait_remaining_ms().unwrap_or_else(|| panic!("no remaining time\n{finished}"));
    assert!((30_000..=60_000).contains(&left), "{left} ms left\n{finished}");
}

/// The old listener goes; its TIME_WAIT stays and hinders nobody with SO_REUSEADDR.
fn time_wait_beside_a_listener(world: &World) {
    let port = world.port();
    let old = world.standin("--time-wait").listen("127.0.0.1", port).start();
    let finished = world.free(port).address("127.0.0.1").matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
}

fn established_of_reuse(world: &World) {
    let port = world.port();
    let old = world.standin("--accept --on-term close-hang").listen("127.0.0.1", port).start();
    let clients =
        world.standin(&format!("--tag client --connect 127.0.0.1:{port} --hold-connections 20")).start();
    let finished = world.free(port).address("127.0.0.1").matching("--listen").drain("300ms").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
    assert!(clients.all_alive() && !clients.termed(), "{finished}");
}

/// Connections of a strict listener block until its process is gone.
fn established_of_strict(world: &World) {
    let port = world.port();
    let old = world.standin("--strict --accept --on-term close-hang").listen("127.0.0.1", port).start();
    let clients =
        world.standin(&format!("--tag client --connect 127.0.0.1:{port} --hold-connections 20")).start();
    let finished =
        world.free(port).address("127.0.0.1").matching("--listen").drain("300ms").timeout("3s").run();
    assert!(old.all_gone(), "{finished}");
    assert!(clients.all_alive() && !clients.termed(), "{finished}");
    // What the kill leaves behind depends on who closes first; the answer has to be the truth.
    assert_eq!(finished.code == Some(0), world.netns.bindable("127.0.0.1", port), "{finished}");
}

fn bound_only_reuse(world: &World) {
    let port = world.port();
    let bystander = world.standin("--bind-only").listen("127.0.0.1", port).start();
    assert!(world.netns.bindable("127.0.0.1", port));
    let finished = world.portguard("gate", port).address("127.0.0.1").timeout("5s").run().expect(0);
    assert!(bystander.all_alive(), "{finished}");
}

/// In no `/proc/net/tcp`, but in the way.
fn bound_only_strict(world: &World) {
    let port = world.port();
    let old = world.standin("--bind-only --strict").listen("127.0.0.1", port).start();
    assert!(!world.netns.bindable("127.0.0.1", port));
    let waited = world.portguard("gate", port).address("127.0.0.1").timeout("300ms").run().expect(1);
    assert_ne!(waited.verdict(), Verdict::Free, "{waited}");
    assert!(old.all_alive());
    let finished = world.free(port).address("127.0.0.1").matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
}

/// A client whose own port the service wants.
fn client_source_port(world: &World) {
    let port = world.port();
    let client = world.standin(&format!("--client-from {port}")).start();
    assert!(!world.netns.bindable("127.0.0.1", port));
    let waited = world.portguard("gate", port).address("127.0.0.1").timeout("300ms").run().expect(1);
    let snapshots = waited.of("snapshot");
    assert!(
        snapshots
            .iter()
            .any(|snapshot| snapshot.holders().iter().any(|holder| holder.state() == "ESTABLISHED")),
        "{waited}"
    );
    assert!(client.all_alive() && !client.termed(), "{waited}");
}

/// The owner of a client's source port was ended. It is waited for, whoever it is.
fn client_source_port_waited_for(world: &World) {
    let port = world.port();
    let client = world.standin(&format!("--tag browser --client-from {port}")).start();
    let free = world.free(port).address("127.0.0.1");
    let finished = free.clone().matching("gateway").timeout("500ms").run().expect(1);
    assert!(client.all_alive() && !client.termed(), "{finished}");
    assert!(finished.classed(client.id(), "foreign"), "{finished}");
    for rule in ["--match=browser", "--any-owner"] {
        let finished = free.clone().arg(rule).timeout("500ms").run().expect(1);
        assert!(finished.classed(client.id(), "stale"), "{finished}");
        assert!(client.all_alive() && !client.termed(), "{finished}");
    }
    let waiting = free.matching("browser").start();
    waiting.waits();
    client.child.signal(nix::sys::signal::Signal::SIGTERM);
    waiting.finish().expect(0);
}

/// The listener lies in a Unix socket's queue: nobody has a descriptor, no signal helps.
fn in_flight(world: &World) {
    let port = world.port();
    let sender = world.standin("--inflight").listen("127.0.0.1", port).start();
    assert!(guard_tests::kernel::owners(sender.inode()).is_empty(), "nobody has a descriptor for it");
    assert!(!world.netns.bindable("127.0.0.1", port));
    let free = world.free(port).matching("standin").timeout("500ms");
    // Some machines close init's descriptors even to root; that hinders nothing.
    for free in [free.clone(), free.by(Caller::init_emptied())] {
        let finished = free.run().expect(1);
        assert_eq!(finished.verdict(), Verdict::Busy, "{finished}");
        let snapshots = finished.of("snapshot");
        let holders = snapshots.last().expect("a snapshot").holders();
        let holder = holders.iter().find(|holder| holder.inode() == Some(sender.inode()));
        assert!(holder.is_some_and(|holder| holder.kernel_held()), "{finished}");
        assert!(finished.signals().is_empty(), "{finished}");
        assert!(sender.all_alive() && !sender.termed(), "{finished}");
    }
}
