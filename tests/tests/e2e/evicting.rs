//! `--evict`: sockets that no signal helps against are destroyed, and only those.

use guard_tests::caller::{CAP_NET_ADMIN, Caller};
use guard_tests::{DEADLINE, Finished, Portguard, World, each_tier};

each_tier!(
    time_wait_against_strict_bind,
    time_wait_of_strict,
    what_an_ended_server_leaves,
    client_source_port,
    in_flight,
    in_flight_against_strict_bind,
    foreign_listener,
    nothing_without_the_flag,
    dry_run,
    not_permitted,
);

const HERE: &str = "127.0.0.1";

fn evict(world: &World, port: u16) -> Portguard {
    world.free(port).address(HERE).arg("--evict")
}

/// A TIME_WAIT socket on a port of its own.
fn time_wait(world: &World, arguments: &str) -> u16 {
    let port = world.port();
    let plan = world.standin("--time-wait --exit-when-ready").with(arguments).listen(HERE, port);
    plan.start().child.wait(DEADLINE);
    assert!(!world.netns.strictly_bindable(HERE, port), "there is a TIME_WAIT socket");
    port
}

fn took_ms(finished: &Finished) -> u128 {
    let of = |kind: &str| u128::from(finished.of(kind).first().expect("an event").mono_ns());
    (of("run_finished") - of("run_started")) / 1_000_000
}

fn time_wait_against_strict_bind(world: &World) {
    let port = time_wait(world, "");
    let finished = evict(world, port).matching("standin").arg("--strict-bind").run().expect(0);
    assert!(world.netns.strictly_bindable(HERE, port), "{finished}");
    assert_eq!(finished.evicted(), ["TIME_WAIT"], "{finished}");
    assert!(took_ms(&finished) < 5_000, "{finished}");
}

fn time_wait_of_strict(world: &World) {
    let port = time_wait(world, "--strict");
    assert!(!world.netns.bindable(HERE, port));
    let finished = evict(world, port).matching("standin").run().expect(0);
    assert!(world.netns.bindable(HERE, port), "{finished}");
    assert_eq!(finished.evicted(), ["TIME_WAIT"], "{finished}");
}

/// First it is ended, then its connections' remains are destroyed.
fn what_an_ended_server_leaves(world: &World) {
    let port = world.port();
    let old = world.standin("--accept --time-wait").listen(HERE, port).start();
    let clients =
        world.standin(&format!("--tag client --connect {HERE}:{port} --hold-connections 5")).start();
    let finished = evict(world, port).matching("--listen").arg("--strict-bind").run().expect(0);
    assert!(old.all_gone(), "{finished}");
    assert!(world.netns.strictly_bindable(HERE, port), "{finished}");
    assert!(!finished.evicted().is_empty(), "{finished}");
    assert!(finished.evicted().iter().all(|state| *state != "LISTEN"), "{finished}");
    assert!(clients.all_alive() && !clients.termed(), "{finished}");
}

/// A stranger's client that was given the service's port by chance.
fn client_source_port(world: &World) {
    let port = world.port();
    let client = world.standin(&format!("--tag browser --client-from {port}")).start();
    assert!(!world.netns.bindable(HERE, port));
    let finished = evict(world, port).matching("gateway").run().expect(0);
    assert!(world.netns.bindable(HERE, port), "{finished}");
    assert_eq!(finished.evicted(), ["ESTABLISHED"], "{finished}");
    assert!(client.all_alive() && !client.termed(), "{finished}");
}

fn in_flight(world: &World) {
    let port = world.port();
    let sender = world.standin("--inflight").listen(HERE, port).start();
    let free = evict(world, port).matching("standin").by(Caller::init_emptied());
    let finished = free.run().expect(0);
    assert!(world.netns.bindable(HERE, port), "{finished}");
    assert_eq!(finished.evicted(), ["LISTEN"], "{finished}");
    assert!(took_ms(&finished) >= 1_000, "it had time to go by itself\n{finished}");
    assert!(sender.all_alive() && !sender.termed(), "{finished}");
}

/// It would stay bound, so nothing would be won.
fn in_flight_against_strict_bind(world: &World) {
    let port = world.port();
    let _sender = world.standin("--inflight").listen(HERE, port).start();
    let free = evict(world, port).matching("standin").arg("--strict-bind").timeout("2500ms");
    let finished = free.by(Caller::init_emptied()).run().expect(1);
    assert!(finished.evicted().is_empty(), "{finished}");
}

fn foreign_listener(world: &World) {
    let port = time_wait(world, "");
    let other = world.standin("").listen(HERE, port).start();
    let finished = evict(world, port).matching("gateway").arg("--strict-bind").run().expect(4);
    assert!(finished.evicted().is_empty(), "{finished}");
    assert!(other.all_alive() && !other.termed(), "{finished}");
}

fn nothing_without_the_flag(world: &World) {
    let port = time_wait(world, "");
    let free = world.free(port).address(HERE).matching("standin").arg("--strict-bind").timeout("1500ms");
    let finished = free.run().expect(1);
    assert!(finished.evicted().is_empty(), "{finished}");
}

fn dry_run(world: &World) {
    let port = time_wait(world, "");
    let free = evict(world, port).matching("standin").arg("--strict-bind").arg("--dry-run");
    let finished = free.run().expect(0);
    assert_eq!(finished.of("snapshot").last().expect("a snapshot").decision(), "evict", "{finished}");
    assert!(finished.evicted().is_empty(), "{finished}");
    assert!(!world.netns.strictly_bindable(HERE, port), "{finished}");
}

/// Asked for first: nobody is ended in vain.
fn not_permitted(world: &World) {
    let port = world.port();
    let old = world.standin("").listen(HERE, port).start();
    let free = evict(world, port).matching("standin").by(Caller::root_without(CAP_NET_ADMIN));
    let finished = free.run().expect(6);
    assert!(finished.stderr.contains("CAP_NET_ADMIN"), "{finished}");
    assert!(old.all_alive() && !old.termed(), "{finished}");
}
