//! What the kernel's events lead to: a look at the port, soon.

use std::time::Duration;

use super::{CONNECTION_PACE, Gate};
use crate::gate::assessment::worst_conflict;
use crate::gate::{Goal, Hint};
use crate::model::{ExitStatus, Instant, ProcessId, Signal, Socket, TcpState};
use crate::timeline::Entry;

/// For so long a probe is taken to have left everything at hand for the next one.
const WARM: Duration = Duration::from_millis(1);

impl Gate {
    pub(super) fn take_hint(&mut self, hint: Hint, at: Instant, now: Instant) {
        self.timeline.record(at, Entry::Event(hint));
        match hint {
            Hint::ListenerOpened { .. } => {
                // A probe that began in the same nanosecond proves nothing.
                self.doubted = self.doubted.max(at + Duration::from_nanos(1));
                self.want.snapshot |= self.plan.goal != Goal::Look;
                self.hasten(now);
            }
            Hint::ListenerClosed { .. } | Hint::SocketReleased { .. } => {
                self.released = self.released.max(Some(at));
                self.claim_stands = false;
                self.hasten_unless_proven(now);
            }
            // The listener itself may be told of long after them. A strict bind waits
            // for the last one of all.
            Hint::ConnectionAborted { .. } if !self.is_strict() => self.hasten_unless_proven(now),
            // While somebody claims the port, the end of a connection frees nothing.
            Hint::ConnectionReleased { .. } if self.claim_stands => {}
            // A busy server ends thousands a second: they bring the next check
            // nearer, and none of them is worth one of its own.
            Hint::ConnectionReleased { .. } | Hint::ConnectionAborted { .. } => {
                self.settle = self.settle.min(CONNECTION_PACE);
                self.recheck_at = self.recheck_at.min(now + CONNECTION_PACE);
            }
            Hint::TimeWaitEnded { .. } if self.claim_stands => {}
            // They end by the thousand too. The last one that the table showed is
            // what a strict bind waits for.
            Hint::TimeWaitEnded { .. } => {
                let last = self.expiring == 1;
                self.expiring = self.expiring.saturating_sub(1);
                if last && self.is_strict() {
                    self.hasten(now);
                } else {
                    self.settle = self.settle.min(CONNECTION_PACE);
                    self.recheck_at = self.recheck_at.min(now + CONNECTION_PACE);
                }
            }
            // Its sockets are still open: this explains what follows, and prepares for it.
            Hint::OwnerExiting { process, status } => {
                if let Some(status) = status {
                    self.exit_statuses.insert(process, status);
                }
                // The probe that counts follows in a moment. What it needs, here and in the kernel, this one
                // brings into the processor's caches. Workers that end together need one for all.
                let warm = self.probe.as_ref().is_some_and(|probe| now.since(probe.begun) < WARM);
                self.want.probe |= !warm && !self.is_strict();
            }
        }
    }

    /// Notes how many sockets in the way go by themselves.
    pub(super) fn count_expiring<'a>(&mut self, sockets: impl Iterator<Item = &'a Socket>) {
        let plan = &self.plan;
        let expires = |socket: &&Socket| matches!(socket.state, TcpState::TimeWait | TcpState::FinWait2);
        self.expiring =
            sockets.filter(expires).filter(|socket| worst_conflict(plan, socket).is_some()).count();
    }

    /// A release cannot contradict a standing proof. Probing all the same could
    /// go on for ever: where the kernel announces every destroyed socket, the
    /// probe's own is among them.
    fn hasten_unless_proven(&mut self, now: Instant) {
        let proven = self.probe.as_ref().is_some_and(|probe| probe.all_bindable() && self.stands(probe));
        if !proven {
            self.hasten(now);
        }
    }

    /// Whatever was learned before may be outdated: the proof has to be younger, and
    /// a look has to come first.
    ///
    /// Where events are lost all the time, each look is outdated before its answer
    /// comes. It is enough that it began after the first of the losses: otherwise such
    /// a gate would never open, and its proof is younger than the last of them anyway.
    pub(super) fn events_lost(&mut self, count: u64, now: Instant) {
        self.lost = self.lost.saturating_add(count);
        self.doubted = self.doubted.max(now);
        if self.look_after.is_none() {
            self.record_losses(now);
            self.look_after = Some(now);
            self.want.snapshot = true;
        }
        self.hasten(now);
    }

    /// A look that began at `begun` has been taken in.
    pub(super) fn looked_after_loss(&mut self, begun: Instant, now: Instant) {
        if self.look_after.is_some_and(|after| begun >= after) {
            self.look_after = None;
            self.record_losses(now);
        }
    }

    /// Once before a look and once after it, however many there were: a flood of
    /// losses must not become a flood of lines.
    pub(super) fn record_losses(&mut self, now: Instant) {
        if self.lost > 0 {
            self.timeline.record(now, Entry::EventsLost(std::mem::take(&mut self.lost)));
        }
    }

    pub(super) fn owner_gone(&mut self, process: ProcessId, status: Option<ExitStatus>, now: Instant) {
        let told = self.exit_statuses.remove(&process);
        let answered = self.escalation.since_last_signal(process, now);
        let status = match (status, told) {
            // Its cgroup had a victim, and this was another one; or SIGKILL was ours.
            (Some(ExitStatus::OutOfMemory), Some(told)) if !told.is_by(9) => Some(told),
            (Some(ExitStatus::OutOfMemory), told)
                if answered.is_some_and(|(last, _)| last == Signal::Kill) =>
            {
                told
            }
            (status, told) => status.or(told),
        };
        self.timeline.record(now, Entry::Gone { process, status, answered });
        self.escalation.finish(process);
        // The proof that opens must be younger than the last condition.
        self.doubted = self.doubted.max(now);
        self.want.snapshot |= self.probe.as_ref().is_some_and(|probe| !probe.all_bindable());
        self.hasten(now);
    }
}
