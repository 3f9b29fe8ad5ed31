//! Everything about a toy run that is up to chance: how long things take, what
//! becomes of events, when the caller wakes up.

use std::time::Duration;

/// What becomes of one kernel event on its way to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum Fate {
    /// It arrives so long after it happened.
    Arrives(Duration),
    /// It arrives twice.
    ArrivesTwice(Duration, Duration),
    /// It is dropped, which is reported so long after.
    IsLost(Duration),
}

/// Chance, written down: each list is used up in turn, again and again.
#[derive(Clone, Debug)]
pub(in crate::gate) struct Weather {
    /// `None`: a tier without events.
    pub(in crate::gate) fates: Option<Vec<Fate>>,
    /// How long each stage of each action takes.
    pub(in crate::gate) latencies: Vec<Duration>,
    /// How much too early each wake-up comes.
    pub(in crate::gate) early: Vec<Duration>,
    /// Which looks fail.
    pub(in crate::gate) failures: Vec<bool>,
    pub(in crate::gate) turns: [usize; 4],
}

impl Weather {
    pub(in crate::gate) fn new(
        fates: Option<Vec<Fate>>,
        latencies: Vec<Duration>,
        early: Vec<Duration>,
        failures: Vec<bool>,
    ) -> Self {
        Self { fates, latencies, early, failures, turns: [0; 4] }
    }

    /// No events, and everything takes two microseconds.
    pub(in crate::gate) fn polling() -> Self {
        Self::new(None, vec![Duration::from_micros(2)], Vec::new(), Vec::new())
    }

    /// Every event arrives five microseconds after it happened.
    pub(in crate::gate) fn events() -> Self {
        Self { fates: Some(vec![Fate::Arrives(Duration::from_micros(5))]), ..Self::polling() }
    }

    pub(in crate::gate) fn fate(&mut self) -> Option<Fate> {
        let fates = self.fates.as_deref()?;
        next(fates, &mut self.turns[0])
    }

    pub(in crate::gate) fn latency(&mut self) -> Duration {
        next(&self.latencies, &mut self.turns[1]).unwrap_or_default()
    }

    pub(in crate::gate) fn early(&mut self) -> Duration {
        next(&self.early, &mut self.turns[2]).unwrap_or_default()
    }

    pub(in crate::gate) fn look_fails(&mut self) -> bool {
        next(&self.failures, &mut self.turns[3]).unwrap_or_default()
    }
}

fn next<T: Copy>(list: &[T], turn: &mut usize) -> Option<T> {
    let item = *list.get(*turn % list.len().max(1))?;
    *turn += 1;
    Some(item)
}
