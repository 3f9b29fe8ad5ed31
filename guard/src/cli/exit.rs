//! Exit codes: one enum, documented by one table in the README.

use std::process::ExitCode;

use guard_core::gate::Outcome;
use guard_core::model::Verdict;

use crate::report::overall;
use crate::runtime::asker::EvictError;
use crate::runtime::netns::NetnsError;
use crate::runtime::{RuntimeError, SystemdError};

/// How a command ended, for the process that waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or free.
    Done = 0,
    /// Still busy at the deadline.
    StillBusy = 1,
    /// Wrong arguments.
    Usage = 2,
    /// What the command needs to know, it cannot see.
    Unknown = 3,
    /// Refused by policy: a foreign or protected process holds the port.
    Refused = 4,
    /// Another supervisor keeps taking the port.
    Duel = 5,
    /// Not permitted.
    NotPermitted = 6,
    /// The command or unit to be restarted failed.
    CommandFailed = 7,
}

/// The table of the help text.
pub(super) const TABLE: &str = "\
Exit codes:
  0  done, or the port is free
  1  busy (status), or still busy at the deadline
  2  wrong arguments
  3  unknown: what the command needs to know, it cannot see
  4  refused by policy: a foreign or protected process holds the port
  5  duel: another supervisor keeps taking the port
  6  not permitted
  7  the restarted command or unit failed";

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// How a run's outcome is told.
    pub const fn of_outcome(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Opened(_) | Outcome::Looked => Self::Done,
            // `restart` takes it for what it is: the service is back.
            Outcome::StillBusy { .. } | Outcome::Respawned(_) => Self::StillBusy,
            Outcome::Unknown(_) => Self::Unknown,
            Outcome::Refused(_) => Self::Refused,
            Outcome::Duel(_) => Self::Duel,
            Outcome::NotPermitted(_) | Outcome::CannotSignal(..) | Outcome::CannotEvict(_) => {
                Self::NotPermitted
            }
        }
    }

    /// How the verdicts of a look are told.
    pub fn of_verdicts(verdicts: &[Verdict]) -> Self {
        match overall(verdicts) {
            Verdict::Free => Self::Done,
            Verdict::Busy { .. } => Self::StillBusy,
            Verdict::Unknown { .. } => Self::Unknown,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// How a failure of the guard itself is told: it says nothing about the port.
pub(super) fn of_error(error: &anyhow::Error) -> Exit {
    if error.is::<UsageError>() {
        return Exit::Usage;
    }
    if let Some(error) = error.downcast_ref::<NetnsError>() {
        return match error {
            NetnsError::Missing { .. } | NetnsError::NotANetns { .. } => Exit::Usage,
            NetnsError::Denied { .. } => Exit::NotPermitted,
            NetnsError::Failed { .. } => Exit::Unknown,
        };
    }
    if let Some(error) = error.downcast_ref::<SystemdError>() {
        return super::restart_unit::exit_of_error(error);
    }
    if matches!(error.downcast_ref::<EvictError>(), Some(EvictError::Denied(_))) {
        return Exit::NotPermitted;
    }
    match error.downcast_ref::<RuntimeError>() {
        Some(RuntimeError::Tier(error)) if error.is_denied() => Exit::NotPermitted,
        _ => Exit::Unknown,
    }
}

/// Arguments that only turn out to be wrong after parsing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct UsageError(pub(super) String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_table_and_the_readme_have_a_row_per_code() {
        let readme = include_str!("../../../README.md");
        let all = [
            Exit::Done,
            Exit::StillBusy,
            Exit::Usage,
            Exit::Unknown,
            Exit::Refused,
            Exit::Duel,
            Exit::NotPermitted,
            Exit::CommandFailed,
        ];
        for (number, exit) in all.into_iter().enumerate() {
            assert_eq!(usize::from(exit.code()), number);
            assert!(TABLE.contains(&format!("\n  {number}  ")), "help: {number}");
            assert!(readme.contains(&format!("\n| {number} | ")), "README: {number}");
        }
    }
}
