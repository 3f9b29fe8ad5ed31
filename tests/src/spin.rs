//! A thread that does nothing but `bind()`: the earliest anybody could know.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// `CLOCK_MONOTONIC` in nanoseconds, the clock of `mono_ns`.
///
/// # Panics
/// Never on Linux: the clock always exists.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC");
    u64::try_from(now.tv_sec()).expect("a time after boot") * 1_000_000_000
        + u64::try_from(now.tv_nsec()).expect("nanoseconds")
}

/// A processor set aside for the spinning thread.
#[derive(Clone, Copy, Debug)]
pub struct Processor(usize);

impl Processor {
    /// Moves the current thread, and what it starts from now on, away from one processor.
    /// `None` where there is no second one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_aside() -> nix::Result<Option<Self>> {
        let mut allowed = sched_getaffinity(MYSELF)?;
        let usable: Vec<usize> =
            (0..CpuSet::count()).filter(|&number| allowed.is_set(number).unwrap_or(false)).collect();
        let [_, .., last] = usable[..] else { return Ok(None) };
        allowed.unset(last)?;
        sched_setaffinity(MYSELF, &allowed)?;
        Ok(Some(Self(last)))
    }

    /// Takes it back: the current thread, and what it starts from now on, may run there again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_back(self) -> nix::Result<()> {
        let mut allowed = sched_getaffinity(MYSELF)?;
        allowed.set(self.0)?;
        sched_setaffinity(MYSELF, &allowed)
    }

    /// Takes it for the current thread: nobody but the kernel itself interrupts that one.
    ///
    /// # Panics
    /// When the kernel refuses; root may.
    fn occupy(self) {
        let mut only = CpuSet::new();
        only.set(self.0).expect("a processor's number");
        sched_setaffinity(MYSELF, &only).expect("sched_setaffinity");
        let priority = nix::libc::sched_param { sched_priority: 1 };
        // SAFETY: the parameter lives across the call.
        let set = unsafe { nix::libc::sched_setscheduler(0, nix::libc::SCHED_FIFO, &raw const priority) };
        Errno::result(set).expect("sched_setscheduler");
    }
}

/// The calling thread, to `sched_setaffinity`.
const MYSELF: Pid = Pid::from_raw(0);

/// A thread that spins on `bind()` with `SO_REUSEADDR`.
#[derive(Debug)]
pub struct Spinner {
    thread: JoinHandle<Option<Success>>,
    started: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

/// The first `bind()` that succeeded.
#[derive(Clone, Copy, Debug)]
pub struct Success {
    /// When it had succeeded, on [`now_ns`]'s clock.
    pub at_ns: u64,
    /// The time since the beginning of the failure before it. When it is more than a few microseconds, the
    /// thread was not running when the port became bindable, and `at_ns` says little.
    pub blind_ns: u64,
}

impl Spinner {
    /// Starts spinning on `address` in the network namespace of the current thread,
    /// on `processor` if one is set aside for it.
    pub fn start(address: SocketAddr, processor: Option<Processor>) -> Self {
        let (started, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (started_there, stop_there) = (Arc::clone(&started), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            if let Some(processor) = processor {
                processor.occupy();
            }
            spin(address, &started_there, &stop_there)
        });
        Self { thread, started, stop }
    }

    /// Whether its first attempt has failed, so that it is really spinning.
    pub fn spins(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Whether it has ended: with a success, or stopped.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its first success.
    ///
    /// # Panics
    /// When the thread did.
    pub fn first_success(self) -> Option<Success> {
        self.thread.join().expect("the spinning thread")
    }

    /// Stops it without a success.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn spin(address: SocketAddr, started: &AtomicBool, stop: &AtomicBool) -> Option<Success> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a TCP socket");
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    let name = SockaddrStorage::from(address);
    // When the last attempt that failed began: a thread is most often put off its processor on the
    // way out of a system call, before it could have looked at the clock again.
    let mut failed_at = now_ns();
    while !stop.load(Ordering::Relaxed) {
        let began_at = now_ns();
        // A socket whose bind() failed may try again.
        match socket::bind(fd.as_raw_fd(), &name) {
            Ok(()) => {
                let at_ns = now_ns();
                return Some(Success { at_ns, blind_ns: at_ns - failed_at });
            }
            Err(Errno::EADDRINUSE) => {
                failed_at = began_at;
                started.store(true, Ordering::Release);
            }
            Err(errno) => panic!("bind {address}: {errno}"),
        }
    }
    None
}
