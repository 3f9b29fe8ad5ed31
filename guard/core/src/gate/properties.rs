//! What holds whatever happens, tried on the toy kernel.
//!
//! The [driver](super::toy::Driver) checks most of it after every step, in each
//! run of each property here:
//!
//! - the gate opens only on a probe that succeeded, that is younger than
//!   everything it was told since which could contradict it, and, after lost
//!   events, than a look;
//! - nobody is signalled but a process that the last look truly showed as
//!   stale, and nobody at all while a stranger owns a listener in the way;
//! - SIGKILL follows SIGTERM by the drain budget, and a look by then still
//!   showed the process stale;
//! - a strict bind is probed only after a table without a certain conflict;
//! - nothing is destroyed but when asked for, after everybody who was to be ended
//!   is gone, while no stranger listens, and never a listener that somebody has
//!   nor anything that somebody protected has;
//! - a live gate has a deadline and does not spin, an ended one does nothing;
//! - an opened gate leaves nobody behind whom it signalled, but for
//!   `port_only`.

mod cases;
mod conflicts;

use std::time::Duration;

use proptest::prelude::*;

use self::cases::{Case, any_case, evictable_case, steady_case, yielding_case};
use super::toy::{BEGIN, Report, Weather, ms};
use super::{Goal, Outcome};

/// `PROPTEST_CASES` raises the number; a failure is printed with its smallest
/// case and becomes a test with a name instead of a seed in a file.
pub(super) fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

/// The kind of an outcome, without the moments in it.
fn kind(report: &Report) -> String {
    match &report.outcome {
        Some(Outcome::Opened(_)) => "opened".to_owned(),
        other => format!("{other:?}"),
    }
}

fn patience(case: &Case) -> Duration {
    case.total + ms(100)
}

proptest! {
    #![proptest_config(config(5_000))]

    #[test]
    fn whatever_happens_the_rules_hold_and_the_run_ends(case in any_case()) {
        let report = case.driver().run(patience(&case));
        prop_assert!(report.outcome.is_some(), "it neither ended nor gave up");
        prop_assert!(report.at <= BEGIN + case.total, "it ended after its deadline: {:?}", report.at);
        if case.goal != Goal::Free {
            prop_assert!(report.sent.is_empty() && report.evicted.is_empty());
        }
        let again = case.driver().run(patience(&case));
        prop_assert_eq!(report.timeline, again.timeline, "the same inputs gave different outputs");
        prop_assert_eq!(report.outcome, again.outcome);
    }

    #[test]
    fn a_port_that_can_be_freed_opens_within_one_recheck(case in yielding_case()) {
        let report = case.driver().run(patience(&case));
        prop_assert!(matches!(report.outcome, Some(Outcome::Opened(_))), "{:?}", report.outcome);
        let mut ready = report.bindable_since.expect("it is bindable");
        if !case.port_only {
            ready = ready.max(report.all_gone.unwrap_or(ready));
        }
        // Lost events ask for one more look, from when they are known to be lost.
        ready = ready.max(report.last_doubt.unwrap_or(ready));
        let slack = case.slowest_step() * 24;
        let late = report.at.since(ready);
        prop_assert!(late <= case.recheck + slack, "opened {late:?} after it could: {}", report.timeline);
    }

    #[test]
    fn a_port_whose_last_holders_can_be_destroyed_opens(case in evictable_case()) {
        let report = case.driver().run(patience(&case));
        prop_assert!(matches!(report.outcome, Some(Outcome::Opened(_))), "{:?}", report.outcome);
        // TIME_WAIT outlasts the run, so it did not go by itself.
        if case.time_waits.is_empty() && !case.pinned && case.connection.is_none() {
            prop_assert!(report.evicted.is_empty(), "{:?}", report.evicted);
        }
    }

    #[test]
    fn events_change_when_a_run_ends_and_never_how(case in steady_case()) {
        let calm = Case { weather: Weather::polling(), ..case.clone() };
        let calm = calm.driver().run(patience(&case));
        let stormy = case.driver().run(patience(&case));
        prop_assert_eq!(kind(&calm), kind(&stormy));
        let mut signals: Vec<_> = calm.sent.iter().map(|sent| sent.process).collect();
        signals.sort_unstable();
        let mut others: Vec<_> = stormy.sent.iter().map(|sent| sent.process).collect();
        others.sort_unstable();
        signals.dedup();
        others.dedup();
        if case.dies_at.is_none() {
            prop_assert_eq!(signals, others);
        }
    }
}
