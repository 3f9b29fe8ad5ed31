//! A PID namespace for the stand-ins and for the tools that portguard is compared with.
//!
//! Those tools kill whoever they find on a port. In the cell they find nobody but stand-ins.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use guard_tests::child::{Child, spawn};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};

/// An argument of `mount()` that is left out.
const NOTHING: Option<&str> = None;

/// The namespace; everybody in it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Cell {
    outside: File,
    pids: File,
    mounts: File,
    _init: Child,
}

impl Cell {
    /// Makes one, with a `/proc` that shows its own processes only.
    pub(crate) fn new() -> Result<Self> {
        let outside = File::open("/proc/self/ns/pid").context("open my own PID namespace")?;
        let mut command = Command::new(std::env::current_exe().context("find my own executable")?);
        command.arg(INIT);
        // SAFETY: only system calls run between fork and exec; all of them are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
                Ok(mount(NOTHING, "/proc", Some("proc"), MsFlags::empty(), NOTHING)?)
            });
        }
        let init = Child::start_by(command, "init of the cell", |command| {
            // The next process that this thread makes is PID 1 there.
            unshare(CloneFlags::CLONE_NEWPID)?;
            let init = spawn(command);
            setns(&outside, CloneFlags::CLONE_NEWPID)?;
            init
        });
        let open = |what: &str| {
            let path = format!("/proc/{}/ns/{what}", init.id.pid);
            File::open(&path).with_context(|| format!("open {path}"))
        };
        Ok(Self { outside, pids: open("pid")?, mounts: open("mnt")?, _init: init })
    }

    /// Starts `command` inside.
    pub(crate) fn start(&self, mut command: Command, name: &str) -> Child {
        let mounts = self.mounts.as_raw_fd();
        // SAFETY: setns is async-signal-safe, and the descriptor is open for as long as `self` lives.
        unsafe {
            command.pre_exec(move || Ok(setns(BorrowedFd::borrow_raw(mounts), CloneFlags::CLONE_NEWNS)?));
        }
        Child::start_by(command, name, |command| {
            // Only for the processes that this thread makes, and a thread cannot be made meanwhile.
            setns(&self.pids, CloneFlags::CLONE_NEWPID)?;
            let child = spawn(command);
            setns(&self.outside, CloneFlags::CLONE_NEWPID)?;
            child
        })
    }
}

/// The argument that makes this program the cell's PID 1.
pub(crate) const INIT: &str = "init-of-the-cell";

/// PID 1 of the cell: orphans come to it and are forgotten. Ends with its standard input.
pub(crate) fn init() -> Result<()> {
    // SAFETY: SIG_IGN runs no code of this process. Ignored, SIGCHLD leaves no zombies.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.context("ignore SIGCHLD")?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).context("wait for the end of stdin")?;
    Ok(())
}
