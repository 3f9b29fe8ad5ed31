//! Ending processes, as the kernel allows it.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use guard_tests::process::PidFd;
use guard_tests::{Cgroup, Proc};
use nix::sys::signal::Signal;

/// Far longer than an end takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// Ends a process through its pidfd.
pub(crate) fn signal_by_pidfd() -> Result<(), String> {
    with_sleeper(|_, pidfd| {
        pidfd.signal(Signal::SIGTERM);
        Ok(())
    })
}

/// Ends everybody in a cgroup by one word.
pub(crate) fn kill_cgroup() -> Result<(), String> {
    let cgroup = Cgroup::new("killed.service")?;
    with_sleeper(|sleeper, _| {
        cgroup.take_in(sleeper);
        let file = cgroup.kill_file();
        fs::write(&file, "1").map_err(|error| format!("{}: {error}", file.display()))
    })
}

/// Whether what is done to a sleeping process ends it.
fn with_sleeper(end: impl FnOnce(Proc, &PidFd) -> Result<(), String>) -> Result<(), String> {
    let mut child = Command::new("sleep").arg("1000").spawn().map_err(|error| format!("sleep: {error}"))?;
    let ended = ended(&child, end);
    // It may have ended already, which is what is asked for.
    let _gone = child.kill();
    child.wait().map_err(|error| format!("wait: {error}"))?;
    ended
}

fn ended(child: &Child, end: impl FnOnce(Proc, &PidFd) -> Result<(), String>) -> Result<(), String> {
    let sleeper = Proc::of(child.id().cast_signed()).ok_or("the process is gone")?;
    let pidfd = PidFd::open(sleeper.pid).ok_or("pidfd_open fails")?;
    end(sleeper, &pidfd)?;
    if pidfd.ended_within(DEADLINE) { Ok(()) } else { Err("the process lives on".to_owned()) }
}
