//! A kernel that refuses one program, for tests.

use std::cell::Cell;

use super::BpfError;
use super::hook::Hook;

thread_local! {
    static REFUSED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// While this lives, loads on this thread find the program at this tracepoint refused.
/// Classic tracepoints are loaded on a thread of their own and are not concerned.
#[derive(Debug)]
pub(crate) struct Refusal(());

impl Refusal {
    pub(crate) fn of(tracepoint: &'static str) -> Self {
        REFUSED.set(Some(tracepoint));
        Self(())
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        REFUSED.set(None);
    }
}

pub(super) fn check(hook: &Hook) -> Result<(), BpfError> {
    match REFUSED.get() {
        Some(name) if name == hook.name() => {
            Err(BpfError::Option { what: format!("the test refuses the program at {name}") })
        }
        _ => Ok(()),
    }
}
