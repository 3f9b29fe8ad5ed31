//! While every service listens and nobody else could, connections need not be looked at.

use std::time::Duration;

use guard_core::model::Instant;

use super::standing::Standing;
use super::{Engine, Witness};
use crate::runtime::now;

/// So long everything is calm first. Whoever is woken up a moment after he has gone to rest takes longer for it.
const CALM: Duration = Duration::from_secs(1);

impl<W: Witness> Engine<W> {
    /// Wakes up when there is a reason. Called before looks begin: they show what nobody told of in between.
    pub(super) fn wake_unless_calm(&mut self) {
        if !self.is_calm() {
            self.doors.observer.wake();
        }
    }

    /// Goes to rest when everything has been calm for a while. Called when all that is known was taken in.
    pub(super) fn rest_if_calm(&mut self) {
        if !self.is_calm() || !self.doors.observer.may_rest() {
            self.rest_at = None;
        } else if *self.rest_at.get_or_insert_with(|| now() + CALM) <= now() {
            self.rest_at = None;
            let alone = self.services.values().filter_map(|standing| standing.alone.as_deref());
            let listeners: Vec<_> = alone.flatten().copied().collect();
            self.doors.observer.rest(&listeners);
        }
    }

    /// When it may go to rest.
    pub(super) const fn rest_at(&self) -> Option<Instant> {
        self.rest_at
    }

    fn is_calm(&self) -> bool {
        self.runs.is_empty() && self.services.values().all(Standing::is_calm)
    }
}
