//! What the demo prints.

use std::io::Write;
use std::time::Duration;

use guard_core::gate::Gate;
use guard_core::model::{Instant, Signal};
use guard_core::timeline::Entry;

use super::{StandIn, opened};
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
pub(super) fn fixed_sleeps(gate: &Gate, drain: Duration, started: Instant) {
    let began = gate.timeline().began();
    let (Some(bindable), Some(killed)) = (opened(gate.outcome()), last_kill(gate)) else { return };
    let bindable_after = bindable.since(began);
    let release = bindable.since(killed);

    say!("\nThe same gateway under a restart with fixed sleeps, computed from the moments above:");
    say!("  SIGTERM, sleep 1 s, start              EADDRINUSE, and again at every retry: it ignores SIGTERM");
    say!("  SIGKILL to the listener's pid, start   EADDRINUSE: its child keeps the socket open for ever");
    say!(
        "  SIGKILL to both, start at once         EADDRINUSE: the kernel gave the port back {} later",
        micros(release)
    );
    for (term, kill) in [(600, 400), (2_000, 1_000)] {
        let total = Duration::from_millis(term + kill);
        let guarded = bindable_after.saturating_sub(drain) + Duration::from_millis(term);
        if let Some(wasted) = total.checked_sub(guarded) {
            say!(
                "  SIGTERM, sleep {term} ms, SIGKILL to both, sleep {kill} ms, start: works, {} after the port was free",
                micros(wasted)
            );
        }
    }
    say!(
        "  portguard                              started it {} after the port was free",
        micros(started.since(bindable))
    );
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

fn last_kill(gate: &Gate) -> Option<Instant> {
    gate.timeline().entries().iter().rev().find_map(|(at, entry)| match entry {
        Entry::Signalled { signal: Signal::Kill, .. } => Some(*at),
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
