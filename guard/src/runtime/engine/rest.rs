//! While every service listens and nobody else could, connections need not be looked at.

use std::time::Duration;

use guard_core::model::Instant;

use super::{Engine, Witness};
use crate::runtime::now;

/// So long everything is calm first. Whoever is woken up a moment after he has gone to rest takes longer for it.
const CALM: Duration = Duration::from_secs(1);

impl<W: Witness> Engine<W> {
    /// Goes to rest when everything has been calm for a while, and wakes up when it is not. Called before looks begin:
    /// they show what nobody told of in between.
    pub(super) fn rest_or_wake(&mut self) {
        if !self.is_calm() {
            self.rest_at = None;
            self.doors.observer.wake();
        } else if !self.doors.observer.may_rest() {
            self.rest_at = None;
        } else if *self.rest_at.get_or_insert_with(|| now() + CALM) <= now() {
            self.rest_at = None;
            let listeners: Vec<_> = self
                .services
                .values()
                .filter_map(|standing| standing.alone.as_deref())
                .flatten()
                .copied()
                .collect();
            self.doors.observer.rest(&listeners);
        }
    }

    /// When it may go to rest.
    pub(super) const fn rest_at(&self) -> Option<Instant> {
        self.rest_at
    }

    fn is_calm(&self) -> bool {
        self.runs.is_empty() && self.services.values().all(super::standing::Standing::is_calm)
    }
}
