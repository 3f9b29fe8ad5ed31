//! What the stand-in does once it is ready, and how it ends.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::json;

use crate::crowd;
use crate::options::{OnTerm, Size};
use crate::say;
use crate::sockets::{self, Bound, Held};

/// Prepares for SIGTERM before any thread starts: every thread inherits this mask.
pub(crate) fn choose_signals(on_term: OnTerm, default_action: bool) -> Result<()> {
    // SAFETY: SIG_IGN and SIG_DFL run no code of this process.
    unsafe {
        let handler = if on_term == OnTerm::Ignore {
            nix::sys::signal::SigHandler::SigIgn
        } else {
            nix::sys::signal::SigHandler::SigDfl
        };
        nix::sys::signal::signal(Signal::SIGTERM, handler).context("choose the action of SIGTERM")?;
    }
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    let how = if default_action { SigmaskHow::SIG_UNBLOCK } else { SigmaskHow::SIG_BLOCK };
    pthread_sigmask(how, Some(&term), None).context("mask SIGTERM")
}

/// Serves until SIGTERM, then does what `on_term` says.
pub(crate) fn until_told(
    mut listeners: Vec<Bound>,
    held: Vec<Held>,
    on_term: OnTerm,
    accept: bool,
) -> Result<ExitCode> {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    let signals =
        SignalFd::with_flags(&term, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;
    let mut connections: Vec<OwnedFd> = Vec::new();
    let mut end: Option<Instant> = None;
    loop {
        let mut watched = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if accept {
            watched
                .extend(listeners.iter().map(|listener| PollFd::new(listener.fd.as_fd(), PollFlags::POLLIN)));
        }
        match poll(&mut watched, remaining(end)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        let readable: Vec<bool> = watched.iter().map(|fd| fd.any() == Some(true)).collect();
        drop(watched);
        if end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        for (listener, _) in listeners.iter().zip(&readable[1..]).filter(|(_, readable)| **readable) {
            connections.extend(sockets::accept(listener));
        }
        if !matches!(signals.read_signal(), Ok(Some(_))) {
            continue;
        }
        say::line(&json!({ "standin": "term", "pid": std::process::id() }));
        match on_term {
            OnTerm::Exit => break,
            OnTerm::Ignore | OnTerm::Hang => {}
            OnTerm::CloseHang => listeners.clear(),
            OnTerm::Delay(span) => end = end.or(Some(Instant::now() + span)),
            OnTerm::CloseThen(span) => {
                listeners.clear();
                end = end.or(Some(Instant::now() + span));
            }
            OnTerm::Grow(most) => crowd::touch_memory(Size((most as usize) << 20)).context("grow")?,
            OnTerm::Successor => {
                listeners.clear();
                start_successor()?;
                break;
            }
        }
    }
    drop((listeners, connections, held));
    Ok(ExitCode::SUCCESS)
}

fn remaining(end: Option<Instant>) -> PollTimeout {
    let Some(end) = end else { return PollTimeout::NONE };
    // Rounded up: an early wake-up would only spin.
    let left = end.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// The same stand-in in a session of its own, which SIGTERM ends.
fn start_successor() -> Result<()> {
    let arguments = std::env::args_os().skip(1);
    let mut command = Command::new(std::env::current_exe().context("find my own executable")?);
    command.args(rewritten(arguments.map(|argument| argument.to_string_lossy().into_owned())));
    // SAFETY: setsid is async-signal-safe and is all that runs between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    command.spawn().context("start the successor")?;
    Ok(())
}

/// The successor's arguments: the same, but a polite end and another tag.
fn rewritten(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if matches!(argument.as_str(), "--on-term" | "--tag") {
            drop(arguments.next());
        } else if !argument.starts_with("--on-term=") && !argument.starts_with("--tag=") {
            kept.push(argument);
        }
    }
    kept.extend(["--tag".to_owned(), "successor".to_owned()]);
    kept
}

/// Runs `command` as a child and reports its output and exit code.
pub(crate) fn run_command(command: &[String]) -> Result<()> {
    let output = Command::new(&command[0])
        .args(&command[1..])
        .output()
        .with_context(|| format!("run {}", command[0]))?;
    say::line(&json!({
        "standin": "command_exited",
        "code": output.status.code(),
        "stdout": String::from_utf8_lossy(&output.stdout),
        "stderr": String::from_utf8_lossy(&output.stderr),
    }));
    Ok(())
}

/// A supervisor without mercy: starts its charge again the moment it ends.
pub(crate) fn supervise() -> Result<ExitCode> {
    crate::crowd::follow_leash();
    let me = std::env::current_exe().context("find my own executable")?;
    loop {
        let mut child = Command::new(&me)
            .args(std::env::args_os().skip(1).filter(|argument| argument != "--supervise"))
            .spawn()
            .context("start the supervised stand-in")?;
        say::line(&json!({ "standin": "supervised", "pid": child.id() }));
        child.wait().context("wait for the supervised stand-in")?;
    }
}
