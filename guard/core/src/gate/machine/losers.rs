//! Who lost to whom. It is told, and nothing is decided by it: any process can
//! make a bind fail as often as it likes.

use super::Gate;
use crate::gate::JudgedHolder;
use crate::model::{FailedBind, Instant};
use crate::timeline::Entry;

/// Failed binds that wait for a look to name the holder, at most. Each is of
/// another process, or a second later.
const MOST: usize = 64;

impl Gate {
    pub(super) fn bind_failed(&mut self, bind: Box<FailedBind>, at: Instant) {
        // While nothing told of the claims' end, they are what was in its way.
        // Else the next look says more; none is taken for this.
        if self.claim_stands || self.losers.len() >= MOST {
            self.name_the_winner(bind, at);
        } else {
            self.losers.push((at, bind));
        }
    }

    /// Tells of those who lost since the last look, as the present one explains it.
    pub(super) fn explain_failed_binds(&mut self) {
        for (at, bind) in std::mem::take(&mut self.losers) {
            self.name_the_winner(bind, at);
        }
    }

    fn name_the_winner(&mut self, bind: Box<FailedBind>, at: Instant) {
        let claims = |assessment: &super::Assessment| -> Vec<JudgedHolder> {
            assessment.holders.iter().filter(|judged| !judged.lingers()).cloned().collect()
        };
        let holders = self.assessment.as_ref().map(claims).unwrap_or_default();
        let looked = self.assessment.as_ref().map(|assessment| assessment.begun);
        self.timeline.record(at, Entry::BindFailed { bind, holders, looked });
    }
}
