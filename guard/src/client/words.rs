//! What an event says, in one line; in the words of the other commands.

use std::net::SocketAddr;
use std::time::Duration;

use super::events::{BindFailed, Endpoint, Event, Holder, Judged, Owner, Reason, Snapshot, Step, What};
use crate::report::{printable, shorten, span};

/// More of a process's argv tells nothing new.
const LONGEST_ARGV: usize = 80;

pub(super) fn micros(span_us: f64) -> String {
    // Anything that is no span would not have been written.
    span(Duration::try_from_secs_f64(span_us / 1e6).unwrap_or_default())
}

/// One line about `event`, without its moment and its service.
pub(super) fn sentence(event: &Event) -> String {
    let text = match &event.what {
        What::RunStarted { command } => format!("{command} begins"),
        What::Snapshot(snapshot) => snapshot_in_short(snapshot),
        What::RunStep(step) => step_in_words(step),
        What::ListenerOpened { address, port } => {
            format!("kernel: {} enters LISTEN", SocketAddr::new(*address, *port))
        }
        What::ListenerClosed { address, port } => {
            format!("kernel: {} leaves LISTEN", SocketAddr::new(*address, *port))
        }
        What::SocketReleased { address: Some(address), port } => {
            format!("kernel: {} is destroyed", SocketAddr::new(*address, *port))
        }
        What::SocketReleased { address: None, port } => {
            format!("kernel: a connection on port {port} is gone")
        }
        What::BindFailed(bind) => lost_bind(bind),
        What::OwnerExited { pid, exit_code, signal, answered, answered_after_us } => {
            let how = match (exit_code, signal) {
                (Some(code), _) => format!("exited with code {code}"),
                (None, Some(signal)) => format!("ended by signal {signal}"),
                (None, None) => "is gone".to_owned(),
            };
            let after = match (answered, answered_after_us) {
                (Some(signal), Some(after)) => format!(", {} after {signal}", micros(*after)),
                _ => String::new(),
            };
            format!("pid {pid} {how}{after}")
        }
        What::SignalSent { pid, signal } => format!("{signal} to pid {pid}"),
        What::TierChanged { tier } => format!("facts come from the {tier} tier from here on"),
        What::EventsLost { count } => format!("the kernel dropped {count} events; looking again"),
        What::GateOpened { release_latency_us } => {
            let after =
                release_latency_us.map(|after| format!(", {} after the kernel's event", micros(after)));
            format!("gate open{}", after.unwrap_or_default())
        }
        What::GateRefused { refused } => {
            let who: Vec<String> = refused.iter().map(judged).collect();
            format!("refused: {}", who.join("; "))
        }
        What::Duel { way_out } => format!("duel: newcomers keep taking the port; the way out: {way_out}"),
        What::Respawned {} => "taken again by its own unit".to_owned(),
        What::RunFinished { outcome, detail, took_us, .. } => {
            let detail = detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
            format!("{} after {}{detail}", outcome.replace('_', " "), micros(*took_us))
        }
        What::ServiceRemoved {} => {
            "guarded no longer: a reload of the configuration has dropped it".to_owned()
        }
        What::Lagged { count: Some(count) } => {
            format!("this reader was too slow and missed {count} events; what follows is how things are now")
        }
        What::Lagged { count: None } => {
            "events were missed, since the sidecar was restarted; what follows is how things are now"
                .to_owned()
        }
        What::Unknown => "something that this version has no words for".to_owned(),
    };
    printable(&text)
}

fn snapshot_in_short(snapshot: &Snapshot) -> String {
    let endpoints: Vec<String> = snapshot.endpoints.iter().map(endpoint).collect();
    let mut text = format!("{}: {}", snapshot.verdict, endpoints.join(" and "));
    if let Some(by) = held_by(snapshot) {
        text.push_str(&format!(", held by {by}"));
    }
    if let Some(reason) = &snapshot.reason {
        text.push_str(&format!(" ({reason})"));
    }
    text
}

pub(super) fn endpoint(endpoint: &Endpoint) -> String {
    SocketAddr::new(endpoint.address, endpoint.port).to_string()
}

/// Who has the sockets: each process once, in the order of the sockets.
pub(super) fn held_by(snapshot: &Snapshot) -> Option<String> {
    let mut who: Vec<String> = Vec::new();
    for holder in &snapshot.holders {
        let owners = holder.owners.processes.iter().map(|owner| {
            let comm = owner.comm.as_deref().unwrap_or("?");
            format!("pid {} ({comm}, {})", owner.pid, owner.class)
        });
        let mut those: Vec<String> = owners.collect();
        if those.is_empty() {
            those.push(match holder.kernel_held {
                true => format!("the kernel ({})", holder.state),
                false => format!("{} of uid {}", holder.state, holder.uid),
            });
        }
        those.retain(|one| !who.contains(one));
        who.extend(those);
    }
    let more = if who.len() > 2 { format!(" and {} more", who.len() - 2) } else { String::new() };
    who.truncate(2);
    (!who.is_empty()).then(|| printable(&format!("{}{more}", who.join(", "))))
}

