//! Lines for a person, who may be tired.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use guard_core::gate::{Decision, Gate, Goal, Hint, JudgedHolder, Outcome};
use guard_core::model::{BindOutcome, Instant, ProcessId, Signal, Verdict};
use guard_core::policy::Judgement;
use guard_core::prospect::Expected;
use guard_core::restart::Ahead;
use guard_core::timeline::Entry;

use super::advice;
use super::notes::Note;
use super::words::{self, Context, span};
use crate::runtime::Sink;
use crate::runtime::Tier;

/// More sockets than this are only counted.
const MOST_HOLDERS: usize = 12;

pub(super) const NOBODY: &str = "the kernel answers EADDRINUSE and shows no holder in this network namespace";

/// Writes lines for a person.
#[derive(Debug)]
pub struct Human<W> {
    context: Context,
    out: W,
    /// Moments are shown since this one.
    began: Option<Instant>,
    /// Also shows probes and the kernel's events.
    verbose: bool,
    /// The run judges owners; one that only waits does not.
    judges: bool,
    /// The holders that were shown last: they are not shown twice.
    shown: Vec<JudgedHolder>,
    /// The owners whose judgement was shown with them.
    told: Vec<(ProcessId, Judgement)>,
}

impl<W: Write> Human<W> {
    /// Lines about `context` to `out`.
    pub const fn new(context: Context, out: W, verbose: bool) -> Self {
        Self { context, out, began: None, verbose, judges: true, shown: Vec::new(), told: Vec::new() }
    }

    /// One line.
    pub fn line(&mut self, line: &str) {
        // A reader that went away must not stop a run half way: the exit code
        // still tells how it ended.
        let _reader_gone = writeln!(self.out, "{line}");
    }

    /// One line with its moment in the run.
    pub fn moment(&mut self, at: Instant, text: &str) {
        let began = *self.began.get_or_insert(at);
        let offset = span(at.since(began));
        self.line(&format!("{:>10}  {text}", format!("+{offset}")));
    }

    /// What there is to add.
    pub fn note(&mut self, note: &Note) {
        // The verdict has said so already.
        if note.text != NOBODY {
            self.line(&format!("note: {}", note.text));
        }
        for command in &note.commands {
            self.line(&format!("  run: {command}"));
        }
        for detail in &note.details {
            self.line(&format!("  {detail}"));
        }
    }

    /// What a look found: verdict, holders, owners and why each would or would
    /// not be ended.
    pub fn looked(&mut self, gate: &Gate, tier: Tier, shortfall: Option<&str>) {
        let verdicts = gate.verdicts();
        let prospects = words::prospects(gate);
        for (index, (spec, verdict)) in gate.plan().endpoints.iter().zip(&verdicts).enumerate() {
            let endpoint = words::endpoint(spec);
            match verdict {
                Verdict::Free => self.line(&format!("{endpoint} is free: a bind probe succeeded")),
                Verdict::Busy { holders } if holders.is_empty() => {
                    self.line(&format!("{endpoint} is busy: {NOBODY}"));
                }
                Verdict::Busy { .. } => self.line(&format!("{endpoint} is busy")),
                Verdict::Unknown { reason, .. } => {
                    self.line(&format!("{endpoint} is unknown: {}", words::unknown(reason)));
                }
            }
            if let Some(prospects) = prospects.get(index)
                && prospects.iter().any(|prospect| prospect.expected != Expected::Success)
            {
                for prospect in prospects {
                    self.line(&format!("  {}", words::prospect(prospect)));
                }
            }
        }
        let busy = !matches!(words::overall(&verdicts), Verdict::Free);
        self.holders(gate.holders(), 0, busy);
        // While this command looked, which is not long.
        for (_, entry) in gate.timeline().entries() {
            if let Entry::BindFailed { bind, holders, .. } = entry {
                self.line(&format!("  {}", words::lost_bind(bind, holders)));
            }
        }
        if busy && let Some(decision) = gate.decision() {
            self.decision(gate, &decision);
        }
        self.tier(tier, shortfall);
    }

