use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tracing::debug;

use crate::model::{
    BindOutcome, ExitStatus, FailedBind, Instant, Process, ProcessId, ProcessState, Signal, Verdict,
};
use crate::prospect::{Prospect, settled};
use crate::timeline::{Entry, Timeline};

use super::assessment::{Assessment, Past, for_the_record};
use super::escalation::Escalation;
use super::verdict::Seen;
use super::{
    Action, Decision, EvictionFailure, Fact, Goal, JudgedHolder, Outcome, Plan, Reach, Rival, SignalFailure,
};

mod deciding;
mod hints;
mod looking;
mod losers;

/// The first pause after an event whose probe still failed: the bind bucket
/// goes well under a microsecond after the event, unless the closing task is
/// preempted in between. Doubles up to [`Plan::recheck`].
const SETTLE: Duration = Duration::from_micros(20);

/// The time between two checks while only connections are to blame.
const LINGERING: Duration = Duration::from_millis(5);

/// The end of a connection brings the next check this near.
const CONNECTION_PACE: Duration = Duration::from_millis(1);

/// How often the owners are read again while the port stays busy: it finds
/// new sharers and rivals that no event announced.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The last answer to "would the bind succeed?".
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) begun: Instant,
    /// It was no probe but a table with a certain conflict, which says as much.
    pub(super) by_table: bool,
    pub(super) outcomes: Vec<BindOutcome>,
}

impl Probe {
    pub(super) fn all_bindable(&self) -> bool {
        self.outcomes.iter().all(|outcome| *outcome == BindOutcome::Bindable)
    }
}

/// What the caller is working on.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    snapshot: bool,
    table: bool,
    probe: bool,
}

/// One run. See the [module](super) for the contract.
#[derive(Debug)]
pub struct Gate {
    plan: Plan,
    outcome: Option<Outcome>,
    timeline: Timeline,
    queue: VecDeque<Action>,
    asked: Asked,
    want: Asked,
    /// Of the table and the snapshot that were both asked for one has failed,
    /// and its answer does not say which.
    one_failed: bool,
    /// The next probe's answer is recorded even if nothing changed.
    record_probe: bool,
    assessment: Option<Assessment>,
    probe: Option<Probe>,
    /// A proof must be younger than this.
    doubted: Instant,
    /// A snapshot must be younger than this before the gate opens.
    look_after: Option<Instant>,
    /// Events that were lost and are not on the record yet.
    lost: u64,
    /// For a strict bind: when the last table was read.
    last_table: Option<Instant>,
    /// Since when, beyond doubt, every table showed nobody who is in the way
    /// for certain.
    clear_since: Option<Instant>,
    /// The kernel's last word on the port's release.
    released: Option<Instant>,
    recheck_at: Instant,
    settle: Duration,
    look_again_at: Option<Instant>,
    expiry_at: Option<Instant>,
    escalation: Escalation,
    watched: BTreeSet<ProcessId>,
    seen_at_request: BTreeSet<ProcessId>,
    rivals: BTreeSet<Rival>,
    past: Past,
    /// A claim on the port was seen, and nothing told of its end since.
    claim_stands: bool,
    /// Only connections are to blame.
    lingers_on: bool,
    /// How processes that have begun to exit will have ended. A pidfd often
    /// cannot say: the status is kept only once the parent has taken it.
    exit_statuses: BTreeMap<ProcessId, ExitStatus>,
    rounds: u32,
    /// TIME_WAIT sockets in the way, less those that were heard of since.
    expiring: usize,
    /// Failed binds that the next look shall explain.
    losers: Vec<(Instant, Box<FailedBind>)>,
    /// Since when an owner that the guard's user should see is not to be seen.
    out_of_sight: Option<Instant>,
    failure: Option<String>,
    /// A cgroup could not be ended as a whole.
    one_by_one: bool,
    /// Destructions whose answer is not there yet.
    evicting: usize,
    /// Since when nobody is seen to have a listener that is in the way.
    kernel_held: Option<Instant>,
}

