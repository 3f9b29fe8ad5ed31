//! How many events were lost, and whether somebody was told.

use guard_core::gate::Fact;
use tracing::warn;

use super::tier::Tier;

/// The losses of one observer.
#[derive(Debug, Default)]
pub(super) struct Losses {
    total: u64,
    told: u64,
}

impl Losses {
    /// Takes note of a fact, and warns of the first loss and whenever their number
    /// has doubled since: a flood of losses must not become a flood of lines.
    pub(super) fn note(&mut self, fact: &Fact, tier: Tier) {
        let Fact::EventsLost { count } = fact else { return };
        self.total = self.total.saturating_add(*count);
        if self.total >= self.told.saturating_mul(2) {
            self.told = self.total;
            warn!(
                lost = self.total,
                tier = tier.name(),
                "kernel events were lost; each loss leads to a fresh look (a larger --event-buffer loses fewer)"
            );
        }
    }
}
