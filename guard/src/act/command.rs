//! Starting the service by a command line.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::ExitStatus;

use guard_core::model::{ProcessId, Signal, Tgid};
use tokio::process::Child;
use tracing::{debug, warn};

use crate::kernel::pidfd::{PidFd, PidFdError};
use crate::kernel::procfs;

/// The command that was asked for could not be run.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It did not start.
    #[error("cannot start {program:?}: {source}")]
    Start {
        /// The program, as given.
        program: OsString,
        /// What the system said.
        source: io::Error,
    },
    /// Its end could not be waited for.
    #[error("cannot wait for {program:?}: {source}")]
    Wait {
        /// The program, as given.
        program: OsString,
        /// What the system said.
        source: io::Error,
    },
    /// There is no program to run.
    #[error("no command was given after --")]
    Empty,
}

/// A command in the foreground: it has the guard's terminal, and its output is
/// untouched.
#[derive(Debug)]
pub struct Command {
    program: OsString,
    child: Child,
    /// `None` where the kernel has no pidfds, or there was no descriptor left for one.
    pidfd: Option<PidFd>,
}

impl Command {
    /// Starts it.
    pub fn start(argv: &[OsString]) -> Result<Self, CommandError> {
        Self::start_without(argv, &[])
    }

    /// Starts it without these variables in its environment.
    pub fn start_without(argv: &[OsString], variables: &[&str]) -> Result<Self, CommandError> {
        let (program, arguments) = argv.split_first().ok_or(CommandError::Empty)?;
        let mut command = tokio::process::Command::new(program);
        for variable in variables {
            command.env_remove(variable);
        }
        let child = command
            .args(arguments)
            .spawn()
            .map_err(|source| CommandError::Start { program: program.clone(), source })?;
        let pidfd = child.id().and_then(|pid| pidfd_of(pid).ok());
        Ok(Self { program: program.clone(), child, pidfd })
    }

    /// Its PID, until it has been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Passes SIGTERM on to it. Nothing happens once it has ended.
    pub fn terminate(&self) {
        let Some(pid) = self.pid() else { return };
        let told = match &self.pidfd {
            Some(pidfd) => pidfd.signal(Signal::Term),
            // There may be a descriptor for it by now.
            None => pidfd_of(pid).and_then(|pidfd| pidfd.signal(Signal::Term)),
        };
        match told {
            Ok(()) => {}
            Err(PidFdError::Gone(_)) => debug!(pid, "the command has ended already"),
            Err(error) => {
                warn!("the command is still running, and was not asked to end: {error}; try: kill {pid}")
            }
        }
    }

    /// Waits for its end. Cancel safe.
    pub async fn wait(&mut self) -> Result<ExitStatus, CommandError> {
        let program = self.program.clone();
        self.child.wait().await.map_err(|source| CommandError::Wait { program, source })
    }
}

/// A child that was not waited for keeps its number, so this is that child.
fn pidfd_of(pid: u32) -> Result<PidFd, PidFdError> {
    let tgid = Tgid(pid);
    let unknown =
        |error| PidFdError::Failed { operation: "identifying", tgid, source: io::Error::other(error) };
    let start = procfs::start_time(tgid).map_err(unknown)?.ok_or(PidFdError::Gone(tgid))?;
    PidFd::open(ProcessId { tgid, start })
}

/// Replaces the guard by the command; returns only when that fails.
pub fn replace(argv: &[OsString]) -> CommandError {
    let Some((program, arguments)) = argv.split_first() else { return CommandError::Empty };
    let source = std::process::Command::new(program).args(arguments).exec();
    CommandError::Start { program: program.clone(), source }
}
