//! What a hostile or poor machine does: buffers that overrun, a `/proc` that hides, kernel
//! interfaces that are refused. No wrong verdict, no gate that opens early, and every loss shown.

use std::net::SocketAddr;
use std::time::Duration;

use guard_tests::caller::{CAP_BPF, CAP_SYS_ADMIN, Caller, Forbidden, NOBODY};
use guard_tests::spin::{Spinner, Success};
use guard_tests::{DEADLINE, Finished, Portguard, Run, Standin, Tier, Verdict, World, each_tier, wait_until};
use nix::sys::signal::Signal;

each_tier!(
    churn_overruns_the_buffer,
    churn_beside_a_free_address,
    larger_buffer,
    wrong_buffers,
    empty_proc,
    a_gate_needs_no_proc,
    netlink_forbidden
);

const HERE: &str = "127.0.0.1";

/// The smallest buffer that can be asked for: one page of events in the ebpf tier.
const ONE_PAGE: &str = "--event-buffer=4K";

fn spin(port: u16) -> Spinner {
    let spinner = Spinner::start(SocketAddr::new(HERE.parse().expect("an address"), port), None);
    assert!(wait_until(DEADLINE, || spinner.spins()), "the port is taken");
    spinner
}

/// No bind() that began after the gate had opened may have failed.
fn not_early(finished: &Finished, spinner: Spinner) {
    let Success { at_ns, blind_ns } = spinner.first_success().expect("the port became bindable");
    let last_failure = at_ns - blind_ns;
    let opened = finished.of("gate_opened").pop().unwrap_or_else(|| panic!("it never opened\n{finished}"));
    assert!(last_failure <= opened.mono_ns(), "bind() still failed at {last_failure}\n{finished}");
}

/// A gate for a service that binds strictly: every connection's end is an event.
fn strict_gate(world: &World, port: u16, buffer: &str) -> Run {
    let gate = world.portguard("gate", port).address(HERE).arg("--strict-bind").arg(buffer).timeout("60s");
    let run = gate.within(Duration::from_secs(70)).start();
    run.waits();
    run
}

/// Waits until `number` more connections were made and reset.
fn churned(standin: &Standin, number: u64) {
    let so_far = || {
        let lines = standin.child.stdout.so_far();
        let counts = lines.iter().filter_map(|line| guard_tests::standin::said(line, "churned"));
        counts.filter_map(|line| line["connections"].as_u64()).max().unwrap_or(0)
    };
    let goal = so_far() + number;
    standin.line("churned", |line| line["connections"].as_u64() >= Some(goal));
}

/// The reader is stopped while tens of thousands of events go by: what fits in one page is
/// nothing. It is told what it missed, and the gate still opens when the port is free and not before.
fn churn_overruns_the_buffer(world: &World) {
    let port = world.port();
    let mut busy = world.standin("--churn 2").listen(HERE, port).start();
    let run = strict_gate(world, port, ONE_PAGE);
    run.child.signal(Signal::SIGSTOP);
    churned(&busy, 10_000);
    run.child.signal(Signal::SIGCONT);
    if world.tier != Tier::Poll {
        run.event("a loss", |event| event.kind() == "events_lost" && event.count() > 0);
    }
    churned(&busy, 1_000);
    let spinner = spin(port);
    busy.child.signal(Signal::SIGKILL);
    busy.child.wait(DEADLINE);
    let finished = run.finish().expect(0);
    not_early(&finished, spinner);
    assert_eq!(finished.stderr.contains("kernel events were lost"), world.tier != Tier::Poll, "{finished}");
    assert!(finished.of("events_lost").len() < 10_000, "a flood of losses is no flood of lines\n{finished}");
}

/// Another address of the same port stays busy for ever: losses never end, and must not keep the
/// gate of the address that is free from opening.
fn churn_beside_a_free_address(world: &World) {
    let port = world.port();
    let busy = world.standin("--churn 2").listen("127.0.0.2", port).start();
    let old = world.standin("").listen(HERE, port).start();
    let run = strict_gate(world, port, ONE_PAGE);
    churned(&busy, 2_000);
    let spinner = spin(port);
    drop(old);
    let finished = run.finish().expect(0);
    not_early(&finished, spinner);
    assert!(busy.all_alive() && !busy.termed(), "{finished}");
}

