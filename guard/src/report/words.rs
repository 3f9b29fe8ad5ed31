//! The sentences that human and JSON output share.

use std::time::Duration;

use guard_core::gate::{EvictionFailure, Gate, JudgedHolder, Outcome, Rival, SignalFailure};
use guard_core::model::{
    BindOutcome, BindSpec, ExitStatus, FailedBind, Manager, Owners, Process, ProcessId, ProcessState, Seen,
    Signal, Socket, TcpState, UnknownReason, Unseen, Verdict,
};
use guard_core::policy::{Judgement, Reason};
use guard_core::prospect::{Expected, Prospect};

use crate::runtime::surroundings;

/// What the reports of one command have in common.
#[derive(Clone, Debug)]
pub struct Context {
    /// The service's name; one-shot commands name it after the port.
    pub service: String,
    /// The subcommand.
    pub command: &'static str,
    /// Its signals are only announced.
    pub dry_run: bool,
    /// From SIGTERM to SIGKILL.
    pub drain: Duration,
}

/// The stable word for an outcome.
pub const fn outcome_code(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Opened(_) => "opened",
        Outcome::Looked => "looked",
        Outcome::StillBusy { .. } => "still_busy",
        Outcome::Unknown(_) => "unknown",
        Outcome::Refused(_) => "refused",
        Outcome::Duel(_) => "duel",
        Outcome::Respawned(_) => "respawned",
        Outcome::NotPermitted(_) => "not_permitted",
        Outcome::CannotSignal(..) => "cannot_signal",
        Outcome::CannotEvict(_) => "cannot_evict",
    }
}

/// The verdict on a whole service: free only when every endpoint is.
pub fn overall(verdicts: &[Verdict]) -> &Verdict {
    let rank = |verdict: &&Verdict| match verdict {
        Verdict::Busy { .. } => 2,
        Verdict::Unknown { .. } => 1,
        Verdict::Free => 0,
    };
    verdicts.iter().max_by_key(rank).unwrap_or(&Verdict::Free)
}

pub(super) const fn verdict_word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Free => "free",
        Verdict::Busy { .. } => "busy",
        Verdict::Unknown { .. } => "unknown",
    }
}

pub(super) fn endpoint(spec: &BindSpec) -> String {
    let mut flags = Vec::new();
    if !spec.reuse_address {
        flags.push("strict");
    }
    if spec.reuse_port {
        flags.push("reuseport");
    }
    if spec.v6only {
        flags.push("v6only");
    }
    if flags.is_empty() { spec.to_string() } else { format!("{spec} ({})", flags.join(", ")) }
}

pub(super) fn unknown(reason: &UnknownReason) -> String {
    match reason {
        UnknownReason::OwnerHidden { uid, why } => {
            format!("held by uid {uid}, and the owner is not visible: {}", unseen(why))
        }
        UnknownReason::ProbeNotPermitted => {
            "this user may not bind the port, so nothing can prove it free; run as root or with CAP_NET_BIND_SERVICE"
                .to_owned()
        }
        UnknownReason::AddressMissing => {
            "the address is on no interface of this network namespace, or its address family is switched off".to_owned()
        }
        UnknownReason::ProbeFailed(why) => format!("the bind probe failed: {why}"),
        UnknownReason::SnapshotFailed(why) => format!("the socket table could not be read: {why}"),
        UnknownReason::NotYetObserved => "nothing has been looked at yet".to_owned(),
    }
}

pub(super) fn unseen(why: &Unseen) -> String {
    match why {
        Unseen::NotPermitted => {
            "this user may not read other users' /proc/PID/fd; run as root or with CAP_SYS_PTRACE".to_owned()
        }
        Unseen::Closed(closed) => {
            let closed: Vec<String> = closed.iter().map(ToString::to_string).collect();
            format!(
                "a security module forbids to look into pid {}, even with CAP_SYS_PTRACE",
                closed.join(", ")
            )
        }
        Unseen::OtherPidNamespace => {
            "portguard runs in a child PID namespace and an owner may live outside; run it in the host's"
                .to_owned()
        }
        Unseen::Failed(why) => format!("/proc could not be read: {why}"),
    }
}

