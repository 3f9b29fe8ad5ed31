//! How a command or a run ended: one number, documented by one table in the README.

use guard_core::gate::Outcome;
use guard_core::model::Verdict;
use guard_core::restart::{Ahead, End, JobKind};

use super::overall;
use crate::runtime::SystemdError;

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

    /// The end that a number stands for.
    pub fn of_code(code: u8) -> Option<Self> {
        let all = [
            Self::Done,
            Self::StillBusy,
            Self::Usage,
            Self::Unknown,
            Self::Refused,
            Self::Duel,
            Self::NotPermitted,
            Self::CommandFailed,
        ];
        all.into_iter().find(|exit| exit.code() == code)
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

    /// How the end of a unit's restart is told.
    pub const fn of_restart(end: &End) -> Self {
        match end {
            End::Restarted(_) => Self::Done,
            End::NotBegun(Ahead::Refused(_)) => Self::Refused,
            End::NotBegun(Ahead::NotPermitted(_)) | End::JobRefused { denied: true, .. } => {
                Self::NotPermitted
            }
            End::NotBegun(Ahead::Unknown(_) | Ahead::Clear) | End::Lost(_) => Self::Unknown,
            End::NotStopped(_) | End::JobRefused { job: JobKind::Stop, .. } => Self::StillBusy,
            End::GateShut(outcome) => Self::of_outcome(outcome),
            End::NotStarted(_) | End::JobRefused { job: JobKind::Start, .. } | End::Died(_) | End::Silent => {
                Self::CommandFailed
            }
            End::Rival { .. } => Self::Duel,
        }
    }

    /// How a manager's refusal to be asked is told.
    pub fn of_systemd(error: &SystemdError) -> Self {
        match error {
            SystemdError::NoUnit { .. } | SystemdError::Malformed { .. } => Self::Usage,
            SystemdError::Denied { .. } => Self::NotPermitted,
            SystemdError::NoBus { source, .. } if source.is_denied() => Self::NotPermitted,
            SystemdError::NoBus { .. }
            | SystemdError::Failed { .. }
            | SystemdError::Late { .. }
            | SystemdError::Lost { .. } => Self::Unknown,
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
