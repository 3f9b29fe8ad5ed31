//! Many processes with many descriptors, in the cell: what somebody has to look through who looks for an owner.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use anyhow::{Context, Result};
use guard_tests::DEADLINE;
use guard_tests::child::Child;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, fork, pause};

use crate::cell::Cell;

/// The argument that makes this program a crowd.
pub(crate) const CROWD: &str = "crowd-in-the-cell";

/// Besides the three standard streams.
const DESCRIPTORS: usize = 57;

/// Starts so many processes and waits until they have their descriptors.
pub(crate) fn start(cell: &Cell, size: usize) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("find my own executable")?);
    command.arg(CROWD).arg(size.to_string());
    let crowd = cell.start(command, "the crowd");
    crowd
        .stdout
        .wait_for(DEADLINE, |line| (line == "ready").then_some(()))
        .with_context(|| format!("the crowd never gathered\n{}", crowd.said()))?;
    Ok(crowd)
}

/// Forks `size` children that inherit sockets and files in equal parts, and waits.
pub(crate) fn gather(size: usize) -> Result<()> {
    let sockets: Vec<_> =
        (0..DESCRIPTORS / 2).map(|_| UnixDatagram::unbound().context("a socket")).collect::<Result<_>>()?;
    let files: Vec<_> = (0..DESCRIPTORS - sockets.len())
        .map(|_| File::open("/dev/null").context("open /dev/null"))
        .collect::<Result<_>>()?;
    for _ in 0..size {
        // SAFETY: this process has no other thread, so the child may do whatever its parent may.
        if let ForkResult::Child = unsafe { fork() }.context("fork")? {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("end with the crowd")?;
            loop {
                pause();
            }
        }
    }
    println!("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).context("wait for the end of stdin")?;
    drop((sockets, files));
    Ok(())
}