pub(super) fn bind_outcome(outcome: &BindOutcome) -> String {
    match outcome {
        BindOutcome::Bindable => "bindable".to_owned(),
        BindOutcome::InUse => "EADDRINUSE".to_owned(),
        BindOutcome::AddressMissing => "EADDRNOTAVAIL".to_owned(),
        BindOutcome::FamilyMissing => "EAFNOSUPPORT".to_owned(),
        BindOutcome::NotPermitted => "EACCES".to_owned(),
        BindOutcome::Failed(why) => why.clone(),
    }
}

pub(super) fn eviction_failure(failure: &EvictionFailure) -> &str {
    match failure {
        EvictionFailure::Gone => "it is gone already",
        EvictionFailure::NotPermitted(why) | EvictionFailure::Failed(why) => why,
    }
}

pub(super) fn exit_status(status: Option<ExitStatus>) -> String {
    match status {
        Some(ExitStatus::Code(code)) => format!("exited with code {code}"),
        Some(ExitStatus::Signal { number, core_dumped }) => {
            let name =
                ExitStatus::signal_name(number).map_or_else(|| format!("signal {number}"), str::to_owned);
            let core = if core_dumped { ", core dumped" } else { "" };
            format!("ended by {name}{core}")
        }
        Some(ExitStatus::OutOfMemory) => {
            "ended by SIGKILL of the kernel's OOM killer: its cgroup was out of memory".to_owned()
        }
        None => "is gone".to_owned(),
    }
}

/// `pid 4711 (node) /usr/bin/node dist/index.js`
pub(super) fn process(id: ProcessId, process: Option<&Process>) -> String {
    let Some(process) = process else { return format!("pid {id}") };
    let shown = match (&process.argv, &process.exe) {
        (Seen::Known(argv), _) if !argv.is_empty() => shorten(&argv.join(" "), 80),
        (_, Seen::Known(exe)) => exe.clone(),
        _ => String::new(),
    };
    let state = match process.state {
        ProcessState::Zombie => ", zombie".to_owned(),
        ProcessState::Stopped => ", stopped".to_owned(),
        ProcessState::Traced => ", traced".to_owned(),
        ProcessState::Uninterruptible => match &process.wait_channel {
            Some(channel) => format!(", uninterruptible in {channel}"),
            None => ", uninterruptible".to_owned(),
        },
        _ => String::new(),
    };
    let comm = printable(&process.comm);
    let separator = if shown.is_empty() { "" } else { ": " };
    let parent = process.parent.map(|parent| format!(", parent {parent}")).unwrap_or_default();
    let unit = process.unit().map(|unit| format!(", {unit}")).unwrap_or_default();
    let about = printable(&format!("{parent}{unit}{state}"));
    format!("pid {id} ({comm}, uid {}{about}){separator}{}", process.uid, printable(&shown))
}

/// The systemd unit that a cgroup belongs to, by its name.
pub fn unit(cgroup: &str) -> Option<&str> {
    cgroup.split('/').rev().find(|part| part.ends_with(".service") || part.ends_with(".scope"))
}

/// `pid 4711 of other.service, started by pid 1 (systemd)`
pub(super) fn rival(rival: &Rival) -> String {
    let unit = rival.unit.as_ref().map(|unit| format!(" of {unit}")).unwrap_or_default();
    let parent = rival.parent.as_ref().map(|(pid, comm)| format!(", child of pid {pid} ({comm})"));
    printable(&format!("pid {}{unit}{}", rival.id, parent.unwrap_or_default()))
}