/// What the option is for.
fn larger_buffer(world: &World) {
    let port = world.port();
    let busy = world.standin("--churn 1").listen(HERE, port).start();
    let run = strict_gate(world, port, "--event-buffer=16M");
    run.child.signal(Signal::SIGSTOP);
    churned(&busy, 2_000);
    run.child.signal(Signal::SIGCONT);
    drop(busy);
    let finished = run.finish().expect(0);
    assert!(finished.of("events_lost").is_empty(), "{finished}");
}

fn wrong_buffers(world: &World) {
    for wrong in ["1K", "4G", "many", ""] {
        let gate = world.portguard("gate", world.port()).arg(&format!("--event-buffer={wrong}"));
        gate.run().expect(2);
    }
}

/// Without `/proc` nobody knows who is who, not even portguard itself: nothing is claimed and
/// nobody is signalled.
fn empty_proc(world: &World) {
    let port = world.port();
    let old = world.standin("").listen(HERE, port).start();
    for command in ["status", "free"] {
        let mut portguard = world.portguard(command, port).address(HERE);
        if command == "free" {
            portguard = portguard.timeout("1s").matching("standin");
        }
        let finished = portguard.by(Caller::default().hiding(&["/proc"])).run().expect(3);
        assert!(finished.stderr.contains("/proc"), "{finished}");
        assert!(finished.events.is_empty(), "{finished}");
    }
    assert!(old.all_alive() && !old.termed());
}

/// It judges nobody, and a bind probe is all the proof there is.
fn a_gate_needs_no_proc(world: &World) {
    if world.tier == Tier::Ebpf {
        // Which network namespace its programs are to watch is told by /proc alone.
        return;
    }
    let port = world.port();
    let old = world.standin("").listen(HERE, port).start();
    let gate = world.portguard("gate", port).address(HERE).by(Caller::default().hiding(&["/proc"]));
    let busy = gate.clone().timeout("500ms").run().expect(1);
    assert!(old.all_alive() && !old.termed(), "{busy}");
    let spinner = spin(port);
    let run = gate.timeout("15s").start();
    run.event("it waits", |event| event.kind() == "run_step");
    old.child.signal(Signal::SIGTERM);
    let finished = run.finish().expect(0);
    not_early(&finished, spinner);
}

/// An ordinary user has no BPF, and with hidepid sees its own processes only.
fn hidepid(world: &World) {
    let port = world.port();
    let old = world.standin("").listen(HERE, port).start();
    let user = Caller::user(NOBODY).hidepid();
    let status = world.portguard("status", port).address(HERE).by(user.clone()).run().expect(3);
    assert_eq!(status.verdict(), Verdict::Unknown, "{status}");
    let holders = status.of("snapshot")[0].holders();
    assert!(holders.iter().all(|holder| !holder.kernel_held()), "not seen is not not there\n{status}");
    let free = world.free(port).address(HERE).matching("standin").timeout("1s").by(user.clone());
    let finished = free.run().expect(3);
    assert!(finished.signals().is_empty() && old.all_alive() && !old.termed(), "{finished}");
    let gate = world.portguard("gate", port).address(HERE).timeout("20s").by(user).start();
    gate.waits();
    let spinner = spin(port);
    drop(old);
    not_early(&gate.finish().expect(0), spinner);
}

#[test]
fn hidepid_netlink() {
    guard_tests::world::play("faults::hidepid", Tier::Netlink, hidepid);
}

#[test]
fn hidepid_poll() {
    guard_tests::world::play("faults::hidepid", Tier::Poll, hidepid);
}

