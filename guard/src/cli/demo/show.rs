//! What the demo prints.

use std::io::Write;
use std::time::Duration;

use guard_core::gate::{Gate, Hint};
use guard_core::model::{BindOutcome, Instant, Signal};
use guard_core::timeline::Entry;

use super::StandIn;
use crate::report::{self, Context};
use crate::runtime::Session;
use crate::runtime::Tier;

/// A line for the newcomer. One who went away must not stop the demo half way.
macro_rules! say {
    ($($text:tt)*) => {
        drop(writeln!(std::io::stdout(), $($text)*))
    };
}

pub(super) fn opening(old: &StandIn, session: &Session) {
    say!("A stubborn gateway listens on 127.0.0.1:{}:", old.port);
    say!("  pid {} ignores SIGTERM and holds open connections;", old.pid());
    if let Some(sharer) = old.sharer {
        say!("  pid {sharer} is its forked child and shares the listening socket.");
    }
    say!("portguard restarts it ({} tier).\n", session.tier().name());
}

pub(super) fn timeline(
    gate: &Gate,
    context: &Context,
    session: &Session,
    new: &StandIn,
    began: Instant,
    listening: Instant,
) {
    let extra = [
        (began, format!("start of the successor, pid {}", new.pid())),
        (listening, format!("successor listens on port {}, at its first attempt", new.port)),
    ];
    let zero = gate.timeline().began();
    let picture = report::timeline(gate.timeline(), context, session.tier(), zero, &extra);
    say!("{}", picture.trim_end());
}

/// What restarts with fixed sleeps would have met, computed from this run.
pub(super) fn fixed_sleeps(gate: &Gate, started: Instant) {
    let (Some(released), Some(termed), Some(killed)) =
        (released(gate), last_signal(gate, Signal::Term), last_signal(gate, Signal::Kill))
    else {
        return;
    };
    // From the guard's SIGKILL on, whenever another restart sends its own.
    let release = released.since(killed);

    say!("\nThe same gateway under a restart with fixed sleeps, computed from the moments above:");
    say!("  SIGTERM, sleep 1 s, start              EADDRINUSE, and again at every retry: it ignores SIGTERM");
    say!("  SIGKILL to the listener's pid, start   EADDRINUSE: its child keeps the socket open for ever");
    if released > killed {
        let later = micros(release);
        say!("  SIGKILL to both, start at once         EADDRINUSE: the port was free {later} later");
    }
    for (term, kill) in [(600, 400), (2_000, 1_000)] {
        if let Some(wasted) = Duration::from_millis(kill).checked_sub(release) {
            let wasted = micros(wasted);
            say!(
                "  SIGTERM, sleep {term} ms, SIGKILL to both, sleep {kill} ms, start: works, {wasted} after the port was free"
            );
        }
    }
    say!(
        "  portguard                              SIGKILL after {}, started {} after the port was free",
        micros(killed.since(termed)),
        micros(started.since(released))
    );
}

/// When the port was free: the kernel's own word, else the first bind probe
/// that succeeded.
fn released(gate: &Gate) -> Option<Instant> {
    let entries = gate.timeline().entries();
    let told = entries.iter().rev().find_map(|(at, entry)| match entry {
        Entry::Event(Hint::SocketReleased { .. }) => Some(*at),
        _ => None,
    });
    let proven = entries.iter().find_map(|(at, entry)| match entry {
        Entry::Probed { outcomes, .. } if outcomes.iter().all(|o| *o == BindOutcome::Bindable) => Some(*at),
        _ => None,
    });
    // A tier's hint may come later than the proof.
    [told, proven].into_iter().flatten().min()
}

pub(super) fn closing(gate: &Gate, session: &Session) {
    if session.tier() != Tier::Ebpf {
        let why = session.shortfall().unwrap_or("the BPF programs are not attached");
        say!("\nThis was the {} tier. For kernel events: {why}", session.tier().name());
    }
    if gate.plan().asker.uid.0 != 0 {
        say!("As root, portguard also sees and ends other users' processes, and gets the ebpf tier.");
    }
}

fn last_signal(gate: &Gate, wanted: Signal) -> Option<Instant> {
    gate.timeline().entries().iter().rev().find_map(|(at, entry)| match entry {
        Entry::Signalled { signal, .. } if *signal == wanted => Some(*at),
        _ => None,
    })
}

fn micros(span: Duration) -> String {
    if span < Duration::from_millis(10) {
        format!("{} µs", span.as_micros())
    } else {
        format!("{} ms", span.as_millis())
    }
}
