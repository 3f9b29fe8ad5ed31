//! Exit codes: one enum, documented by one table in the README.

use std::process::ExitCode;

use crate::client::ClientError;
pub use crate::report::Exit;
use crate::runtime::asker::EvictError;
use crate::runtime::daemon::UnixSocketError;
use crate::runtime::netns::NetnsError;
use crate::runtime::{RuntimeError, SystemdError};

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
        return Exit::of_systemd(error);
    }
    if matches!(error.downcast_ref::<EvictError>(), Some(EvictError::Denied(_))) {
        return Exit::NotPermitted;
    }
    if matches!(error.downcast_ref::<ClientError>(), Some(ClientError::Denied { .. })) {
        return Exit::NotPermitted;
    }
    if error.downcast_ref::<UnixSocketError>().is_some_and(UnixSocketError::is_denied) {
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
