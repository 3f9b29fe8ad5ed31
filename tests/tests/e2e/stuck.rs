//! Owners that cannot act on a signal, or end by another hand.

use std::time::Duration;

use guard_tests::{Caller, Cgroup, DEADLINE, Finished, Proc, Tier, World, each_tier, wait_until};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

each_tier!(traced, in_vfork, frozen, out_of_memory_while_it_drains);

/// The letter of its state in `/proc/PID/stat`.
fn state(process: Proc) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

fn step<'a>(finished: &'a Finished, name: &str) -> &'a str {
    let found = finished.events.iter().find(|event| event.is_step(name));
    found.unwrap_or_else(|| panic!("no step {name}\n{finished}")).detail()
}

/// A debugger holds it: SIGTERM waits, SIGKILL does not.
fn traced(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let pid = Pid::from_raw(old.id().pid);
    // SAFETY: no pointer is passed.
    let attached = unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid.as_raw(), 0, 0) };
    assert_eq!(attached, 0, "{}", std::io::Error::last_os_error());
    waitpid(pid, Some(WaitPidFlag::__WALL)).expect("it stops");
    assert_eq!(state(old.id()), Some('t'));
    let finished = world.free(port).address("127.0.0.1").matching("standin").drain("300ms").run().expect(0);
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM", "SIGKILL"], "{finished}");
    assert!(step(&finished, "held").contains("stopped by a tracer"), "{finished}");
    assert!(!old.termed(), "{finished}");
}

/// D state that a fatal signal ends: the caller of vfork() waits for its child.
fn in_vfork(world: &World) {
    let port = world.port();
    let old = world.standin("--vfork").listen("127.0.0.1", port).start();
    assert!(wait_until(DEADLINE, || state(old.id()) == Some('D')));
    // x86 kernels before 5.16 do not tell where a task waits, and none does while it is on its way there.
    let wchan = format!("/proc/{}/wchan", old.id().pid);
    let tells =
        wait_until(Duration::from_secs(1), || std::fs::read_to_string(&wchan).is_ok_and(|told| told != "0"));
    let finished = world.free(port).address("127.0.0.1").matching("standin").drain("300ms").run().expect(0);
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM", "SIGKILL"], "{finished}");
    let place = if tells { "is uninterruptible in " } else { "is uninterruptible: " };
    assert!(step(&finished, "held").starts_with(place), "{place}\n{finished}");
}

/// D state that no signal ends: a frozen cgroup v1 holds even SIGKILL back until it is thawed.
fn frozen(world: &World) {
    if world.tier != Tier::Netlink {
        // The time that portguard waits after SIGKILL is long, and no matter of the tier.
        return;
    }
    let freezer = match Cgroup::of_controller("freezer", "frozen") {
        Ok(freezer) => freezer,
        Err(why) => return world.skip(&why),
    };
    let port = world.port();
    let mut old = world.standin("").by(Caller::within(&freezer)).listen("127.0.0.1", port).start();
    freezer.set("freezer.state", "FROZEN");
    assert!(wait_until(DEADLINE, || freezer.get("freezer.state").trim() == "FROZEN"));
    assert_eq!(state(old.id()), Some('D'));
    let free = world.free(port).address("127.0.0.1").matching("standin").drain("300ms");
    let finished = free.timeout("7s").run().expect(1);
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM", "SIGKILL"], "{finished}");
    let place = step(&finished, "unkillable");
    assert!(place.contains("refrigerator") || place.contains("freez"), "{place}\n{finished}");
    assert!(old.all_alive(), "{finished}");
    freezer.set("freezer.state", "THAWED");
    old.child.wait(DEADLINE);
    assert_eq!(old.child.killed_by(), Some(Signal::SIGKILL));
}

/// Closing down takes memory too, and its cgroup has none left.
fn out_of_memory_while_it_drains(world: &World) {
    let limited = match Cgroup::of_controller("memory", "limited") {
        Ok(limited) => limited,
        Err(why) => return world.skip(&why),
    };
    limited.set("memory.limit_in_bytes", "64M");
    let port = world.port();
    let arguments = "--on-term grow=512";
    let mut old = world.standin(arguments).by(Caller::within(&limited)).listen("127.0.0.1", port).start();
    // What has nothing to do with memory is not blamed on it.
    let other_port = world.port();
    let other = world.standin("--on-term hang").by(Caller::within(&limited)).listen("127.0.0.1", other_port);
    let other = other.start();
    let finished = world.free(port).address("127.0.0.1").matching("grow").drain("10s").run().expect(0);
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM"], "{finished}");
    old.child.wait(DEADLINE);
    assert_eq!(old.child.killed_by(), Some(Signal::SIGKILL), "by the kernel");
    let exits = finished.of("owner_exited");
    let exit = exits.iter().find(|event| event.process() == old.id()).expect("its end is told");
    assert_eq!((&exit.0["out_of_memory"], &exit.0["signal"]), (&true.into(), &9.into()), "{finished}");
    let killed = world.free(other_port).address("127.0.0.1").matching("hang").drain("200ms").run().expect(0);
    let exits = killed.of("owner_exited");
    assert!(exits.iter().all(|event| event.0["out_of_memory"] == false), "{killed}");
    drop(other);
}