impl Gate {
    /// Begins a run at `now`.
    pub fn new(plan: Plan, now: Instant) -> Self {
        debug_assert!(!plan.endpoints.is_empty(), "a run needs an endpoint");
        let mut gate = Self {
            recheck_at: now + plan.recheck,
            settle: plan.recheck,
            outcome: None,
            timeline: Timeline::new(now),
            queue: VecDeque::new(),
            asked: Asked::default(),
            want: Asked::default(),
            one_failed: false,
            record_probe: true,
            assessment: None,
            probe: None,
            doubted: now,
            look_after: None,
            lost: 0,
            last_table: None,
            clear_since: None,
            released: None,
            look_again_at: None,
            expiry_at: None,
            escalation: Escalation::new(plan.budgets.drain, plan.budgets.confirm),
            watched: BTreeSet::new(),
            seen_at_request: BTreeSet::new(),
            rivals: BTreeSet::new(),
            past: Past::default(),
            claim_stands: false,
            lingers_on: false,
            exit_statuses: BTreeMap::new(),
            rounds: 0,
            expiring: 0,
            losers: Vec::new(),
            out_of_sight: None,
            failure: None,
            one_by_one: false,
            evicting: 0,
            kernel_held: None,
            plan,
        };
        if gate.plan.goal == Goal::Look {
            gate.want.snapshot = true;
        }
        gate.check_port();
        gate.ask();
        gate
    }

    /// Takes in a fact.
    pub fn observe(&mut self, fact: Fact, now: Instant) {
        if self.outcome.is_some() {
            return;
        }
        debug!(?fact, "observed");
        match fact {
            Fact::SnapshotTaken(snapshot) => {
                self.answered(|asked| asked.snapshot = false);
                self.failure = None;
                self.take_in(snapshot, now);
            }
            Fact::TableRead { sockets, begun } => {
                if !self.one_failed {
                    self.failure = None;
                }
                self.answered(|asked| asked.table = false);
                self.read_table(&sockets, begun, now);
            }
            Fact::SnapshotFailed(why) => {
                self.look_failed();
                if self.failure.as_ref() != Some(&why) {
                    self.timeline.record(now, Entry::LookFailed(why.clone()));
                }
                self.failure = Some(why);
            }
            Fact::Probed { outcomes, begun } => {
                self.asked.probe = false;
                self.take_probe(outcomes, begun, now);
            }
            Fact::Hinted { hint, at } => self.take_hint(hint, at, now),
            Fact::BindFailed { bind, at } => self.bind_failed(bind, at),
            Fact::EventsLost { count } => self.events_lost(count, now),
            Fact::OwnerGone { process, status } => self.owner_gone(process, status, now),
            Fact::SignalDelivered { process, signal } => self.signal_delivered(process, signal, now),
            Fact::SignalFailed { process, signal, failure } => {
                self.signal_failed(process, signal, failure, now);
            }
            Fact::CgroupKilled(members) => {
                for process in members {
                    self.signal_delivered(process, Signal::Kill, now);
                }
            }
            Fact::CgroupNotKilled { members, why } => {
                self.timeline.record(now, Entry::CgroupNotKilled(why));
                self.one_by_one = true;
                self.escalation.confirm_again(&members, now);
                self.want.snapshot = true;
            }
            Fact::Evicted(socket) => self.eviction_answered(Entry::Evicted(socket), now),
            Fact::EvictionFailed { socket, failure } => {
                let denied = match &failure {
                    EvictionFailure::NotPermitted(why) => Some(why.clone()),
                    EvictionFailure::Gone | EvictionFailure::Failed(_) => None,
                };
                self.eviction_answered(Entry::EvictionFailed { socket, failure }, now);
                if let Some(why) = denied {
                    self.end(Outcome::CannotEvict(why), now);
                }
            }
            Fact::TierChanged { tier, recheck } => {
                self.timeline.record(now, Entry::TierChanged(tier));
                self.plan.recheck = recheck;
                self.recheck_at = self.recheck_at.min(now + recheck);
                // What happened before the new source was attached is unknown.
                self.doubted = self.doubted.max(now);
                self.hasten(now);
            }
        }
        self.decide(now);
        self.ask();
    }

    /// The next thing to do, until there is none.
    pub fn next_action(&mut self) -> Option<Action> {
        self.queue.pop_front()
    }