/// `LISTEN 127.0.0.1:18789`
pub(super) fn holder(holder: &Holder) -> String {
    let mut text = format!("{} {}", holder.state, SocketAddr::new(holder.address, holder.port));
    if let Some(remote) = &holder.remote {
        text.push_str(&format!(" to {remote}"));
    }
    if let Some(left) = holder.time_wait_remaining_ms {
        text.push_str(&format!(", expires in {}", span(Duration::from_millis(left))));
    }
    if holder.kernel_held {
        text.push_str(", kernel-held: no process has a descriptor");
    } else if holder.owners.processes.is_empty() {
        let why = holder.owners.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        text.push_str(&match holder.owners.visibility.as_str() {
            "none" => ", no process".to_owned(),
            _ => format!(", owner unknown, uid {}{why}", holder.uid),
        });
    }
    printable(&text)
}

/// `pid 4711 (node, uid 1000, gateway.service): node dist/index.js`
pub(super) fn owner(owner: &Owner) -> String {
    let comm = owner.comm.as_deref().unwrap_or("?");
    let uid = owner.uid.map(|uid| format!(", uid {uid}")).unwrap_or_default();
    let unit = owner.cgroup.as_deref().and_then(crate::report::unit_of_cgroup);
    let unit = unit.map(|unit| format!(", {unit}")).unwrap_or_default();
    let line = match (&owner.argv, &owner.exe) {
        (Some(argv), _) if !argv.is_empty() => format!(": {}", shorten(&argv.join(" "), LONGEST_ARGV)),
        (_, Some(exe)) => format!(": {exe}"),
        _ => String::new(),
    };
    printable(&format!("pid {} ({comm}{uid}{unit}){line}", owner.pid))
}

/// `stale: argv matches /gateway/`
pub(super) fn judgement(owner: &Owner) -> String {
    printable(&format!("{}: {}", owner.class, reasons(&owner.reasons)))
}

/// `pid 4711 is foreign: argv does not match /gateway/`
pub(super) fn judged(judged: &Judged) -> String {
    let class = judged.class.as_deref().unwrap_or("not to be ended");
    format!("pid {} is {class}: {}", judged.pid, reasons(&judged.reasons))
}

/// What comes in dozens: probes, and what the kernel tells.
pub(super) fn is_minor(what: &What) -> bool {
    match what {
        What::RunStep(step) => matches!(step.step.as_str(), "probed" | "owner_exiting"),
        What::ListenerOpened { .. }
        | What::ListenerClosed { .. }
        | What::SocketReleased { .. }
        | What::TierChanged { .. }
        | What::RunStarted { .. }
        | What::Unknown => true,
        _ => false,
    }
}

fn reasons(reasons: &[Reason]) -> String {
    let reasons: Vec<&str> = reasons.iter().map(|reason| reason.text.as_str()).collect();
    reasons.join("; ")
}

fn step_in_words(step: &Step) -> String {
    let detail = step.detail.as_deref();
    let pid = step.pid.map(|pid| format!("pid {pid}"));
    match (step.step.as_str(), &pid, detail) {
        ("probed", _, _) => {
            format!("bind probe: {}", step.outcomes.as_deref().unwrap_or_default().join(", "))
        }
        ("note", _, Some(detail)) => format!("note: {detail}"),
        ("look_failed", _, Some(detail)) => format!("cannot look: {detail}"),
        ("owner_exiting", Some(pid), Some(detail)) => format!("kernel: {pid} begins to exit ({detail})"),
        ("held", Some(pid), Some(detail)) => format!("{pid} {detail}"),
        ("spared", Some(pid), Some(detail)) => format!("{pid} is left alone now: {detail}"),
        ("signal_failed", Some(pid), Some(detail)) => {
            let signal = step.signal.as_deref().unwrap_or("the signal");
            format!("{signal} to {pid} was not delivered: {detail}")
        }
        ("unkillable", Some(pid), detail) => {
            let place = detail.map(|name| format!(", its leader sleeps in {name}")).unwrap_or_default();
            format!("{pid} is still alive after SIGKILL{place}")
        }
        // What happens outside of the gate comes with a sentence.
        (_, _, Some(detail)) => detail.to_owned(),
        (other, Some(pid), None) => format!("{}: {pid}", other.replace('_', " ")),
        (other, None, None) => other.replace('_', " "),
    }
}

fn lost_bind(bind: &BindFailed) -> String {
    let pid = bind.pid.map_or_else(|| "a process".to_owned(), |pid| format!("pid {pid}"));
    let unit = bind.unit.as_ref().map(|unit| format!(", {unit}")).unwrap_or_default();
    let times = if bind.attempts > 1 { format!(" {} times", bind.attempts) } else { String::new() };
    let place = SocketAddr::new(bind.address, bind.port);
    format!("{pid} ({}, uid {}{unit}) failed to bind {place}{times}", bind.comm, bind.uid)
}
