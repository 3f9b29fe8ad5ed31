//! Runs a command and sees each of its system calls go in and come out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A system call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 3],
    /// The caller's stack pointer.
    pub(crate) stack: u64,
}

/// The memory of the process that makes a call.
#[derive(Debug)]
pub(crate) struct Memory(File);

impl Memory {
    fn of(task: Pid) -> Result<Self> {
        let file = File::options().read(true).write(true).open(format!("/proc/{task}/mem"));
        Ok(Self(file.context("open the memory of a traced process")?))
    }

    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(bytes, address).context("read the memory of a traced process")
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.0.write_all_at(bytes, address).context("write to the memory of a traced process")
    }
}

/// Who looks at the calls.
pub(crate) trait Observer {
    /// Before a call is made; an error number instead of making it.
    fn enters(&mut self, memory: &Memory, call: &Call) -> Result<Option<Errno>>;
    /// After it was made.
    fn left(&mut self, memory: &Memory, call: &Call, result: i64) -> Result<()>;
    /// Whether this call is looked at.
    fn wants(&self, number: i64) -> bool;
}

/// A call that is under way.
struct Pending {
    call: Call,
    refused: Option<Errno>,
}

/// Runs the command to its end and returns what it printed.
pub(crate) fn run(mut command: Command, observer: &mut dyn Observer) -> Result<String> {
    let mut printed = tempfile::tempfile().context("a file for what is printed")?;
    command.stdin(Stdio::null()).stdout(printed.try_clone().context("share a file")?);
    // SAFETY: ptrace(PTRACE_TRACEME) is async-signal-safe and all that runs between fork and exec.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = command.spawn().with_context(|| format!("start {command:?}"))?;
    let first = Pid::from_raw(child.id().cast_signed());
    waitpid(first, None).context("wait for the start")?;
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(first, options).context("trace a process")?;
    ptrace::syscall(first, None).context("let a traced process go")?;
    let mut pending: BTreeMap<Pid, Pending> = BTreeMap::new();
    loop {
        let (task, signal) = match waitpid(None, Some(WaitPidFlag::__WALL)).context("wait for a stop")? {
            WaitStatus::Exited(task, 0) if task == first => break,
            WaitStatus::Exited(task, code) if task == first => bail!("{command:?} ended with {code}"),
            WaitStatus::Signaled(task, signal, _) if task == first => bail!("{command:?}: {signal}"),
            WaitStatus::PtraceSyscall(task) => {
                stopped(task, &mut pending, observer)?;
                (task, None)
            }
            WaitStatus::PtraceEvent(task, ..) | WaitStatus::Stopped(task, Signal::SIGSTOP) => (task, None),
            WaitStatus::Stopped(task, signal) => (task, Some(signal)),
            _ => continue,
        };
        match ptrace::syscall(task, signal) {
            // Somebody else of its thread group has ended it meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => bail!("let a traced process go: {errno}"),
        }
    }
    let mut text = String::new();
    printed.rewind().context("read what was printed")?;
    printed.read_to_string(&mut text).context("read what was printed")?;
    Ok(text)
}

/// A task is at one of its calls' ends.
fn stopped(task: Pid, pending: &mut BTreeMap<Pid, Pending>, observer: &mut dyn Observer) -> Result<()> {
    let mut registers = ptrace::getregs(task).context("read the registers of a traced process")?;
    if let Some(Pending { call, refused }) = pending.remove(&task) {
        if let Some(errno) = refused {
            registers.rax = i64::from(-(errno as i32)).cast_unsigned();
            ptrace::setregs(task, registers).context("answer a traced process")?;
        }
        if observer.wants(call.number) {
            observer.left(&Memory::of(task)?, &call, registers.rax.cast_signed())?;
        }
        return Ok(());
    }
    let call = Call {
        number: registers.orig_rax.cast_signed(),
        arguments: [registers.rdi, registers.rsi, registers.rdx],
        stack: registers.rsp,
    };
    let refused =
        if observer.wants(call.number) { observer.enters(&Memory::of(task)?, &call)? } else { None };
    if refused.is_some() {
        // No system call has this number.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(task, registers).context("hinder a traced process")?;
    }
    pending.insert(task, Pending { call, refused });
    Ok(())
}
