//! What follows from what is known: whom to end, when to open, when to give up.

use std::time::Duration;

use super::{Gate, LOOK_AGAIN};
use crate::gate::escalation::First;
use crate::gate::verdict::permanently_unknown;
use crate::gate::{Action, Decision, Goal, Outcome, Proof, Reach, reach};
use crate::model::{BindOutcome, Instant, ProcessId, ProcessState, Signal, Socket, TcpState, UnknownReason};
use crate::policy::{Class, Judgement, Reason};
use crate::timeline::Entry;

/// After so many rounds, in each of which newcomers took the port that the
/// rounds before had not seen, the run gives up.
const DUEL_ROUNDS: u32 = 3;

/// How long an owner may stay out of sight of its own user before that counts:
/// a dying process belongs to nobody's `/proc/PID/fd` any more, and takes
/// 200 ms and more to close its sockets when it was large.
const OUT_OF_SIGHT: Duration = LOOK_AGAIN;

impl Gate {
    /// Whoever somebody else has taken in hand since SIGTERM is left to them.
    pub(super) fn spare_moved(&mut self, now: Instant) {
        let Some(assessment) = &self.assessment else { return };
        let moved = |id: ProcessId| {
            let (process, first) = (assessment.process(id)?, self.escalation.first(id));
            let judgement = reach::judge_again(&self.plan, process, first, &self.seen_at_request);
            judgement.reasons.iter().any(|why| matches!(why, Reason::Moved { .. })).then_some((id, judgement))
        };
        let moved: Vec<_> = self.escalation.pending().into_iter().filter_map(moved).collect();
        for (process, judgement) in moved {
            self.spare(process, judgement, now);
        }
    }

    fn spare(&mut self, process: ProcessId, judgement: Judgement, now: Instant) {
        self.escalation.finish(process);
        self.past.spared.insert(process, judgement.clone());
        self.timeline.record(now, Entry::Spared { process, judgement });
    }

    /// SIGKILL goes only to a process that a look begun after its budget was
    /// spent still judges stale: it may have become something else meanwhile.
    pub(super) fn kill_after_look(&mut self, begun: Instant, now: Instant) {
        let Some(assessment) = &self.assessment else { return };
        let (mut due, mut spared) = (Vec::new(), Vec::new());
        for id in self.escalation.confirmed_by(begun) {
            // Not read: it is gone, which its pidfd will say, or the next look shows it.
            let Some(process) = assessment.process(id) else { continue };
            let first = self.escalation.first(id);
            let judgement = reach::judge_again(&self.plan, process, first, &self.seen_at_request);
            if judgement.class == Class::Stale {
                self.escalation.kill(id);
                due.push(id);
            } else if !judgement.is_for_want_of_evidence() {
                spared.push((id, judgement));
            }
        }
        let cgroup = (self.plan.reach == Reach::Cgroup && !self.one_by_one)
            .then(|| reach::whole_cgroup(&due, &assessment.processes))
            .flatten();
        match cgroup {
            Some(cgroup) => self.queue.push_back(Action::KillCgroup { cgroup, members: due }),
            None => self
                .queue
                .extend(due.into_iter().map(|process| Action::Signal { process, signal: Signal::Kill })),
        }
        for (process, judgement) in spared {
            self.spare(process, judgement, now);
        }
    }

    pub(super) fn decide(&mut self, now: Instant) {
        if self.outcome.is_some() {
            return;
        }
        if self.rounds >= DUEL_ROUNDS {
            return self.end(Outcome::Duel(self.rivals.iter().cloned().collect()), now);
        }
        let Some(probe) = &self.probe else {
            if self.plan.goal == Goal::Look && self.look_is_lost() && !self.asked.probe && !self.want.probe {
                self.end(Outcome::Looked, now);
            }
            return;
        };
        let fresh = self.stands(probe);
        if self.plan.goal == Goal::Look {
            let looked = self.assessment.as_ref().is_some_and(|look| probe.begun >= look.begun);
            if (looked && fresh) || self.look_is_lost() {
                self.end(Outcome::Looked, now);
            }
            return;
        }
        if probe.all_bindable() {
            let all_gone = self.plan.port_only || self.escalation.all_over();
            if fresh && all_gone && self.look_after.is_none() && self.table_agrees(probe.begun) {
                let proof = Proof {
                    probed: probe.begun,
                    release_latency: self.released.map(|released| now.since(released)),
                    endpoints: self.plan.endpoints.clone(),
                };
                self.end(Outcome::Opened(proof), now);
            }
            return;
        }
        if let Some(reason) = probe.outcomes.iter().find_map(permanently_unknown) {
            // Nothing that time brings could prove anything.
            return self.end(Outcome::Unknown(reason), now);
        }
        if self.plan.goal == Goal::Free && probe.outcomes.contains(&BindOutcome::InUse) {
            self.decide_about_holders(now);
        }
    }

