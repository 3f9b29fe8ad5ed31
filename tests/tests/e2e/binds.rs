//! What `status` says of each kind of bind, held against `bind()` itself.

use guard_tests::caller::{Caller, NOBODY};
use guard_tests::{Event, Finished, Portguard, Tier, World, each_tier};

each_tier!(
    listener_flags_are_learned,
    bound_only_flags_are_learned,
    connections_are_not_guessed_at,
    free_port_has_no_blockers,
    time_wait_says_until_when,
    kinds_agree_with_the_kernel,
    hidden_flags_stay_unknown,
);

const HERE: &str = "127.0.0.1";

fn status(world: &World, port: u16) -> Finished {
    world.portguard("status", port).address(HERE).run()
}

fn last(finished: &Finished) -> &Event {
    finished.of("snapshot").pop().unwrap_or_else(|| panic!("no snapshot\n{finished}"))
}

/// What the one holder in this state shows: `SO_REUSEADDR` and `SO_REUSEPORT`.
fn flags(finished: &Finished, state: &str) -> (Option<bool>, Option<bool>) {
    let holders = last(finished).holders();
    let holder = holders.iter().find(|holder| holder.state() == state);
    let holder = holder.unwrap_or_else(|| panic!("no {state}\n{finished}"));
    (holder.reuse_address(), holder.reuse_port())
}

fn listener_flags_are_learned(world: &World) {
    for (arguments, expected) in [
        ("", (Some(true), Some(false))),
        ("--strict", (Some(false), Some(false))),
        ("--reuseport", (Some(true), Some(true))),
        ("--strict --reuseport", (Some(false), Some(true))),
    ] {
        let port = world.port();
        let holder = world.standin(arguments).listen(HERE, port).start();
        let finished = status(world, port).expect(1);
        assert_eq!(flags(&finished, "LISTEN"), expected, "{finished}");
        // Asking leaves nothing behind that keeps the port.
        drop(holder);
        assert!(guard_tests::wait_until(guard_tests::DEADLINE, || world.netns.bindable(HERE, port)));
    }
}

fn bound_only_flags_are_learned(world: &World) {
    let port = world.port();
    let _holder = world.standin("--bind-only --strict").listen(HERE, port).start();
    let finished = status(world, port).expect(1);
    assert_eq!(flags(&finished, "BOUND_INACTIVE"), (Some(false), Some(false)), "{finished}");
    let port = world.port();
    let _holder = world.standin("--bind-only").listen(HERE, port).start();
    let finished = status(world, port).expect(0);
    let [reusing, strict] = last(&finished).binds();
    assert_eq!((reusing.expected.as_str(), strict.expected.as_str()), ("success", "failure"), "{finished}");
    assert_eq!(strict.blockers, [("BOUND_INACTIVE".to_owned(), 1)].into(), "{finished}");
}

/// The listener's flag of now is not that of the listener a connection came from.
fn connections_are_not_guessed_at(world: &World) {
    let port = world.port();
    let _holder = world.standin("--accept").listen(HERE, port).start();
    let _client = world.standin(&format!("--connect {HERE}:{port}")).start();
    let finished = status(world, port).expect(1);
    assert_eq!(flags(&finished, "ESTABLISHED"), (None, None), "{finished}");
}

fn free_port_has_no_blockers(world: &World) {
    let port = world.port();
    let finished = status(world, port).expect(0);
    for bind in last(&finished).binds() {
        assert_eq!((bind.expected.as_str(), bind.blockers.len()), ("success", 0), "{finished}");
        assert_eq!(bind.clears_in_ms, None, "{finished}");
    }
}

fn time_wait_says_until_when(world: &World) {
    let port = world.port();
    world
        .standin("--time-wait --exit-when-ready")
        .listen(HERE, port)
        .start()
        .child
        .wait(guard_tests::DEADLINE);
    let finished = status(world, port).expect(0);
    let [reusing, strict] = last(&finished).binds();
    assert_eq!(reusing.expected, "success", "{finished}");
    assert_eq!(strict.expected, "failure", "{finished}");
    assert_eq!(strict.blockers, [("TIME_WAIT".to_owned(), 1)].into(), "{finished}");
    assert!(strict.clears_in_ms.is_some_and(|left| (30_000..=60_000).contains(&left)), "{finished}");
    let human = Portguard::bare(&["status", "--address", HERE, "--tier", world.tier.name(), "--port"])
        .arg(&port.to_string())
        .run()
        .expect(0);
    let line = "a bind without SO_REUSEADDR would fail: 1 TIME_WAIT, which expires in ";
    assert!(human.others.iter().any(|other| other.contains(line)), "{human}");
}

fn kinds_agree_with_the_kernel(world: &World) {
    for arguments in [
        "",
        "--strict",
        "--bind-only",
        "--bind-only --strict",
        "--time-wait --exit-when-ready",
        "--time-wait --exit-when-ready --strict",
    ] {
        let port = world.port();
        let mut holder = world.standin(arguments).listen(HERE, port).start();
        if arguments.contains("exit-when-ready") {
            holder.child.wait(guard_tests::DEADLINE);
        }
        for kind in [&[][..], &["--strict-bind"]] {
            let status = world.portguard("status", port).address(HERE);
            let finished = kind.iter().fold(status, |status, flag| status.arg(flag)).run();
            let truth = [world.netns.bindable(HERE, port), world.netns.strictly_bindable(HERE, port)];
            for (bind, bindable) in last(&finished).binds().into_iter().zip(truth) {
                let agrees = match bind.expected.as_str() {
                    "success" => bindable,
                    "failure" => !bindable,
                    // Only the flags of what nobody has a descriptor for may stay open.
                    _ => arguments.contains("time-wait") && kind.len() == 1,
                };
                assert!(agrees, "{arguments}: {bind:?}, but bindable: {bindable}\n{finished}");
            }
        }
    }
}

fn hidden_flags_stay_unknown(world: &World) {
    let port = world.port();
    let holder = world.standin("").listen(HERE, port).start();
    // An ordinary user has no BPF: whatever the world's tier, this one is asked.
    let finished = Portguard::new("status", Tier::Poll)
        .arg("--port")
        .arg(&port.to_string())
        .address(HERE)
        .by(Caller::user(NOBODY))
        .run()
        .expect(3);
    assert_eq!(flags(&finished, "LISTEN"), (None, None), "{finished}");
    assert!(holder.all_alive(), "{finished}");
}