/// How the starting of a rival is stopped for good.
pub(super) fn way_out(rivals: &[Rival]) -> String {
    let mut ways: Vec<String> = Vec::new();
    for rival in rivals {
        let way = match (&rival.unit, &rival.parent) {
            (Some(unit), _) if unit.is_service() => match unit.manager {
                Manager::System => format!("systemctl disable --now {}", unit.name),
                Manager::User(uid) => format!("as user {uid}: systemctl --user disable --now {}", unit.name),
            },
            (_, Some((pid, comm))) if pid.0 != 1 => format!("stop pid {pid} ({comm}), which starts them"),
            _ => "find and stop whatever starts them".to_owned(),
        };
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    printable(&ways.join("; "))
}

/// What `signal` was answered with, and when.
pub(super) fn answered(answered: Option<(Signal, Duration)>) -> String {
    answered.map(|(signal, after)| format!(", {} after {signal}", span(after))).unwrap_or_default()
}

/// Why a process does not act on SIGTERM for now.
pub(super) fn held(state: ProcessState, wait_channel: Option<&str>) -> String {
    match state {
        ProcessState::Traced => {
            "is stopped by a tracer: SIGTERM waits until that lets it go, SIGKILL does not".to_owned()
        }
        _ => {
            let place = wait_channel.map(|name| format!(" in {name}")).unwrap_or_default();
            format!(
                "is uninterruptible{place}: SIGTERM waits until it leaves that, and SIGKILL does too unless the kernel lets that be killed"
            )
        }
    }
}

/// `pid 4711 (node, uid 1000, gateway.service) lost 127.0.0.1:18789 to pid 4000 (node)`
pub(super) fn lost_bind(bind: &FailedBind, holders: &[JudgedHolder]) -> String {
    let place = std::net::SocketAddr::new(bind.address, bind.port.get());
    let pid = bind
        .tgid
        .map_or_else(|| "a process outside of this PID namespace".to_owned(), |tgid| format!("pid {tgid}"));
    let unit = bind.cgroup.as_deref().and_then(unit).map(|unit| format!(", {unit}")).unwrap_or_default();
    let who = format!("{pid} ({}, uid {}{unit})", bind.comm, bind.uid);
    let times = if bind.attempts > 1 { format!(" {} times", bind.attempts) } else { String::new() };
    let mut winners: Vec<String> = Vec::new();
    for owner in holders.iter().flat_map(|judged| &judged.owners) {
        let comm = owner.process.as_ref().map(|process| format!(" ({})", process.comm)).unwrap_or_default();
        let winner = format!("pid {}{comm}", owner.id);
        if !winners.contains(&winner) {
            winners.push(winner);
        }
    }
    let winner = match (winners.is_empty(), holders.first()) {
        (false, _) => winners.join(" and "),
        (true, Some(judged)) => {
            format!("a socket of uid {} whose owner is not seen", judged.holder.socket.uid)
        }
        (true, None) => "somebody whom no look showed".to_owned(),
    };
    let probe = if bind.looks_like_a_probe() { "; by its name a portguard that only probes" } else { "" };
    let call = if bind.by_listen { " in listen()" } else { "" };
    printable(&format!("{who} lost {place}{call}{times} to {winner}{probe}"))
}

/// `32 ESTABLISHED and 480 more`: what was left out is not passed over.
pub fn and_more(counted: &str, more: usize) -> String {
    if more == 0 { counted.to_owned() } else { format!("{counted} and {more} more") }
}

/// `LISTEN 127.0.0.1:18789, SO_REUSEADDR, backlog 511, 3 waiting to be accepted`
pub(super) fn socket(socket: &Socket) -> String {
    let mut text =
        format!("{} {}", socket.state.name(), std::net::SocketAddr::new(socket.address, socket.port.get()));
    if let Some((address, port)) = socket.remote {
        text.push_str(&format!(" to {}", std::net::SocketAddr::new(address, port)));
    }
    if matches!(socket.state, TcpState::Listen | TcpState::BoundInactive) {
        for (flag, name) in [
            (socket.reuse_address, "SO_REUSEADDR"),
            (socket.reuse_port.filter(|set| *set), "SO_REUSEPORT"),
            (socket.v6only.filter(|set| *set), "IPV6_V6ONLY"),
        ] {
            match flag {
                Some(true) => text.push_str(&format!(", {name}")),
                Some(false) => text.push_str(&format!(", no {name}")),
                None => {}
            }
        }
    }
    if let (Some(queue), Some(backlog)) = (socket.accept_queue, socket.backlog) {
        text.push_str(&format!(", backlog {backlog}, {queue} waiting to be accepted"));
    }
    if let Some(left) = socket.expires {
        text.push_str(&format!(", expires in {}", span(left)));
    }
    text
}

/// What the two kinds of bind would meet, with a doubt about what this kernel does not list.
pub(super) fn prospects(gate: &Gate) -> Vec<[Prospect; 2]> {
    let mut prospects = gate.prospects();
    let hopeful =
        |prospect: &&mut Prospect| !prospect.proven && matches!(prospect.expected, Expected::Success);
    // Asked only where it matters: it takes a socket and a dump.
    let mut hopes = prospects.iter_mut().flatten().filter(hopeful).peekable();
    if hopes.peek().is_some() && !surroundings::lists_bound_only() {
        hopes.for_each(Prospect::doubt_what_is_not_listed);
    }
    prospects
}

/// `a bind without SO_REUSEADDR would fail: 3 TIME_WAIT, the last expires in 41 s`
pub(super) fn prospect(prospect: &Prospect) -> String {
    let kind = if prospect.spec.reuse_address { "with" } else { "without" };
    let blockers: Vec<String> =
        prospect.blockers.iter().map(|(state, count)| format!("{count} {}", state.name())).collect();
    let count: usize = prospect.blockers.values().sum();
    let until = match prospect.clears {
        Some(left) if count == 1 => format!(", which expires in {}", whole_seconds(left)),
        Some(left) => format!(", the last expires in {}", whole_seconds(left)),
        None => String::new(),
    };
    let blockers = blockers.join(" and ");
    let answer = match prospect.expected {
        Expected::Success => "would succeed".to_owned(),
        Expected::Failure if count == 0 => "would fail, and nobody is seen in its way".to_owned(),
        Expected::Failure => format!("would fail: {blockers}{until}"),
        Expected::Unclear if count == 0 => {
            "may fail: this kernel does not list sockets that are bound and do not listen (Linux 6.8 does)"
                .to_owned()
        }
        Expected::Unclear => {
            format!("may fail: {blockers}{until}; whether they set SO_REUSEADDR too cannot be seen")
        }
    };
    format!("a bind {kind} SO_REUSEADDR {answer}")
}

/// Rounded up: an expiry must not be awaited too short.
pub(super) fn whole_seconds(span: Duration) -> String {
    let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    format!("{seconds} s")
}

/// Who has a holder, when that is not a list of processes.
pub(super) fn nobody(holder: &JudgedHolder) -> Option<String> {
    match &holder.holder.owners {
        owners if owners.is_kernel_held() => {
            let unless = match owners {
                Owners::Some(_, why) => format!("; {}", unseen(why)),
                Owners::All(_) | Owners::NoFile => String::new(),
            };
            Some(format!(
                "kernel-held: no process has a descriptor (in flight over a Unix socket, registered with io_uring, \
                 or still being closed), so no signal helps{unless}"
            ))
        }
        Owners::Some(seen, why) if seen.is_empty() => {
            Some(format!("owner unknown, uid {}: {}", holder.holder.socket.uid, unseen(why)))
        }
        Owners::Some(_, why) if why.is_only_init() => None,
        Owners::Some(_, why) => Some(format!("there may be more owners: {}", unseen(why))),
        Owners::NoFile if holder.holder.socket.state == TcpState::TimeWait => {
            Some("no process: it goes by itself".to_owned())
        }
        Owners::NoFile => Some("no process: never accepted or already closed by its owner".to_owned()),
        Owners::All(_) => None,
    }
}

pub(super) fn signals(signal: Signal) -> &'static str {
    match signal {
        Signal::Term => "SIGTERM",
        Signal::Kill => "SIGKILL",
        Signal::Continue => "SIGCONT",
    }
}