    /// For a strict bind the table, too, must have shown nobody before the probe.
    fn table_agrees(&self, probed: Instant) -> bool {
        !self.is_strict() || self.clear_since.is_some_and(|since| self.doubted <= since && since <= probed)
    }

    /// Looking failed and no answer is under way that could mend it.
    fn look_is_lost(&self) -> bool {
        self.failure.is_some() && !self.asked.snapshot && !self.want.snapshot && !self.asked.table
    }

    fn decide_about_holders(&mut self, now: Instant) {
        let (Some(assessment), Some(probe)) = (&self.assessment, &self.probe) else { return };
        // The port must have been busy after the look that names the holders.
        let confirmed = probe.begun >= assessment.ended;
        let outdated = self.asked.snapshot || self.want.snapshot || self.look_after.is_some();
        if !confirmed || outdated {
            return;
        }
        let looked = assessment.begun;
        let respawned = assessment.respawned(&self.plan, Some(probe));
        if !respawned.is_empty() && self.escalation.all_over() {
            return self.end(Outcome::Respawned(respawned), now);
        }
        let decision = assessment.decide(&self.plan, Some(probe), &self.past);
        if !matches!(decision, Decision::CannotTell(_)) {
            self.out_of_sight = None;
        }
        if !matches!(decision, Decision::Evict(_)) {
            self.kernel_held = None;
        }
        match decision {
            Decision::Wait => {}
            Decision::Evict(sockets) => self.evict(sockets, looked),
            Decision::Refuse(refused) => self.end(Outcome::Refused(refused), now),
            Decision::NotPermitted(processes) => self.end(Outcome::NotPermitted(processes), now),
            Decision::CannotTell(reason) => {
                if !self.may_be_dying(&reason, looked) {
                    self.end(Outcome::Unknown(reason), now);
                }
            }
            Decision::End(stale) => {
                for (process, judgement) in stale {
                    let evidence = self.assessment.as_ref().and_then(|look| look.process(process)).cloned();
                    if !self.escalation.begin(process, First { judgement, process: evidence }) {
                        continue;
                    }
                    // Whoever is reached besides the owners is not watched yet.
                    if self.watched.insert(process) {
                        self.queue.push_back(Action::Watch(process));
                    }
                    self.queue.push_back(Action::Signal { process, signal: Signal::Term });
                    // A stopped process acts on SIGTERM only once it goes on; systemd
                    // wakes it up in the same way.
                    let seen = self.assessment.as_ref().and_then(|look| look.process(process));
                    if seen.is_some_and(|seen| seen.state == ProcessState::Stopped) {
                        self.queue.push_back(Action::Signal { process, signal: Signal::Continue });
                    }
                }
            }
        }
    }

    /// Once everybody who was to be ended is gone. A listener that nobody has may
    /// be on its way out with a dying process: it gets the time for that.
    fn evict(&mut self, sockets: Vec<Socket>, looked: Instant) {
        if !self.escalation.all_over() || self.evicting > 0 {
            return;
        }
        if sockets.iter().any(|socket| socket.state == TcpState::Listen) {
            let since = *self.kernel_held.get_or_insert(looked);
            if looked.since(since) < OUT_OF_SIGHT {
                return;
            }
        } else {
            self.kernel_held = None;
        }
        for socket in sockets {
            if socket.cookie.is_some_and(|cookie| self.past.evicted.insert(cookie)) {
                self.evicting += 1;
                self.queue.push_back(Action::Evict(socket));
            }
        }
    }

    /// The owner may be out of sight because it is dying, be it by this run's
    /// signal or by itself.
    fn may_be_dying(&mut self, reason: &UnknownReason, looked: Instant) -> bool {
        if !self.escalation.all_over() {
            return true;
        }
        let UnknownReason::OwnerHidden { uid, .. } = reason else { return false };
        let since = *self.out_of_sight.get_or_insert(looked);
        *uid == self.plan.asker.uid && looked.since(since) < OUT_OF_SIGHT
    }

    pub(super) fn at_deadline(&self) -> Outcome {
        match self.seen().doubt() {
            Some(reason) => Outcome::Unknown(reason),
            None => Outcome::StillBusy { pending: self.escalation.pending() },
        }
    }
}