    fn tier(&mut self, tier: Tier, shortfall: Option<&str>) {
        if self.verbose {
            let why = shortfall.map(|why| format!(" ({why})")).unwrap_or_default();
            self.line(&format!("tier: {}{why}", tier.name()));
        }
    }

    /// Who has the port, unless they are the last that were shown: it is busy.
    pub fn last_holders(&mut self, gate: &Gate) {
        if self.shown != gate.holders_on_record().0 {
            self.holders(gate.holders(), 0, true);
        }
    }

    /// The sockets in the way, with their owners, where so many connections and TIME_WAIT sockets `more` were left
    /// out; `busy` when a bind fails now.
    pub fn holders(&mut self, holders: &[JudgedHolder], more: usize, busy: bool) {
        if self.shown == holders {
            return;
        }
        self.shown = holders.to_vec();
        self.told.clear();
        let (mut lingering, mut claims): (Vec<_>, Vec<_>) =
            holders.iter().partition(|judged| judged.lingers());
        if busy && claims.is_empty() {
            // Nothing else explains it: their listener had no SO_REUSEADDR, or
            // they are clients that use the port as their own.
            std::mem::swap(&mut lingering, &mut claims);
        }
        let (listed, left_out) = claims.split_at(claims.len().min(MOST_HOLDERS));
        for judged in listed {
            self.line(&format!("  {}", words::socket(&judged.holder.socket)));
            for owner in &judged.owners {
                self.line(&format!("    {}", words::process(owner.id, owner.process.as_ref())));
                if self.judges {
                    self.line(&format!("      {}", words::judgement(&owner.judgement)));
                    self.told.push((owner.id, owner.judgement.clone()));
                }
            }
            if let Some(nobody) = words::nobody(judged) {
                self.line(&format!("    {nobody}"));
            }
        }
        if !left_out.is_empty() {
            self.line(&format!("  and {}", counted_by_state(left_out)));
        }
        if lingering.is_empty() && more > 0 {
            self.line(&format!("  and {more} more"));
        }
        if !lingering.is_empty() {
            let counted = words::and_more(&counted_by_state(&lingering), more);
            self.line(&format!("  besides {counted}, which block only a bind without SO_REUSEADDR"));
        }
    }

    fn decision(&mut self, gate: &Gate, decision: &Decision) {
        let command = if self.context.command == "restart" { "restart" } else { "free" };
        if let Decision::End(stale) = decision {
            let owners: BTreeSet<ProcessId> =
                gate.holders().iter().flat_map(|judged| &judged.owners).map(|owner| owner.id).collect();
            for (id, why) in stale.iter().filter(|(id, _)| !owners.contains(id)) {
                self.line(&format!("  reaches {}", words::process(*id, gate.process(*id))));
                self.line(&format!("      {}", words::judgement(why)));
            }
        }
        if let Decision::Refuse(refused) = decision {
            self.refused(refused);
        }
        let line = match decision {
            Decision::Wait => {
                let why = advice::of_waiting(gate).map(|why| format!(": {why}")).unwrap_or_default();
                format!("{command} would signal nobody and wait for the port{why}")
            }
            Decision::End(stale) => format!(
                "{command} would send SIGTERM to {}, and SIGKILL {} later to whoever is left",
                pids(stale.iter().map(|(id, _)| id)),
                span(gate.plan().budgets.drain)
            ),
            Decision::Evict(sockets) => {
                let (first, others) = (sockets.first().map(words::socket), sockets.len().saturating_sub(1));
                let others = if others > 0 { format!(" and {others} more") } else { String::new() };
                format!("{command} would signal nobody and destroy {}{others}", first.unwrap_or_default())
            }
            Decision::Refuse(refused) => format!(
                "{command} would refuse and signal nobody: {} may not be ended",
                pids(refused.iter().map(|(id, _)| id))
            ),
            Decision::NotPermitted(processes) => format!(
                "{command} would refuse and signal nobody: this user may not signal {}; run as root or with CAP_KILL",
                pids(processes.iter())
            ),
            Decision::CannotTell(reason) => {
                format!("{command} would signal nobody: {}", words::unknown(reason))
            }
        };
        self.line(&line);
        if let Decision::Refuse(refused) = decision
            && let Some(way_out) = advice::of_refusal(refused)
        {
            self.line(&format!("  {way_out}"));
        }
    }

