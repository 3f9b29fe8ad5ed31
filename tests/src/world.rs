//! One scenario in one tier: its namespace, its stand-ins, its portguard.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::netns::Netns;
use crate::portguard::Portguard;
use crate::skip::skip;
use crate::standin::Plan;
use crate::systemd::pid1;
use crate::tier::Tier;

/// What a scenario plays in.
#[derive(Debug)]
pub struct World {
    /// Its network namespace.
    pub netns: Netns,
    /// The tier that portguard is told to use.
    pub tier: Tier,
    /// The test's name, for messages.
    pub test: String,
}

/// Runs `scenario` on a thread of its own, inside a network namespace of its own.
///
/// # Panics
/// When the scenario does.
pub fn play(test: &str, tier: Tier, scenario: fn(&World)) {
    let test = format!("{}::{tier}", test.split_once("::").map_or(test, |(_, path)| path));
    if !tier.asked_for() {
        return skip(&test, "PORTGUARD_TEST_TIERS leaves this tier out");
    }
    if !nix::unistd::geteuid().is_root() {
        return skip(&test, "a private network namespace needs root");
    }
    if let Some(reason) = tier.missing() {
        return skip(&test, reason);
    }
    // A namespace belongs to a thread: the test runner's own threads stay where they are.
    let ended = std::thread::spawn(move || {
        // What PID 1 starts lives in its namespace.
        let netns = if pid1::is_ours() { Netns::shared() } else { Netns::enter() };
        let netns = netns.expect("a network namespace for the test");
        let world = World { netns, tier, test };
        // Caught here, so that the namespace is cleared before the panic travels on.
        let outcome = catch_unwind(AssertUnwindSafe(|| scenario(&world)));
        drop(world);
        outcome
    })
    .join();
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(panic)) | Err(panic) => resume_unwind(panic),
    }
}

impl World {
    /// A port nobody uses.
    pub fn port(&self) -> u16 {
        self.netns.free_port()
    }

    /// A stand-in to be started.
    pub fn standin(&self, arguments: &str) -> Plan {
        Plan::new(arguments.split_whitespace())
    }

    /// A portguard command to be run in this world's tier.
    pub fn portguard(&self, command: &str, port: u16) -> Portguard {
        Portguard::new(command, self.tier).arg("--port").arg(&port.to_string())
    }

    /// `portguard free`, with enough time.
    pub fn free(&self, port: u16) -> Portguard {
        self.portguard("free", port).timeout("15s")
    }

    /// Notes that this test cannot run here.
    pub fn skip(&self, reason: &str) {
        skip(&self.test, reason);
    }
}

/// Makes one test per tier of each scenario, a function over `&World`.
#[macro_export]
macro_rules! each_tier {
    ($($(#[$attribute:meta])* $scenario:ident),+ $(,)?) => { $(
        mod $scenario {
            #[test]
            $(#[$attribute])*
            fn ebpf() {
                $crate::world::play(module_path!(), $crate::Tier::Ebpf, super::$scenario);
            }

            #[test]
            $(#[$attribute])*
            fn netlink() {
                $crate::world::play(module_path!(), $crate::Tier::Netlink, super::$scenario);
            }

            #[test]
            $(#[$attribute])*
            fn poll() {
                $crate::world::play(module_path!(), $crate::Tier::Poll, super::$scenario);
            }
        }
    )+ };
}
