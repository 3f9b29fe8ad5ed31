//! Guarded restarts, again and again, of a listener that behaves differently each time.

use std::time::Duration;

use guard_tests::kernel::policy;
use guard_tests::standin::said;
use guard_tests::{DEADLINE, Proc, Run, World, each_tier, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

each_tier!(
    three_hundred,
    keeps_its_pid,
    output_untouched,
    dry_restart_starts_nothing,
    asked_to_stop,
    holds_nothing_while_it_supervises,
    urgent_only_while_it_waits
);

/// How a generation of the listener ends: politely, not at all, in a moment, with children.
const MOODS: [&str; 7] = [
    "--on-term exit",
    "--on-term hang",
    "--on-term delay=15ms",
    "--on-term exit --fork-sharer 2 --sharer-on-term hang",
    "--fork-sharer 1 --sharer-on-term exit --orphan",
    "--on-term close-then=10ms",
    "--exit-when-ready",
];

/// `PORTGUARD_ROUNDS`, for machines on which three hundred take too long.
fn rounds() -> usize {
    std::env::var("PORTGUARD_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(300)
}

/// The new process binds at its first attempt, every time.
fn three_hundred(world: &World) {
    let port = world.port();
    let mut previous: Option<Run> = None;
    for round in 0..rounds() {
        // A fixed order that every mood meets every other in.
        let mood = MOODS[(round * 3 + round / MOODS.len()) % MOODS.len()];
        let standin = world.standin(mood).listen("127.0.0.1", port);
        let restart = world
            .portguard("restart", port)
            .address("127.0.0.1")
            .matching("standin")
            .drain("40ms")
            .timeout("15s")
            .then_start(&standin);
        // Every other wrapper replaces itself by the command.
        let restart = if round % 2 == 0 { restart.arg("--exec") } else { restart };
        let run = restart.start();
        let ready = started(&run);
        assert_eq!(ready["bind_attempts"], 1, "round {round}\n{}", run.child.said());
        // Its predecessor is over: the wrapper ends with the command that it ran.
        if let Some(mut before) = previous.replace(run) {
            before.child.wait(DEADLINE);
        }
    }
}

/// The ready line of the command that a restart ran.
fn started(run: &Run) -> Value {
    run.child
        .stdout
        .wait_for(DEADLINE, |line| said(line, "bind_failed").or_else(|| said(line, "ready")))
        .filter(|line| line["standin"] == "ready")
        .unwrap_or_else(|| panic!("the new process did not bind at its first attempt\n{}", run.child.said()))
}

fn keeps_its_pid(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let run = world
        .portguard("restart", port)
        .matching("standin")
        .drain("100ms")
        .timeout("10s")
        .arg("--exec")
        .then_start(&world.standin("--tag new").listen("127.0.0.1", port))
        .start();
    let ready = started(&run);
    assert_eq!(ready["pid"], run.child.id.pid, "{}", run.child.said());
    assert!(old.all_gone());
    assert_eq!(
        guard_tests::kernel::bpf_ids(run.child.id.pid).len(),
        0,
        "the new process inherited BPF objects"
    );
    let (mine, mut held) = (descriptors("self"), descriptors(&run.child.id.pid.to_string()));
    // Whatever started the tests may have left descriptors open for everybody.
    held.retain(|link| !mine.contains(link) || link.starts_with("socket:"));
    // Three standard streams, the listener, the signalfd.
    assert!(held.len() <= 5, "the new process inherited descriptors: {held:?}");
}

fn descriptors(process: &str) -> Vec<String> {
    std::fs::read_dir(format!("/proc/{process}/fd"))
        .expect("a process's descriptors")
        .filter_map(|descriptor| {
            Some(std::fs::read_link(descriptor.ok()?.path()).ok()?.to_string_lossy().into_owned())
        })
        .collect()
}

/// Also the way of a failed command's own words.
fn output_untouched(world: &World) {
    let finished = world
        .portguard("restart", world.port())
        .matching("standin")
        .then(&["sh", "-c", "printf 'one two\\n'; printf 'three\\n' >&2"])
        .run()
        .expect(0);
    assert!(finished.others.iter().any(|line| line == "one two"), "{finished}");
    assert!(finished.stderr.lines().any(|line| line == "three"), "{finished}");
}

fn dry_restart_starts_nothing(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let witness = folder.path().join("started");
    let finished = world
        .portguard("restart", port)
        .matching("standin")
        .arg("--dry-run")
        .then(&["touch", witness.to_str().expect("a path in UTF-8")])
        .run()
        .expect(0);
    assert_eq!(finished.of("snapshot").last().expect("a snapshot").decision(), "end", "{finished}");
    assert!(old.all_alive() && !old.termed(), "{finished}");
    assert!(!wait_until(Duration::from_millis(200), || witness.exists()), "the command ran\n{finished}");
}

/// SIGHUP left the command behind as an orphan on the port, and a clean stop looked like a failure.
fn asked_to_stop(world: &World) {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let port = world.port();
        let standin = world.standin("--on-term exit").listen("127.0.0.1", port);
        let run = world.portguard("restart", port).timeout("10s").then_start(&standin).start();
        let ready = started(&run);
        run.child.signal(signal);
        let finished = run.finish().expect(0);
        let pid = ready["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
        assert!(!Proc::of(pid).is_some_and(|command| command.alive()), "{signal}: it lives on\n{finished}");
    }
}

/// It supervised for weeks with its programs attached and nobody reading their events.
fn holds_nothing_while_it_supervises(world: &World) {
    let port = world.port();
    let standin = world.standin("--on-term exit").listen("127.0.0.1", port);
    let run = world.portguard("restart", port).timeout("10s").then_start(&standin).start();
    started(&run);
    run.event("that it listens", |event| event.is_step("listening"));
    let pid = run.child.id.pid;
    let detached = wait_until(DEADLINE, || guard_tests::kernel::bpf_ids(pid).is_empty());
    assert!(detached, "still attached\n{}", run.child.said());
    run.child.signal(Signal::SIGTERM);
    run.finish().expect(0);
}

/// A thread that waits for the port goes before ordinary ones; what it starts must not.
fn urgent_only_while_it_waits(world: &World) {
    for exec in [false, true] {
        let port = world.port();
        let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
        let standin = world.standin("--on-term exit --tag new").listen("127.0.0.1", port);
        let restart = world
            .portguard("restart", port)
            .matching("standin")
            .drain("1s")
            .timeout("10s")
            .then_start(&standin);
        let run = if exec { restart.arg("--exec") } else { restart }.start();
        run.sent("SIGTERM", old.id());
        assert_eq!(policy(run.child.id.pid), nix::libc::SCHED_FIFO, "{}", run.child.said());
        let ready = started(&run);
        let pid = ready["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
        assert_eq!(policy(pid), nix::libc::SCHED_OTHER, "the command, exec {exec}\n{}", run.child.said());
        assert_eq!(policy(run.child.id.pid), nix::libc::SCHED_OTHER, "afterwards\n{}", run.child.said());
        run.child.signal(Signal::SIGTERM);
        run.finish().expect(0);
    }
}