    /// Those who may not be ended, unless that was just said of them as owners.
    fn refused(&mut self, refused: &[(ProcessId, Judgement)]) {
        let unsaid: Vec<String> = refused
            .iter()
            .filter(|refused| !self.told.contains(refused))
            .map(|(id, why)| format!("  pid {id} is {}", words::judgement(why)))
            .collect();
        for line in unsaid {
            self.line(&line);
        }
    }

    /// How a run ended, in one or a few lines.
    pub fn ended(&mut self, gate: &Gate, tier: Tier, shortfall: Option<&str>) {
        let endpoints: Vec<String> = gate.plan().endpoints.iter().map(words::endpoint).collect();
        let endpoints = endpoints.join(" and ");
        match gate.outcome() {
            None | Some(Outcome::Looked) => {}
            Some(Outcome::Opened(proof)) => {
                let waited = proof.probed.since(gate.timeline().began());
                let took = if gate.timeline().entries().len() > 3 {
                    format!(", after {}", span(waited))
                } else {
                    " already".to_owned()
                };
                let latency = proof
                    .release_latency
                    .map(|latency| format!(", {} after the kernel released it", span(latency)))
                    .unwrap_or_default();
                self.line(&format!("free: {endpoints} is bindable{took}{latency} ({} tier)", tier.name()));
            }
            Some(Outcome::StillBusy { pending }) => {
                let budget = gate.plan().budgets.total.map(span).unwrap_or_default();
                self.line(&format!("still busy: {endpoints} was not bindable within {budget}"));
                self.last_holders(gate);
                if gate.holders().is_empty() {
                    // Before the first look nothing is known about holders.
                    let looked = gate.decision().is_some();
                    self.line(&format!(
                        "  {}",
                        if looked { NOBODY } else { "there was no time to look who holds it" }
                    ));
                }
                if pending.is_empty()
                    && let Some(why) = advice::of_waiting(gate)
                {
                    self.line(&format!("  {why}"));
                }
                if !pending.is_empty() {
                    self.line(&format!("  sent SIGTERM and still alive: {}", pids(pending.iter())));
                    if gate.plan().budgets.total.is_some_and(|total| total <= gate.plan().budgets.drain) {
                        self.line(&format!(
                            "  the deadline came before the drain budget of {} was over, so SIGKILL was not sent",
                            span(gate.plan().budgets.drain)
                        ));
                    }
                }
            }
            Some(Outcome::Unknown(reason)) => {
                self.line(&format!("unknown: {}", words::unknown(reason)));
                self.last_holders(gate);
            }
            Some(Outcome::Refused(refused)) => {
                self.last_holders(gate);
                let signalled =
                    gate.timeline().entries().iter().any(|(_, e)| matches!(e, Entry::Signalled { .. }));
                let nobody = if signalled { "" } else { "; nobody was signalled" };
                self.line(&format!(
                    "refused: {endpoints} is held by a process that may not be ended{nobody}"
                ));
                self.refused(refused);
                if let Some(way_out) = advice::of_refusal(refused) {
                    self.line(&format!("  {way_out}"));
                }
                let pending = gate.pending();
                if !pending.is_empty() {
                    self.line(&format!(
                        "  sent SIGTERM before that and still alive: {}",
                        pids(pending.iter())
                    ));
                }
            }
            Some(Outcome::Duel(rivals)) => {
                let units: Vec<&str> =
                    gate.plan().rules.units.iter().map(|rule| rule.name.as_str()).collect();
                let ours = if units.is_empty() { "the service".to_owned() } else { units.join(", ") };
                self.line(&format!(
                    "duel: {ours} against newcomers that keep taking {endpoints}, {} rounds lost",
                    rivals.len()
                ));
                for rival in rivals {
                    self.line(&format!("  {}", words::rival(rival)));
                }
                self.line(&format!("  the way out: {}; then try again", words::way_out(rivals)));
                self.last_holders(gate);
            }
            Some(Outcome::Respawned(rivals)) => {
                self.line(&format!("taken again by its own unit: {endpoints} is not free"));
                for rival in rivals {
                    self.line(&format!("  {}", words::rival(rival)));
                }
            }
            Some(Outcome::NotPermitted(processes)) => {
                let processes = pids(processes.iter());
                self.line(&format!(
                    "not permitted: this user may not signal {processes}; run as root or with CAP_KILL"
                ));
                self.last_holders(gate);
            }
            Some(Outcome::CannotEvict(why)) => {
                self.line(&format!("not permitted: {why}"));
                self.last_holders(gate);
            }
            Some(Outcome::CannotSignal(process, why)) => {
                self.line(&format!("cannot signal pid {process}: {why}"));
            }
        }
        self.tier(tier, shortfall);
    }
}