/// The stable code and the sentence for a signal that was not delivered.
pub(super) fn signal_failure(failure: &SignalFailure) -> (&'static str, &str) {
    match failure {
        SignalFailure::Gone => ("gone", "it is gone"),
        SignalFailure::IdentityChanged => ("identity_changed", "the PID belongs to another process now"),
        SignalFailure::NotPermitted => ("not_permitted", "not permitted"),
        SignalFailure::Failed(why) => ("failed", why),
    }
}

/// A span of time in the unit that suits it.
pub fn span(span: Duration) -> String {
    let micros = span.as_secs_f64() * 1e6;
    if micros < 1_000.0 {
        format!("{micros:.0} µs")
    } else if micros < 1_000_000.0 {
        format!("{:.1} ms", micros / 1e3)
    } else {
        format!("{:.2} s", micros / 1e6)
    }
}

/// A class and what led to it.
pub(super) fn judgement(judgement: &Judgement) -> String {
    let reasons: Vec<String> = judgement.reasons.iter().map(Reason::to_string).collect();
    printable(&format!("{}: {}", judgement.class.name(), reasons.join("; ")))
}

/// What a process calls itself must not steer a terminal: no control
/// characters, and none that turn the direction of the text around.
pub fn printable(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// At most `most` characters, the last of them `…` where some were cut.
pub fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.to_owned()
    } else {
        let head: String = text.chars().take(most - 1).collect();
        format!("{head}…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guard_core::model::Port;

    #[test]
    fn spans_use_the_unit_that_suits_them() {
        assert_eq!(span(Duration::from_micros(7)), "7 µs");
        assert_eq!(span(Duration::from_micros(1_540)), "1.5 ms");
        assert_eq!(span(Duration::from_millis(2_340)), "2.34 s");
    }

    #[test]
    fn a_prospect_says_what_is_in_the_way_and_until_when() {
        let spec = BindSpec::reusable(std::net::Ipv4Addr::LOCALHOST.into(), Port::new(1).expect("not zero"));
        let spec = BindSpec { reuse_address: false, ..spec };
        let blocked = Prospect {
            spec,
            expected: Expected::Failure,
            blockers: [(TcpState::TimeWait, 3)].into(),
            clears: Some(Duration::from_millis(40_100)),
            proven: true,
        };
        assert_eq!(
            prospect(&blocked),
            "a bind without SO_REUSEADDR would fail: 3 TIME_WAIT, the last expires in 41 s"
        );
        let unlisted = Prospect { expected: Expected::Unclear, blockers: [].into(), ..blocked.clone() };
        assert!(prospect(&unlisted).contains("does not list"), "{}", prospect(&unlisted));
        let unseen = Prospect { blockers: [].into(), clears: None, ..blocked };
        assert_eq!(
            prospect(&unseen),
            "a bind without SO_REUSEADDR would fail, and nobody is seen in its way"
        );
    }

    #[test]
    fn terminal_escapes_in_a_title_are_not_printed() {
        assert_eq!(printable("a\u{1b}[31mb"), "a\u{fffd}[31mb");
        assert_eq!(printable("a\u{202e}b"), "a\u{fffd}b");
    }

    #[test]
    fn a_service_is_free_only_when_every_endpoint_is() {
        let busy = Verdict::Busy { holders: Vec::new() };
        let unknown = Verdict::Unknown { reason: UnknownReason::NotYetObserved, holders: Vec::new() };
        assert_eq!(overall(&[Verdict::Free, Verdict::Free]), &Verdict::Free);
        assert_eq!(overall(&[Verdict::Free, unknown.clone()]), &unknown);
        assert_eq!(overall(&[unknown, busy.clone(), Verdict::Free]), &busy);
    }
}
