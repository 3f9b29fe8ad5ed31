//! Runs the commands, and takes in what they leave behind, as PID 1 must.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guard_tests::process::PidFd;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Report;
use crate::manifest::Step;

/// Runs one step to its end or its limit. A command that fails is part of the report, not an error.
pub(crate) fn run(report: &mut Report, step: &Step) -> Result<()> {
    report.say(&format!("begin {}", step.name));
    let began = Instant::now();
    let how = match start(report, step) {
        Ok(pid) => finish(pid, step.limit)?,
        Err(error) => format!("never started: {error:#}"),
    };
    if let Some(path) = &step.collect {
        // A file that was never made has no lines.
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            report.say(&format!("line {line}"));
        }
        let _absent = std::fs::remove_file(path);
    }
    report.say(&format!("end {:.1} {how}", began.elapsed().as_secs_f64()));
    Ok(())
}

fn start(report: &Report, step: &Step) -> Result<Pid> {
    let [program, arguments @ ..] = &step.command[..] else { anyhow::bail!("a step without a command") };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(step.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(report.to_child()?)
        .stderr(report.to_child()?);
    let without = step.without.clone();
    // SAFETY: prctl and setsid are async-signal-safe and all that runs between fork and exec.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            for &capability in &without {
                Errno::result(nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, capability, 0, 0, 0))?;
            }
            Ok(())
        });
    }
    let child = command.spawn().with_context(|| format!("start {program}"))?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Everything that is orphaned comes to PID 1, so all are waited for until the step itself has ended.
fn finish(step: Pid, limit: Duration) -> Result<String> {
    let pidfd = PidFd::open(step.as_raw()).context("a pidfd of the step")?;
    let late = !pidfd.ended_within(limit);
    if late {
        pidfd.signal(Signal::SIGKILL);
    }
    let ended = loop {
        match waitpid(None, None).context("wait for the step")? {
            WaitStatus::Exited(pid, code) if pid == step => break ExitStatus::from_raw(code << 8),
            WaitStatus::Signaled(pid, signal, _) if pid == step => {
                break ExitStatus::from_raw(signal as i32);
            }
            _ => {}
        }
    };
    Ok(if late { format!("late, killed after {} s", limit.as_secs()) } else { ended.to_string() })
}

/// The next step begins on an empty machine. For PID 1 alone to call.
pub(crate) fn end_the_rest() {
    // Nobody there is what is wanted.
    let _nobody = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while waitpid(None, Some(WaitPidFlag::__WALL)).is_ok() {}
}