impl<W: Write> Human<W> {
    /// Why nothing was done, after a look.
    pub fn not_begun(&mut self, gate: &Gate, ahead: &Ahead) {
        self.last_holders(gate);
        match ahead {
            Ahead::Clear => {}
            Ahead::Refused(refused) => {
                self.line(
                    "refused: the port is held by a process that may not be ended; the unit was not stopped",
                );
                self.refused(refused);
                if let Some(way_out) = advice::of_refusal(refused) {
                    self.line(&format!("  {way_out}"));
                }
            }
            Ahead::NotPermitted(processes) => self.line(&format!(
                "not permitted: this user may not signal {}; run as root or with CAP_KILL",
                pids(processes.iter())
            )),
            Ahead::Unknown(reason) => self.line(&format!("unknown: {}", words::unknown(reason))),
        }
    }
}

impl<W: Write> Sink for Human<W> {
    fn entry(&mut self, gate: &Gate, tier: Tier, at: Instant, entry: &Entry) {
        if gate.plan().goal == Goal::Look {
            return;
        }
        self.began.get_or_insert(gate.timeline().began());
        self.judges = gate.plan().goal == Goal::Free;
        match entry {
            Entry::Began | Entry::Ended(_) => {}
            Entry::Looked { holders, left_out, .. } => {
                let endpoints: Vec<String> = gate.plan().endpoints.iter().map(words::endpoint).collect();
                if !holders.is_empty() {
                    self.moment(at, &format!("busy: {}", endpoints.join(" and ")));
                    self.holders(holders, *left_out, true);
                }
            }
            Entry::Probed { outcomes, .. } if !self.verbose => {
                for outcome in outcomes {
                    if let BindOutcome::AddressMissing | BindOutcome::Failed(_) = outcome {
                        let what = words::bind_outcome(outcome);
                        self.moment(at, &format!("cannot tell yet: the bind probe says {what}; waiting"));
                    }
                }
            }
            Entry::Event(_) | Entry::TierChanged(_) if !self.verbose => {}
            Entry::BindFailed { bind, .. } if bind.looks_like_a_probe() && !self.verbose => {}
            other => {
                if let Some(text) = step(other, &self.context, tier) {
                    self.moment(at, &text);
                }
            }
        }
    }
}

