//! Child processes that cannot outlive their test.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lines::Lines;
use crate::process::{PidFd, Proc, tasks};

/// Read while a process is made. Between fork and exec it has every descriptor of this one, also those
/// of other tests: a socket that was closed meanwhile still has its port. Whoever must not have that
/// holds it for writing.
pub(crate) static FORKING: RwLock<()> = RwLock::new(());

/// Makes a process. Every test makes its processes with this, [`output`] or [`status`] (`clippy.toml` sees to
/// it), or with [`Child`].
///
/// # Errors
/// As [`Command::spawn`].
#[expect(clippy::disallowed_methods, reason = "this is where it happens")]
pub fn spawn(command: &mut Command) -> io::Result<std::process::Child> {
    let _forking = FORKING.read().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// As [`Command::output`]: without a standard input, both outputs kept.
///
/// # Errors
/// When it cannot be started.
pub fn output(command: &mut Command) -> io::Result<Output> {
    spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}

/// As [`Command::status`]: with the standard streams of the caller.
///
/// # Errors
/// When it cannot be started.
pub fn status(command: &mut Command) -> io::Result<ExitStatus> {
    spawn(command)?.wait()
}

/// A child process. It is killed when this is dropped, and when the thread
/// that started it dies.
#[derive(Debug)]
pub struct Child {
    /// Name for messages.
    pub name: String,
    /// Who it is.
    pub id: Proc,
    /// What it writes to stdout.
    pub stdout: Lines,
    /// What it writes to stderr.
    pub stderr: Lines,
    pidfd: PidFd,
    inner: std::process::Child,
    // Not left in `inner`, whose wait() would close it: children of this child may go on without it.
    _leash: std::process::ChildStdin,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts `command` with all three standard streams piped. Its standard input
    /// stays open for as long as this lives: stand-ins take its end as the end of the test.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start(command: Command, name: &str) -> Self {
        Self::start_by(command, name, spawn)
    }

    /// As [`Child::start`], with `spawn` around the moment at which the process is made.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start_by(
        mut command: Command,
        name: &str,
        spawn: impl FnOnce(&mut Command) -> std::io::Result<std::process::Child>,
    ) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe and is all that runs between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut inner =
            spawn(&mut command).unwrap_or_else(|error| panic!("start {name} as {command:?}: {error}"));
        let pid = inner.id().cast_signed();
        Self {
            name: name.to_owned(),
            // It is our child: until we wait for it, its PID is its own, even when it is a zombie.
            id: Proc::of(pid).expect("a child's /proc/PID/stat"),
            stdout: Lines::read(inner.stdout.take().expect("a piped stdout")),
            stderr: Lines::read(inner.stderr.take().expect("a piped stderr")),
            pidfd: PidFd::open(pid).expect("a child's pidfd"),
            _leash: inner.stdin.take().expect("a piped stdin"),
            inner,
            status: None,
        }
    }

    /// Any of its threads still runs.
    pub fn alive(&self) -> bool {
        self.id.alive()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.pidfd.signal(signal);
    }

    /// Whether it ended within `deadline`; an event, not a poll, wakes the caller.
    pub fn ends_within(&self, deadline: Duration) -> bool {
        self.status.is_some() || self.pidfd.ended_within(deadline)
    }

    /// How it ended.
    ///
    /// # Panics
    /// When it has not within `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        assert!(
            self.pidfd.ended_within(deadline),
            "{} still runs after {deadline:?}\n{}\n{}",
            self.name,
            tasks(self.id.pid),
            self.said()
        );
        let status = self.inner.wait().expect("wait for a child");
        self.status = Some(status);
        status
    }

    /// The signal that ended it, `None` for a normal exit.
    ///
    /// # Panics
    /// When it has not ended within [`crate::DEADLINE`].
    pub fn killed_by(&mut self) -> Option<Signal> {
        let signal = self.wait(crate::DEADLINE).signal()?;
        Some(Signal::try_from(signal).expect("a signal number"))
    }

    /// All it wrote, for messages.
    pub fn said(&self) -> String {
        format!(
            "--- stdout of {0}\n{1}\n--- stderr of {0}\n{2}",
            self.name,
            self.stdout.so_far().join("\n"),
            self.stderr.so_far().join("\n")
        )
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.pidfd.signal(Signal::SIGKILL);
            // It is ours and was killed: waiting fails only if it was reaped already.
            let _reaped = self.inner.wait();
        }
    }
}
