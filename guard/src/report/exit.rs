//! How a command or a run ended: one number, documented by one table in the README.

use guard_core::gate::Outcome;
use guard_core::model::Verdict;

use super::overall;

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
