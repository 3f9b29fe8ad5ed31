//! Waiting on conditions.

use std::time::{Duration, Instant};

/// Long enough for anything that does happen on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How often a condition without an event of its own is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Looks until `condition` holds; says whether it did within `deadline`.
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::park_timeout(LOOK);
    }
}

/// Looks for the whole of `span` whether `condition` goes on to hold: the way to
/// see that something does *not* happen.
pub fn stays(span: Duration, mut condition: impl FnMut() -> bool) -> bool {
    !wait_until(span, || !condition())
}
