//! Processes as `/proc` shows them.

use std::fmt;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// One process for its whole life: PID and start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proc {
    /// Thread group id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start: u64,
}

/// What a test looks at in `/proc/PID/stat`.
struct Stat {
    state: char,
    threads: u64,
    start: u64,
}

impl Proc {
    /// The process that has this PID now.
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, start: stat.start })
    }

    /// The process that has this PID now in the PID namespace that this `/proc` shows.
    pub fn of_in(proc: &Path, pid: i32) -> Option<Self> {
        stat_in(proc, pid).map(|stat| Self { pid, start: stat.start })
    }

    /// This process.
    ///
    /// # Panics
    /// When `/proc` is not mounted.
    pub fn me() -> Self {
        Self::of(std::process::id().cast_signed()).expect("read /proc/self/stat")
    }

    /// Any of its threads still runs. A zombie leader with live threads is alive:
    /// its sockets are still open.
    pub fn alive(&self) -> bool {
        self.alive_in(Path::new("/proc"))
    }

    /// The same, of a process of the PID namespace that this `/proc` shows.
    pub fn alive_in(&self, proc: &Path) -> bool {
        stat_in(proc, self.pid).is_some_and(|stat| {
            stat.start == self.start && (!matches!(stat.state, 'Z' | 'X' | 'x') || stat.threads > 1)
        })
    }

    /// Whether it was gone within `deadline`.
    pub fn gone_within(&self, deadline: Duration) -> bool {
        crate::wait_until(deadline, || !self.alive())
    }

    /// Waits until whatever starts has another start time: one clock tick (`_SC_CLK_TCK`) at most.
    ///
    /// # Panics
    /// When the clock stands still.
    pub fn ages(&self) {
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().expect("_SC_CLK_TCK");
        let tick = Duration::from_secs(1) / u32::try_from(per_second).expect("ticks per second");
        let now = || Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME"));
        let older = || now().as_nanos() / tick.as_nanos() > u128::from(self.start);
        assert!(crate::wait_until(crate::DEADLINE, older), "the clock stands still");
    }

    /// A descriptor that keeps meaning this process; `None` when it is gone.
    pub fn pidfd(&self) -> Option<PidFd> {
        let fd = PidFd::open(self.pid)?;
        // Looked at again: the PID may have been reused before it was opened.
        (stat(self.pid)?.start == self.start).then_some(fd)
    }
}

impl fmt::Display for Proc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start)
    }
}

/// A pidfd.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// `None` when no process has this PID.
    pub fn open(pid: i32) -> Option<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let raw = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
        let raw = i32::try_from(raw).ok().filter(|raw| *raw >= 0)?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        Some(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// Sends `signal`; a process that is gone already needs none.
    pub fn signal(&self, signal: Signal) {
        use std::os::fd::AsRawFd;
        // SAFETY: pidfd_send_signal with a null siginfo reads no memory of ours.
        let sent = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as i32,
                std::ptr::null::<nix::libc::siginfo_t>(),
                0,
            )
        };
        if let Err(errno) = Errno::result(sent) {
            assert_eq!(errno, Errno::ESRCH, "pidfd_send_signal");
        }
    }

    /// Whether the process ended within `deadline`.
    pub fn ended_within(&self, deadline: Duration) -> bool {
        let mut watched = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX);
        poll(&mut watched, timeout).is_ok_and(|ready| ready > 0)
    }
}

/// The first child of a process, that of its first thread.
pub fn only_child(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// What the threads of a process do, for messages: starved, asleep or held by the kernel.
pub fn tasks(pid: i32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let told = tasks.map(|task| {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (stat, wchan, schedstat, stack) = (read("stat"), read("wchan"), read("schedstat"), read("stack"));
        format!(
            "--- thread {}, waiting in {wchan}; on a processor, in line for it, times {}\n{stack}",
            stat.trim(),
            schedstat.trim()
        )
    });
    told.collect::<Vec<_>>().join("\n")
}

/// Takes the exit status of a process that this one inherited as its subreaper.
pub fn reap(pid: i32) {
    use nix::sys::wait::{WaitPidFlag, waitpid};
    // Somebody else's child, or taken already: then it is not ours to take.
    let _not_ours = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

fn stat(pid: i32) -> Option<Stat> {
    stat_in(Path::new("/proc"), pid)
}

fn stat_in(proc: &Path, pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
    // comm may contain spaces and parentheses: the last one closes it.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // The first field after comm is number 3.
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        state: field(3)?.chars().next()?,
        threads: field(20)?.parse().ok()?,
        start: field(22)?.parse().ok()?,
    })
}