/// Where netlink is forbidden the table comes from `/proc/net/tcp`, and nothing announces anything.
fn netlink_forbidden(world: &World) {
    let caller = Caller::default().forbidding(Forbidden::Netlink);
    let port = world.port();
    if world.tier == Tier::Netlink {
        let refused = world.portguard("gate", port).by(caller).run().expect(6);
        assert!(refused.stderr.contains("netlink tier is not available"), "{refused}");
        return;
    }
    let old = world.standin("").listen(HERE, port).start();
    let status =
        world.portguard("status", port).address(HERE).matching("standin").by(caller.clone()).run().expect(1);
    assert!(status.classed(old.id(), "stale"), "{status}");
    let gate = world.portguard("gate", port).address(HERE).timeout("20s").by(caller.clone()).start();
    gate.waits();
    let spinner = spin(port);
    drop(old);
    not_early(&gate.finish().expect(0), spinner);
    // What /proc/net/tcp does not show may still be in the way.
    let port = world.port();
    let bound = world.standin("--bind-only --strict").listen(HERE, port).start();
    let status = world.portguard("status", port).address(HERE).by(caller).run().expect(1);
    assert_eq!(status.verdict(), Verdict::Busy, "{status}");
    assert!(bound.all_alive(), "{status}");
}

fn ebpf_only(name: &str, scenario: fn(&World)) {
    guard_tests::world::play(&format!("faults::{name}"), Tier::Ebpf, scenario);
}

fn automatic(port: u16) -> Portguard {
    let port = port.to_string();
    Portguard::bare(&["gate", "--json", "--address", HERE, "--port", &port]).timeout("20s")
}

/// Opens the gate of a port that is given back, in `tier`.
fn opens_in(world: &World, gate: impl Fn(u16) -> Portguard, tier: &str) {
    let port = world.port();
    let old = world.standin("").listen(HERE, port).start();
    let run = gate(port).start();
    run.waits();
    let spinner = spin(port);
    drop(old);
    let finished = run.finish().expect(0);
    assert_eq!(finished.of("gate_opened")[0].tier(), Some(tier), "{finished}");
    not_early(&finished, spinner);
}

/// Classic tracepoints stand in.
#[test]
fn btf_missing() {
    ebpf_only("btf_missing", |world| {
        let caller = Caller::default().hiding(&["/sys/kernel/btf"]);
        opens_in(world, |port| automatic(port).arg("--tier=ebpf").by(caller.clone()), "ebpf");
    });
}

/// Neither the kernel's types nor tracefs, nor the right to mount that: the netlink tier.
#[test]
fn btf_and_tracefs_missing() {
    ebpf_only("btf_and_tracefs_missing", |world| {
        let caller = Caller::root_without(CAP_SYS_ADMIN).hiding(&[
            "/sys/kernel/btf",
            "/sys/kernel/tracing",
            "/sys/kernel/debug",
        ]);
        opens_in(world, |port| automatic(port).by(caller.clone()), "netlink");
        let refused = automatic(world.port()).arg("--require-tier=ebpf").by(caller).run();
        assert!(matches!(refused.code, Some(3 | 6)), "{refused}");
        assert!(refused.stderr.contains("tracefs"), "{refused}");
    });
}

#[test]
fn cap_bpf_missing() {
    ebpf_only("cap_bpf_missing", |world| {
        no_bpf(world, &Caller::default().without(&[CAP_BPF, CAP_SYS_ADMIN]), "CAP_BPF");
    });
}

#[test]
fn bpf_forbidden() {
    ebpf_only("bpf_forbidden", |world| no_bpf(world, &Caller::default().forbidding(Forbidden::Bpf), "BPF"));
}

fn no_bpf(world: &World, caller: &Caller, word: &str) {
    opens_in(world, |port| automatic(port).by(caller.clone()), "netlink");
    for tier in ["--tier=ebpf", "--require-tier=ebpf"] {
        let refused = automatic(world.port()).arg(tier).by(caller.clone()).run().expect(6);
        assert!(refused.stderr.contains(word), "{refused}");
        assert!(refused.events.is_empty(), "{refused}");
    }
}
