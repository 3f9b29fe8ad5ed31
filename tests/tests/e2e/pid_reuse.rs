//! Row 13 of the failure modes: a number that was given away again is somebody else.

use std::process::Command;

use guard_tests::child::output;
use guard_tests::standin::built;
use guard_tests::{World, each_tier};

each_tier!(the_recycled_pid_survives);

/// In a PID namespace of its own: only there can a number be chosen.
fn the_recycled_pid_survives(world: &World) {
    if !std::path::Path::new("/proc/sys/kernel/ns_last_pid").exists() {
        return world.skip("no /proc/sys/kernel/ns_last_pid (CONFIG_CHECKPOINT_RESTORE)");
    }
    let output = output(Command::new(built("pid_reuse")).arg(world.tier.name())).expect("run pid_reuse");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("survived"), "{said}");
}
