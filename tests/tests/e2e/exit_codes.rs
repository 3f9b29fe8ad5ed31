//! One test per row of the exit code table.

use guard_tests::caller::{Caller, NOBODY};
use guard_tests::{Portguard, World, each_tier};

each_tier!(
    zero_free,
    one_still_busy,
    two_usage,
    three_unknown,
    four_refused,
    five_duel,
    six_not_permitted,
    seven_command_failed,
    seven_command_missing,
);

fn zero_free(world: &World) {
    world.portguard("gate", world.port()).timeout("5s").run().expect(0);
}

fn one_still_busy(world: &World) {
    let port = world.port();
    let _other = world.standin("").listen("127.0.0.1", port).start();
    world.portguard("gate", port).timeout("200ms").run().expect(1);
}

fn two_usage(world: &World) {
    let tier = world.tier;
    for wrong in [
        Portguard::new("free", tier),
        Portguard::new("free", tier).arg("--port").arg("0"),
        Portguard::new("free", tier).arg("--port").arg("65536"),
        Portguard::new("free", tier).arg("--port").arg("http"),
        world.free(world.port()).matching("("),
        // What an unset variable leaves behind must not recognise everybody.
        world.free(world.port()).matching(""),
        world.free(world.port()).matching(".*"),
        world.free(world.port()).arg("--exe="),
        world.free(world.port()).arg("--comm="),
        world.portguard("free", world.port()).timeout("soon"),
        world.portguard("free", world.port()).address("localhost:1"),
        Portguard::bare(&["no-such-command"]),
        world.portguard("gate", world.port()).arg("--no-such-flag"),
    ] {
        let finished = wrong.run().expect(2);
        assert!(!finished.stderr.is_empty(), "it says what is wrong\n{finished}");
    }
}

fn three_unknown(world: &World) {
    let port = world.port();
    let _other = world.standin("").listen("127.0.0.1", port).start();
    // An ordinary user has no BPF: whatever the world's tier, this one is asked.
    Portguard::new("free", guard_tests::Tier::Poll)
        .arg("--port")
        .arg(&port.to_string())
        .matching("standin")
        .timeout("500ms")
        .by(Caller::user(NOBODY))
        .run()
        .expect(3);
}

fn four_refused(world: &World) {
    let port = world.port();
    let _other = world.standin("").listen("127.0.0.1", port).start();
    world.free(port).matching("no-such-service").run().expect(4);
}

/// One newcomer after the other takes the port while the old holder drains.
fn five_duel(world: &World) {
    let port = world.port();
    let old = world.standin("--reuseport --on-term hang").listen("127.0.0.1", port).start();
    let run = world.free(port).matching("standin").drain("12s").start();
    run.sent("SIGTERM", old.id());
    let mut rivals = Vec::new();
    for _ in 0..3 {
        // The one before is gone when the next one comes: members of one group would be one round.
        let rival = world.standin("--reuseport").listen("127.0.0.1", port).start();
        rivals.push(rival.id());
        // One that is seen in the middle of its listen() is not known to be in the way, and no round yet.
        run.event("a look at it", |event| event.kind() == "snapshot" && event.shows_listening(rival.id()));
        assert!(!rival.termed());
    }
    let finished = run.finish().expect(5);
    for rival in rivals {
        assert!(finished.signals_to(rival).is_empty(), "{finished}");
        assert!(finished.classed(rival, "newcomer"), "{finished}");
    }
    assert!(old.all_alive(), "{finished}");
}

fn six_not_permitted(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).by(Caller::user(NOBODY)).start();
    world
        .free(port)
        .matching("standin")
        .timeout("2s")
        .by(Caller::root_without(guard_tests::caller::CAP_KILL))
        .run()
        .expect(6);
    assert!(old.all_alive());
}

fn seven_command_failed(world: &World) {
    world
        .portguard("restart", world.port())
        .matching("standin")
        .then(&["sh", "-c", "exit 3"])
        .run()
        .expect(7);
}

fn seven_command_missing(world: &World) {
    let finished = world
        .portguard("restart", world.port())
        .matching("standin")
        .then(&["/no/such/program"])
        .run()
        .expect(7);
    assert!(finished.mentions("/no/such/program"), "{finished}");
}
