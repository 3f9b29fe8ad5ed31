//! Who lost to whom: failed binds on the guarded port, which only the ebpf tier sees.

use guard_tests::{Tier, World, each_tier};

each_tier!(a_server_that_loses_is_named_with_the_holder, another_portguard_is_no_stranger);

/// A second server is started while the first one has the port.
fn a_server_that_loses_is_named_with_the_holder(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let run = world.portguard("gate", port).address("127.0.0.1").timeout("30s").start();
    run.waits();
    let mut loser = world.standin("").listen("127.0.0.1", port).spawn();
    assert_eq!(loser.wait(guard_tests::DEADLINE).code(), Some(98), "{}", loser.said());
    if world.tier == Tier::Ebpf {
        let event = run.event("the lost bind", |event| event.kind() == "bind_failed");
        assert_eq!((event.pid(), event.comm()), (loser.id.pid, "standin"), "{event}");
        assert_eq!((event.port(), event.is_probe()), (port, false), "{event}");
        assert!(event.shows(old.id()), "the holder is not named: {event}");
    }
    drop(old);
    let finished = run.finish().expect(0);
    let told = finished.of("bind_failed").len();
    assert_eq!(told, usize::from(world.tier == Tier::Ebpf), "{finished}");
}

/// Its probes fail while it waits, and are told apart from a server's bind by their name.
fn another_portguard_is_no_stranger(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let run = world.portguard("gate", port).address("127.0.0.1").timeout("30s").start();
    run.waits();
    let other = guard_tests::Portguard::new("gate", Tier::Poll).arg("--port").arg(&port.to_string());
    let other = other.address("127.0.0.1").timeout("30s").start();
    other.waits();
    if world.tier == Tier::Ebpf {
        let event = run.event("a failed probe", |event| event.kind() == "bind_failed");
        assert!(event.is_probe(), "{event}");
        assert_eq!(event.pid(), other.child.id.pid, "{event}");
    }
    drop(old);
    other.finish().expect(0);
    let finished = run.finish().expect(0);
    assert!(finished.of("bind_failed").iter().all(|event| event.is_probe()), "{finished}");
}
