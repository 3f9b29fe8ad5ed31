//! The lines a child writes, as they come.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Everything a pipe has said so far; a thread of its own reads it.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    /// Reads `pipe` until it ends. The thread is left alone: a grandchild may
    /// keep the pipe open for longer than the test needs.
    pub fn read(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let theirs = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines() {
                let Ok(line) = line else { break };
                theirs.lock().lines.push(line);
                theirs.shared.1.notify_all();
            }
            theirs.lock().ended = true;
            theirs.shared.1.notify_all();
        });
        lines
    }

    /// All lines so far.
    pub fn so_far(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// The first thing `find` makes of a line, waiting for it; `None` when the
    /// deadline or the end of the pipe comes first.
    pub fn wait_for<T>(&self, deadline: Duration, mut find: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let end = Instant::now() + deadline;
        let mut seen = 0;
        let mut state = self.lock();
        loop {
            while let Some(line) = state.lines.get(seen) {
                if let Some(found) = find(line) {
                    return Some(found);
                }
                seen += 1;
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Whether the pipe ended within `deadline`.
    pub fn ended_within(&self, deadline: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self
            .shared
            .1
            .wait_timeout_while(state, deadline, |state| !state.ended)
            .unwrap_or_else(|e| e.into_inner());
        state.ended
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Only a reader that panicked between two lines could have poisoned it.
        self.shared.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}
