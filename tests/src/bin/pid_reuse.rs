//! A PID namespace in which numbers are soon used again, and a portguard in it.
//!
//! `pid_reuse` moves to new namespaces and starts itself in them as PID 1; that one plays the
//! scenario and exits with 0 when the recycled PID has survived. It is a program of its own
//! because a process's PID namespace is only that of its children.

#![expect(clippy::disallowed_methods, reason = "a process of its own, in which no test runs")]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guard_tests::netns::Netns;
use guard_tests::standin::Plan;
use guard_tests::{DEADLINE, Portguard, Proc, Standin, Tier, wait_until};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const INSIDE: &str = "inside";

/// The smallest that the kernel takes is 301.
const PID_MAX: &str = "400";

/// How often the number is aimed at: another process may be faster.
const ATTEMPTS: u32 = 50;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().unwrap_or_default();
    let played =
        if first == INSIDE { play(&arguments.next().unwrap_or_default()) } else { go_inside(&first) };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn go_inside(tier: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).context("new PID and mount namespaces")?;
    let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
    command.args([INSIDE, tier]);
    // SAFETY: mount() is a system call and nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let nothing: Option<&str> = None;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), nothing)?;
            Ok(())
        });
    }
    let status = command.status().context("start PID 1")?;
    ensure!(status.success(), "inside: {status}");
    Ok(())
}

fn play(tier: &str) -> Result<()> {
    ensure!(std::process::id() == 1, "not PID 1");
    // Since Linux 6.14 this is the namespace's own; before, it is the machine's and stays as it is.
    let own_limit = own_pid_max();
    if own_limit {
        std::fs::write("/proc/sys/kernel/pid_max", PID_MAX).context("set pid_max")?;
    }
    let netns = Netns::enter()?;
    let tier = Tier::ALL.into_iter().find(|known| known.name() == tier).context("a tier")?;
    let port = netns.free_port();

    // One that goes at once, and one that keeps the run alive until its drain budget is over.
    let mut first = gateway("--on-term exit", port);
    let stubborn = gateway("--on-term hang", port);
    let run = Portguard::new("free", tier)
        .arg("--port")
        .arg(&port.to_string())
        .address("127.0.0.1")
        .matching("--tag gateway")
        .drain("4s")
        .timeout("30s")
        .start();
    run.sent("SIGTERM", first.id());
    first.child.wait(DEADLINE);
    let gone = first.id();
    // Its number, its looks, its port: everything but the start time.
    let recycled = recycle(gone.pid, port)?;
    ensure!(recycled.id().pid == gone.pid && recycled.id().start != gone.start, "not recycled");
    let finished = run.finish();
    ensure!(
        finished.signals_to(stubborn.id()) == ["SIGTERM", "SIGKILL"],
        "the run went on to its end\n{finished}"
    );
    ensure!(finished.signals_to(recycled.id()).is_empty(), "signalled\n{finished}");
    ensure!(recycled.all_alive() && !recycled.termed(), "the recycled PID was ended\n{finished}");
    println!("PID {} was used again (own pid_max: {own_limit}) and survived", gone.pid);
    Ok(())
}

/// Whether `pid_max` belongs to this namespace: the machine's is far above 400 all the same, so
/// the kernel's version tells.
fn own_pid_max() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(14))
}

fn gateway(arguments: &str, port: u16) -> Standin {
    let words = format!("--tag gateway --reuseport {arguments}");
    Plan::new(words.split_whitespace()).listen("127.0.0.1", port).start()
}

/// Starts a gateway that gets this number.
fn recycle(pid: i32, port: u16) -> Result<Standin> {
    for _ in 0..ATTEMPTS {
        // Reaped by now; the number is free.
        ensure!(wait_until(Duration::from_secs(5), || Proc::of(pid).is_none()), "PID {pid} stays");
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
            .context("write ns_last_pid (CONFIG_CHECKPOINT_RESTORE)")?;
        let standin = gateway("--on-term exit", port);
        if standin.id().pid == pid {
            return Ok(standin);
        }
    }
    anyhow::bail!("PID {pid} was not given away in {ATTEMPTS} attempts")
}