/// The step of a run that an entry stands for, as one line.
pub(super) fn step(entry: &Entry, context: &Context, tier: Tier) -> Option<String> {
    Some(match entry {
        Entry::Began => format!("{} begins ({} tier)", context.command, tier.name()),
        Entry::Looked { holders, took, .. } => {
            let claims = holders.iter().filter(|judged| !judged.lingers()).count();
            let sockets = if claims == 1 { "socket" } else { "sockets" };
            format!("looked: {claims} {sockets} in the way (took {})", span(*took))
        }
        Entry::LookFailed(why) => format!("cannot look: {why}"),
        Entry::Probed { outcomes, took } => {
            let outcomes: Vec<String> = outcomes.iter().map(words::bind_outcome).collect();
            format!("bind probe: {} (took {})", outcomes.join(", "), span(*took))
        }
        Entry::Event(Hint::ListenerOpened { address, port }) => {
            format!("kernel: {} enters LISTEN", std::net::SocketAddr::new(*address, port.get()))
        }
        Entry::Event(Hint::ListenerClosed { address, port }) => {
            format!("kernel: {} leaves LISTEN", std::net::SocketAddr::new(*address, port.get()))
        }
        Entry::Event(Hint::SocketReleased { address, port }) => {
            format!("kernel: {} is destroyed", std::net::SocketAddr::new(*address, port.get()))
        }
        Entry::Event(Hint::ConnectionReleased { port }) => {
            format!("kernel: a connection on port {port} is destroyed")
        }
        Entry::Event(Hint::ConnectionAborted { port }) => {
            format!("kernel: a connection on port {port} is aborted")
        }
        Entry::Event(Hint::TimeWaitEnded { port }) => {
            format!("kernel: a TIME_WAIT socket on port {port} is gone")
        }
        Entry::Event(Hint::OwnerExiting { process, status }) => {
            format!("kernel: pid {process} begins to exit ({})", words::exit_status(*status))
        }
        Entry::BindFailed { bind, holders, .. } => words::lost_bind(bind, holders),
        Entry::EventsLost(count) => format!("the kernel dropped {count} events; looking again"),
        Entry::Signalled { process, signal, .. } => format!("{signal} to pid {process}"),
        Entry::SignalFailed { process, signal, failure } => {
            let (_, why) = words::signal_failure(failure);
            format!("{signal} to pid {process} was not delivered: {why}")
        }
        Entry::Evicted(socket) => format!("destroyed {}", words::socket(socket)),
        Entry::EvictionFailed { socket, failure } => {
            format!("{} was not destroyed: {}", words::socket(socket), words::eviction_failure(failure))
        }
        Entry::Gone { process, status, answered } => {
            format!("pid {process} {}{}", words::exit_status(*status), words::answered(*answered))
        }
        Entry::Held { process, state, wait_channel } => {
            format!("pid {process} {}", words::held(*state, wait_channel.as_deref()))
        }
        Entry::CgroupNotKilled(why) => format!("its members are ended one by one: {why}"),
        Entry::Spared { process, judgement: why } => {
            format!("pid {process} is left alone now: {}", words::judgement(why))
        }
        Entry::Unkillable { process, wait_channel } => {
            let place = wait_channel
                .as_ref()
                .map(|name| format!(", its leader sleeps in {name}"))
                .unwrap_or_default();
            format!("pid {process} is still alive after {}{place}", words::signals(Signal::Kill))
        }
        Entry::TierChanged(tier) => format!("facts come from the {tier} tier from here on"),
        Entry::Ended(Outcome::Opened(_)) => "gate open".to_owned(),
        Entry::Ended(outcome) => format!("ended: {}", words::outcome_code(outcome).replace('_', " ")),
    })
}

/// `3 ESTABLISHED and 1 TIME_WAIT`
fn counted_by_state(holders: &[&JudgedHolder]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for judged in holders {
        *counts.entry(judged.holder.socket.state.name()).or_default() += 1;
    }
    let counts: Vec<String> = counts.into_iter().map(|(state, count)| format!("{count} {state}")).collect();
    counts.join(" and ")
}

/// `stale: argv matches /gateway/; its executable was deleted`
fn pids<'a>(processes: impl Iterator<Item = &'a ProcessId>) -> String {
    let processes: Vec<String> = processes.map(|id| format!("pid {id}")).collect();
    processes.join(" and ")
}
