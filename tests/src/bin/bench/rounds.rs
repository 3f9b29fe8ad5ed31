//! How often, for how long, and in which order.

use std::time::{Duration, Instant};

/// Rounds until their number or their time is used up, whichever comes first; always one.
#[derive(Debug)]
pub(crate) struct Rounds {
    most: usize,
    begun: usize,
    end: Option<Instant>,
    random: Random,
}

impl Rounds {
    pub(crate) fn new(most: usize, budget: Duration, seed: u64) -> Self {
        Self { most, begun: 0, end: Instant::now().checked_add(budget), random: Random(seed | 1) }
    }

    /// The number of the next round, from 1.
    pub(crate) fn next_round(&mut self) -> Option<usize> {
        let more = self.begun == 0 || (self.begun < self.most && !self.over());
        more.then(|| {
            self.begun += 1;
            self.begun
        })
    }

    /// Whether the time is used up: what is left of a round after the first may be left out.
    pub(crate) fn late(&self) -> bool {
        self.begun > 1 && self.over()
    }

    fn over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Everybody once, in an order of this round's own: what the machine does meanwhile meets all alike.
    pub(crate) fn shuffled<T: Copy>(&mut self, all: &[T]) -> Vec<T> {
        let mut all = all.to_vec();
        for last in (1..all.len()).rev() {
            all.swap(last, self.random.below(last as u64 + 1) as usize);
        }
        all
    }

    /// A span up to `most`, so that nobody's interval beats in time with the measurement.
    pub(crate) fn phase(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.random.below(most.as_micros() as u64 + 1))
    }
}

/// xorshift64: for orders and phases, repeatable from the seed that the run names.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The high bits are the better ones.
        (self.0 >> 16) % bound
    }
}
