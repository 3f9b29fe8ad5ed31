//! Whole distributions: nothing is averaged away.

/// What a set of samples looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Distribution {
    /// How many samples.
    pub(crate) count: usize,
    /// The least.
    pub(crate) min: f64,
    /// The median.
    pub(crate) p50: f64,
    /// Nine of ten are at most this.
    pub(crate) p90: f64,
    /// 99 of 100 are at most this.
    pub(crate) p99: f64,
    /// The most.
    pub(crate) max: f64,
}

impl Distribution {
    /// By nearest rank: every number that is shown was measured. `None` of nothing.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let rank = |share: usize| sorted[(sorted.len() * share).div_ceil(100).max(1) - 1];
        Some(Self { count: sorted.len(), min, p50: rank(50), p90: rank(90), p99: rank(99), max })
    }

    /// The columns of a table, each with its heading. A percentile that so few samples
    /// cannot tell from the maximum is left out.
    pub(crate) fn columns(&self) -> [(&'static str, Option<f64>); 5] {
        [
            ("min", Some(self.min)),
            ("p50", Some(self.p50)),
            ("p90", (self.count >= 10).then_some(self.p90)),
            ("p99", (self.count >= 100).then_some(self.p99)),
            ("max", Some(self.max)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let seen = Distribution::of(&samples).unwrap();
        assert_eq!((seen.count, seen.min, seen.p50), (200, 1.0, 100.0));
        assert_eq!((seen.p90, seen.p99, seen.max), (180.0, 198.0, 200.0));
        let alone = Distribution::of(&[-7.0]).unwrap();
        assert_eq!((alone.min, alone.p50, alone.p99, alone.max), (-7.0, -7.0, -7.0, -7.0));
        assert_eq!(Distribution::of(&[]), None);
    }

    #[test]
    fn ten_samples_have_no_99th_percentile() {
        let seen = Distribution::of(&[1.0; 10]).unwrap();
        assert_eq!(seen.columns().map(|(_, value)| value.is_some()), [true, true, true, false, true]);
    }
}
