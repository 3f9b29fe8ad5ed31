use std::fmt;

use super::{ProcessId, Tgid, Uid, UnitId};

/// Something the guard tried to read about a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// It was read.
    Known(T),
    /// The guard may not read it (other user, hidepid, no `CAP_SYS_PTRACE`).
    Hidden,
    /// There is none: a kernel thread has no executable, a zombie no argv.
    Absent,
}

impl<T> Seen<T> {
    /// The value, when it was read.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Hidden | Self::Absent => None,
        }
    }
}

/// The state letter of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// `R`
    Running,
    /// `S`, `I`
    Sleeping,
    /// `D`: in the kernel and not killable until it leaves.
    Uninterruptible,
    /// `T`: stopped by a signal.
    Stopped,
    /// `t`: stopped by a tracer.
    Traced,
    /// `Z`: the thread group leader is dead and waits to be reaped. Other
    /// threads, and with them the sockets, may still be alive.
    Zombie,
    /// `X` or `x`.
    Dead,
    /// A letter this version does not know.
    Other(char),
}

/// One process as the evidence for a decision shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Thread group id and start time.
    pub id: ProcessId,
    /// Parent, or `None` when it lies outside the PID namespace.
    pub parent: Option<Tgid>,
    /// The process group, by the number of its leader; `None` when it lies outside the PID
    /// namespace.
    pub group: Option<Tgid>,
    /// Effective user id.
    pub uid: Uid,
    /// At most 15 bytes; any process may set it.
    pub comm: String,
    /// Target of `/proc/PID/exe` without the kernel's " (deleted)" suffix.
    pub exe: Seen<String>,
    /// The executable file was unlinked or replaced since the process started.
    pub exe_deleted: bool,
    /// Arguments as the process shows them; any process may overwrite them.
    pub argv: Seen<Vec<String>>,
    /// Path in the cgroup v2 hierarchy, else in systemd's named v1 hierarchy.
    pub cgroup: Option<String>,
    /// The kernel's own thread: it has no address space and no signal ends it.
    pub kernel_thread: bool,
    /// State letter of the thread group leader.
    pub state: ProcessState,
    /// Kernel function the leader sleeps in, where the kernel shows it.
    pub wait_channel: Option<String>,
}

/// Somebody above a process that the evidence is about: who started it, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Thread group id and start time.
    pub id: ProcessId,
    /// Its own parent, or `None` when that lies outside the PID namespace.
    pub parent: Option<Tgid>,
    /// At most 15 bytes; any process may set it.
    pub comm: String,
}

impl From<&Process> for Ancestor {
    fn from(process: &Process) -> Self {
        Self { id: process.id, parent: process.parent, comm: process.comm.clone() }
    }
}

impl Process {
    /// The systemd unit that its cgroup belongs to.
    pub fn unit(&self) -> Option<UnitId> {
        UnitId::of_cgroup(self.cgroup.as_deref()?)
    }

    /// Nobody starts it again when it ends: it is in a login session, in a scope
    /// that a terminal or `systemd-run` made, or in the root cgroup. A container's
    /// scope is none of those, nor is a cgroup whose name says nothing.
    pub fn is_unsupervised(&self) -> bool {
        // In doubt somebody has it in hand.
        let Some(path) = self.cgroup.as_deref() else { return false };
        if path == "/" {
            return true;
        }
        UnitId::of_cgroup(path).is_some_and(|unit| {
            let name = unit.name.as_str();
            let by_hand = ["session-", "run-", "app-", "tmux-spawn-", "vte-spawn-"];
            let manager = name.starts_with("user@") && path.ends_with("/init.scope");
            manager || (name.ends_with(".scope") && by_hand.iter().any(|prefix| name.starts_with(prefix)))
        })
    }

    /// The title that the process has written over its arguments: one word or
    /// one line that is not how its executable was called.
    pub fn title(&self) -> Option<&str> {
        let [title] = self.argv.known()?.as_slice() else { return None };
        let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
        let called_as_its_exe = self.exe.known().is_some_and(|exe| name(exe) == name(title));
        (!called_as_its_exe && !title.starts_with('/')).then_some(title)
    }
}

/// The only signals portguard ever sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// `SIGTERM`
    Term,
    /// `SIGKILL`
    Kill,
    /// `SIGCONT`, after SIGTERM and only to a process that is stopped: it acts
    /// on no other signal but SIGKILL until it goes on.
    Continue,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Term => "SIGTERM",
            Self::Kill => "SIGKILL",
            Self::Continue => "SIGCONT",
        })
    }
}

/// How a thread group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// `exit(code)`
    Code(u8),
    /// Ended by this signal number.
    Signal {
        /// Signal number as in `signal(7)`.
        number: u8,
        /// A core file was written.
        core_dumped: bool,
    },
    /// Ended by SIGKILL that this run did not send, or in a way that nobody told, while its memory
    /// cgroup counted a victim of the OOM killer.
    OutOfMemory,
}

impl ExitStatus {
    /// Decodes the status word of `wait(2)`, which is also the kernel's
    /// `task_struct.exit_code`.
    pub const fn from_wait_status(status: i32) -> Self {
        let number = (status & 0x7f) as u8;
        if number == 0 {
            Self::Code(((status >> 8) & 0xff) as u8)
        } else {
            Self::Signal { number, core_dumped: status & 0x80 != 0 }
        }
    }

    /// This signal ended it.
    pub const fn is_by(self, signal: u8) -> bool {
        matches!(self, Self::Signal { number, .. } if number == signal)
    }

    /// The name of a signal that usually ends servers, by its number on all of
    /// Linux's architectures but alpha, mips, parisc and sparc for the last few.
    pub const fn signal_name(number: u8) -> Option<&'static str> {
        Some(match number {
            1 => "SIGHUP",
            2 => "SIGINT",
            3 => "SIGQUIT",
            4 => "SIGILL",
            5 => "SIGTRAP",
            6 => "SIGABRT",
            8 => "SIGFPE",
            9 => "SIGKILL",
            11 => "SIGSEGV",
            13 => "SIGPIPE",
            14 => "SIGALRM",
            15 => "SIGTERM",
            7 => "SIGBUS",
            24 => "SIGXCPU",
            31 => "SIGSYS",
            _ => return None,
        })
    }
}