    /// The latest moment for the next [`Gate::on_deadline`]; `None` once ended.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.outcome.is_some() {
            return None;
        }
        let escalation = self.escalation.next_deadline();
        [Some(self.recheck_at), self.look_again_at, self.expiry_at, self.total_deadline(), escalation]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed. Harmless when nothing is due.
    pub fn on_deadline(&mut self, now: Instant) {
        if self.outcome.is_some() {
            return;
        }
        if self.total_deadline().is_some_and(|deadline| deadline <= now) {
            let outcome = self.at_deadline();
            return self.end(outcome, now);
        }
        if self.expiry_at.is_some_and(|at| at <= now) {
            self.expiry_at = None;
            self.hasten(now);
        }
        if self.look_again_at.is_some_and(|at| at <= now) {
            self.look_again_at = Some(now + LOOK_AGAIN);
            // A look that takes longer than this must not be outdated for ever
            // by the next one: nothing would ever be decided.
            self.want.snapshot |= !self.asked.snapshot;
        }
        if self.recheck_at <= now {
            self.settle = (self.settle * 2).min(self.longest_pause());
            self.recheck_at = now + self.settle;
            self.check_port();
            // A look that failed is tried again.
            let unseen =
                self.assessment.is_none() && (self.failure.is_some() || self.plan.goal == Goal::Look);
            self.want.snapshot |= (unseen || self.look_after.is_some()) && !self.asked.snapshot;
        }
        let due = self.escalation.on_deadline(now);
        self.want.snapshot |= due.look;
        for process in due.unkillable {
            let seen = self.assessment.as_ref().and_then(|look| look.processes.get(&process.tgid));
            let wait_channel =
                seen.filter(|seen| seen.id == process).and_then(|seen| seen.wait_channel.clone());
            self.timeline.record(now, Entry::Unkillable { process, wait_channel });
        }
        self.decide(now);
        self.ask();
    }

    /// How the run ended, once it has.
    pub const fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Processes that were sent SIGTERM and are alive, as far as is known.
    pub fn pending(&self) -> Vec<ProcessId> {
        self.escalation.pending()
    }

    /// What happened so far.
    pub const fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// The plan the run follows.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The holders that the last look found, judged.
    pub fn holders(&self) -> &[JudgedHolder] {
        self.assessment.as_ref().map_or(&[], |assessment| &assessment.holders)
    }

    /// The same as its timeline keeps them: every claim, some of those that linger, and the number of the others.
    pub fn holders_on_record(&self) -> (Vec<JudgedHolder>, usize) {
        for_the_record(self.holders())
    }

    /// What the last look read about a process.
    pub fn process(&self, id: ProcessId) -> Option<&Process> {
        self.assessment.as_ref()?.process(id)
    }

    /// What a [`Goal::Free`] run would do about the holders, whatever this
    /// run's goal is; `None` before the first look.
    pub fn decision(&self) -> Option<Decision> {
        let assessment = self.assessment.as_ref()?;
        let probe = self.probe.as_ref().filter(|probe| probe.begun >= assessment.ended);
        Some(assessment.decide(&self.plan, probe, &self.past))
    }

    /// What is known about each endpoint, in the plan's order.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let seen = self.seen();
        (0..self.plan.endpoints.len()).map(|index| seen.verdict(index)).collect()
    }

    /// For each endpoint, in the plan's order: what a bind with `SO_REUSEADDR`
    /// would meet, and one without it. Empty before the first look.
    pub fn prospects(&self) -> Vec<[Prospect; 2]> {
        let Some(assessment) = &self.assessment else { return Vec::new() };
        let probe = self.probe.as_ref().filter(|probe| probe.begun >= assessment.begun && !probe.by_table);
        let endpoints = self.plan.endpoints.iter().zip(&assessment.prospects).enumerate();
        endpoints
            .map(|(index, (spec, prospects))| match probe.and_then(|probe| probe.outcomes.get(index)) {
                Some(outcome) => settled(prospects.clone(), spec, outcome),
                None => prospects.clone(),
            })
            .collect()
    }

    fn seen(&self) -> Seen<'_> {
        Seen {
            plan: &self.plan,
            assessment: self.assessment.as_ref(),
            probe: self.probe.as_ref(),
            probe_stands: self.probe.as_ref().is_some_and(|probe| self.stands(probe)),
            failure: self.failure.as_deref(),
        }
    }

    /// The probe is younger than anything that could contradict it.
    fn stands(&self, probe: &Probe) -> bool {
        probe.begun >= self.doubted
    }

    fn total_deadline(&self) -> Option<Instant> {
        self.plan.budgets.total.map(|total| self.timeline.began() + total)
    }

    /// Connections that are to blame by themselves end without any event that
    /// every tier reports, so they are polled for.
    fn longest_pause(&self) -> Duration {
        if self.lingers_on { self.plan.recheck.min(LINGERING) } else { self.plan.recheck }
    }

    /// A strict probe would make the service's own strict bind fail while it is
    /// open, so such a port is looked at first and probed only when it seems free.
    fn is_strict(&self) -> bool {
        self.plan.endpoints.iter().any(|spec| !spec.reuse_address)
    }

    fn check_port(&mut self) {
        if self.is_strict() {
            self.want.table = true;
        } else {
            self.want.probe = true;
        }
    }

    /// Looks at the port now, and then soon and less and less often.
    fn hasten(&mut self, now: Instant) {
        self.settle = SETTLE.min(self.plan.recheck);
        self.recheck_at = now + self.settle;
        self.record_probe = true;
        self.check_port();
    }

    fn answered(&mut self, clear: impl Fn(&mut Asked)) {
        if std::mem::take(&mut self.one_failed) {
            self.asked.snapshot = false;
            self.asked.table = false;
        } else {
            clear(&mut self.asked);
        }
    }

    fn look_failed(&mut self) {
        if self.asked.snapshot && self.asked.table && !self.one_failed {
            // The answer still to come says which one it was.
            self.one_failed = true;
        } else {
            self.one_failed = false;
            self.asked.snapshot = false;
            self.asked.table = false;
        }
    }

    fn ask(&mut self) {
        if self.outcome.is_some() {
            return;
        }
        // The cheapest and most conclusive question first.
        if self.want.probe && !self.asked.probe {
            self.want.probe = false;
            self.asked.probe = true;
            self.queue.push_back(Action::Probe);
        }
        if self.want.table && !self.asked.table {
            self.want.table = false;
            self.asked.table = true;
            self.queue.push_back(Action::ReadTable);
        }
        if self.want.snapshot && !self.asked.snapshot {
            self.want.snapshot = false;
            self.asked.snapshot = true;
            let also = self.escalation.pending();
            let learn = self.assessment.is_none();
            let everybody = self.plan.reach != Reach::Owners;
            self.queue.push_back(Action::TakeSnapshot { also, learn, everybody });
        }
    }

    fn signal_delivered(&mut self, process: ProcessId, signal: Signal, now: Instant) {
        self.escalation.delivered(process, signal, now);
        let Some(first) = self.escalation.first(process) else { return };
        let judgement = first.judgement.clone();
        self.timeline.record(now, Entry::Signalled { process, signal, judgement });
        let seen = self.assessment.as_ref().and_then(|look| look.process(process));
        if signal == Signal::Term
            && let Some(Process { state, wait_channel, .. }) = seen
            && matches!(state, ProcessState::Traced | ProcessState::Uninterruptible)
        {
            let (state, wait_channel) = (*state, wait_channel.clone());
            self.timeline.record(now, Entry::Held { process, state, wait_channel });
        }
    }

    fn signal_failed(&mut self, process: ProcessId, signal: Signal, failure: SignalFailure, now: Instant) {
        self.timeline.record(now, Entry::SignalFailed { process, signal, failure: failure.clone() });
        match failure {
            // It went on by itself or is gone, which its pidfd will say.
            _ if signal == Signal::Continue => {}
            SignalFailure::Gone | SignalFailure::IdentityChanged => {
                self.escalation.finish(process);
                self.doubted = self.doubted.max(now);
                self.want.snapshot = true;
                self.hasten(now);
            }
            SignalFailure::NotPermitted => self.end(Outcome::NotPermitted(vec![process]), now),
            SignalFailure::Failed(why) => self.end(Outcome::CannotSignal(process, why), now),
        }
    }

    fn eviction_answered(&mut self, entry: Entry, now: Instant) {
        self.timeline.record(now, entry);
        self.evicting = self.evicting.saturating_sub(1);
        // What was looked at before is no longer so.
        self.want.snapshot = true;
        self.hasten(now);
    }

    fn end(&mut self, outcome: Outcome, now: Instant) {
        debug!(?outcome, "ended");
        self.explain_failed_binds();
        self.record_losses(now);
        self.timeline.record(now, Entry::Ended(outcome.clone()));
        self.queue.clear();
        self.outcome = Some(outcome);
    }
}
