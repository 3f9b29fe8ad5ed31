//! The timeline of a finished run as a column of moments.

use std::fmt::Write;

use guard_core::model::Instant;
use guard_core::timeline::Timeline;

use super::human;
use super::words::Context;
use crate::runtime::Tier;

/// Every entry of the timeline in the order of its moment, with microseconds
/// since `zero`, and `extra` lines in between.
pub fn timeline(
    timeline: &Timeline,
    context: &Context,
    tier: Tier,
    zero: Instant,
    extra: &[(Instant, String)],
) -> String {
    let mut lines: Vec<(Instant, String)> = timeline
        .entries()
        .iter()
        .filter_map(|(at, entry)| Some((*at, human::step(entry, context, tier)?)))
        .chain(extra.iter().cloned())
        .collect();
    // The kernel's own time stamps are older than their receipt.
    lines.sort_by_key(|(at, _)| *at);
    let mut text = String::new();
    for (at, line) in lines {
        let micros = at.since(zero).as_nanos() / 1_000;
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{:>12} µs  {line}", grouped(micros));
    }
    if timeline.left_out() > 0 {
        let _infallible = writeln!(text, "  ({} more entries were left out)", timeline.left_out());
    }
    text
}

/// 1234567 → 1 234 567
fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_stand_in_groups_of_three() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234), "1 234");
        assert_eq!(grouped(1_234_567), "1 234 567");
    }
}
