//! `--tier` and `--require-tier`: which tier a run is in, and refusals with the reason.

use guard_tests::caller::{Caller, NOBODY};
use guard_tests::{Portguard, Tier, World, each_tier};

each_tier!(required_and_there, required_and_not_asked_for, required_by_an_ordinary_user);

fn gate(world: &World, arguments: &[&str]) -> Portguard {
    let port = world.port().to_string();
    arguments.iter().fold(Portguard::bare(&["gate", "--json", "--port", &port]), |gate, word| gate.arg(word))
}

/// It waits for the tier before the run begins: even a free port is looked at in it.
fn required_and_there(world: &World) {
    if world.tier == Tier::Poll {
        // Every machine has it; there is nothing to require.
        gate(world, &["--require-tier", "poll"]).run().expect(2);
        return;
    }
    let finished = gate(world, &["--require-tier", world.tier.name()]).run().expect(0);
    // A better one will do.
    let began = finished.of("run_started")[0].tier();
    assert!([Some(world.tier.name()), Some("ebpf")].contains(&began), "{finished}");
}

/// A lower tier was picked, so the required one is not there.
fn required_and_not_asked_for(world: &World) {
    let lower = match world.tier {
        Tier::Ebpf => "netlink",
        Tier::Netlink => "poll",
        Tier::Poll => return,
    };
    let refused = gate(world, &["--tier", lower, "--require-tier", world.tier.name()]).run().expect(3);
    assert!(refused.events.is_empty(), "{refused}");
    for part in [world.tier.name(), lower, "was asked for"] {
        assert!(refused.stderr.contains(part), "{part}\n{refused}");
    }
}

fn required_by_an_ordinary_user(world: &World) {
    let gate = |tier: &str| gate(world, &["--require-tier", tier]).by(Caller::user(NOBODY));
    match world.tier {
        Tier::Ebpf => {
            let refused = gate("ebpf").run().expect(6);
            assert!(refused.stderr.contains("CAP_BPF"), "{refused}");
            assert!(refused.events.is_empty(), "{refused}");
        }
        Tier::Netlink => drop(gate("netlink").run().expect(0)),
        Tier::Poll => {}
    }
}
