//! For unit tests: a private network namespace per test, processes that do
//! nothing but hold descriptors, and honest skips.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use guard_core::model::{BindSpec, Port, ProcessId, SocketInode, TcpState, Tgid};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt,
    socket, sockopt,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use crate::kernel::sock_diag::SockDiag;

/// Longest that a test waits for a condition before it calls it a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// The machine lacks what `test` needs. `PORTGUARD_TEST_STRICT=1` turns that
/// into a failure; `PORTGUARD_TEST_SKIPS` names a file that collects skips.
pub(crate) fn skip(test: &str, reason: &str) {
    assert!(
        std::env::var_os("PORTGUARD_TEST_STRICT").is_none_or(|v| v != "1"),
        "{test} may not be skipped here, but: {reason}"
    );
    eprintln!("skipped {test}: {reason}");
    if let Some(path) = std::env::var_os("PORTGUARD_TEST_SKIPS") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
}

/// Whether the tests run as root; else `test` is noted as skipped.
pub(crate) fn root_or_skip(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}

/// All tests of a program share one descriptor table. A new process refers to
/// all of it for a moment at least, and so keeps the sockets open that other
/// tests have just closed: whoever starts one must be alone.
static STAGE: RwLock<()> = RwLock::new(());

/// No other test that holds sockets or starts processes is under way.
#[derive(Debug)]
pub(crate) struct Alone {
    _stage: RwLockWriteGuard<'static, ()>,
}

/// Waits for the others to leave.
pub(crate) fn alone() -> Alone {
    // A panic in one test is no matter for the next.
    Alone { _stage: STAGE.write().unwrap_or_else(PoisonError::into_inner) }
}

/// Runs `body` on a fresh thread in a fresh network namespace whose loopback
/// interface is up. The namespace dies with the thread and its sockets.
pub(crate) fn netns(test: &str, body: impl FnOnce() + Send + 'static) {
    on_own_stage(test, || {
        let _with_others = STAGE.read().unwrap_or_else(PoisonError::into_inner);
        body();
    });
}

/// As [`netns`], for a `body` that starts processes.
pub(crate) fn netns_alone(test: &str, body: impl FnOnce(&Alone) + Send + 'static) {
    on_own_stage(test, || body(&alone()));
}

fn on_own_stage(test: &str, body: impl FnOnce() + Send + 'static) {
    if !root_or_skip(test) {
        return;
    }
    let inside = thread::Builder::new().name(test.to_owned()).spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        raise_loopback();
        body();
    });
    if let Err(panic) = inside.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// `struct ifreq` of netdevice(7), as far as the flags need it.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

fn raise_loopback() {
    const SIOCGIFFLAGS: rustix::ioctl::Opcode = 0x8913;
    const SIOCSIFFLAGS: rustix::ioctl::Opcode = 0x8914;
    const IFF_UP: u16 = 1;
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let mut request = InterfaceFlags { name: [0; 16], flags: 0, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: the kernel reads and writes one `struct ifreq` of 40 bytes, which
    // `InterfaceFlags` lays out and outlives the call.
    unsafe { rustix::ioctl::ioctl(&any, rustix::ioctl::Updater::<SIOCGIFFLAGS, _>::new(&mut request)) }
        .unwrap();
    request.flags |= IFF_UP;
    // SAFETY: as above.
    unsafe { rustix::ioctl::ioctl(&any, rustix::ioctl::Updater::<SIOCSIFFLAGS, _>::new(&mut request)) }
        .unwrap();
}

/// A socket bound to `port`, or to a free one that the kernel chose.
///
/// It is always bound to the *number*: a socket that was bound to port 0 lacks
/// `SOCK_BINDPORT_LOCK`, and gives its port up earlier than a service's does
/// (already when its state becomes `TCP_CLOSE`).
pub(crate) fn bound(address: &str, port: Option<Port>, flags: Flags) -> (OwnedFd, Port) {
    if port.is_some() {
        return try_bound(address, port, flags).unwrap();
    }
    eventually("a free port", || {
        let (chosen, port) = try_bound(address, None, flags).unwrap();
        drop(chosen);
        // Outside of a private namespace somebody else may be faster.
        try_bound(address, Some(port), flags).ok()
    })
}

/// As [`bound`], with bind's own error.
pub(crate) fn try_bound(address: &str, port: Option<Port>, flags: Flags) -> nix::Result<(OwnedFd, Port)> {
    let address: IpAddr = address.parse().unwrap();
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &flags.reuse_address)?;
    setsockopt(&fd, sockopt::ReusePort, &flags.reuse_port)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &flags.v6only)?;
    }
    let wanted = SocketAddr::new(address, port.map_or(0, Port::get));
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(wanted))?;
    let port = local_port(&fd);
    Ok((fd, port))
}

/// As [`bound`], then `listen()`.
pub(crate) fn listening(address: &str, port: Option<Port>, flags: Flags) -> (OwnedFd, Port) {
    let (fd, port) = bound(address, port, flags);
    listen(&fd, Backlog::new(16).unwrap()).unwrap();
    (fd, port)
}

/// The port that `fd` is bound to.
pub(crate) fn local_port(fd: &OwnedFd) -> Port {
    let name: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(fd)).unwrap();
    let port = name.as_sockaddr_in().map(|a| a.port()).or(name.as_sockaddr_in6().map(|a| a.port()));
    Port::new(port.unwrap()).unwrap()
}

/// The flags of a test socket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    pub(crate) reuse_address: bool,
    pub(crate) reuse_port: bool,
    pub(crate) v6only: bool,
}

/// No flag at all.
pub(crate) const STRICT: Flags = Flags { reuse_address: false, reuse_port: false, v6only: false };
/// `SO_REUSEADDR`.
pub(crate) const REUSE: Flags = Flags { reuse_address: true, reuse_port: false, v6only: false };

/// The spec of a socket that [`bound`] would make.
pub(crate) fn spec(address: &str, port: Port, flags: Flags) -> BindSpec {
    BindSpec {
        v6only: flags.v6only,
        reuse_address: flags.reuse_address,
        reuse_port: flags.reuse_port,
        ..BindSpec::reusable(address.parse().unwrap(), port)
    }
}

/// Connections to the listener of `port` at `host` that it does not accept: all of them are in its queue.
/// `connect()` alone is back before the last segment of its handshake has reached the listener.
pub(crate) fn queued(host: impl Into<IpAddr>, port: Port, count: usize) -> Vec<TcpStream> {
    let host = host.into();
    let clients = (0..count).map(|_| TcpStream::connect((host, port.get())).unwrap()).collect();
    let mut diag = SockDiag::open().unwrap();
    eventually("all connections in the accept queue", || {
        let sockets = diag.dump(port).unwrap();
        let listener = sockets.iter().find(|socket| socket.state == TcpState::Listen);
        (listener.and_then(|it| it.accept_queue) == u32::try_from(count).ok()).then_some(())
    });
    clients
}

/// Waits until `probe` gives a value, and fails the test when it never does.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::yield_now();
    }
}

/// Makes the calling thread, and only it, user and group 65534 without any
/// capability.
pub(crate) fn become_nobody() {
    let nobody = 65534_u32;
    // SAFETY: the only pointer is null, with a length of 0. Raw calls change this
    // thread only, where libc's functions would change all threads.
    let answers = unsafe {
        [
            nix::libc::syscall(nix::libc::SYS_setgroups, 0, std::ptr::null::<u32>()),
            nix::libc::syscall(nix::libc::SYS_setresgid, nobody, nobody, nobody),
            nix::libc::syscall(nix::libc::SYS_setresuid, nobody, nobody, nobody),
        ]
    };
    assert_eq!(answers, [0; 3]);
}

/// The inode of a socket.
pub(crate) fn inode_of(fd: impl AsFd) -> SocketInode {
    SocketInode(rustix::fs::fstat(fd).unwrap().st_ino)
}

/// A child that inherited everything and waits for its end; killed and reaped
/// when dropped.
#[derive(Debug)]
pub(crate) struct Sleeper(Pid);

impl Sleeper {
    pub(crate) fn fork(_: &Alone) -> Self {
        // SAFETY: the child calls only async-signal-safe functions.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Self(child),
            ForkResult::Child => sleep_for_ever(),
        }
    }

    /// A child that gets the process number `tgid`, which must be unused:
    /// `clone3` with `set_tid` (Linux 5.5, root).
    pub(crate) fn with_number(tgid: Tgid, _: &Alone) -> nix::Result<Self> {
        /// `struct clone_args` up to `set_tid_size`.
        #[repr(C)]
        #[derive(Default)]
        struct CloneArgs {
            flags_to_child_tid: [u64; 4],
            exit_signal: u64,
            stack_to_tls: [u64; 3],
            set_tid: u64,
            set_tid_size: u64,
        }
        let wanted = tgid.0 as i32;
        let args = CloneArgs {
            exit_signal: Signal::SIGCHLD as u64,
            set_tid: &raw const wanted as u64,
            set_tid_size: 1,
            ..CloneArgs::default()
        };
        // SAFETY: without flags this is fork(): the child has its own memory, and
        // calls only async-signal-safe functions. `args` and `wanted` outlive it.
        let answer =
            unsafe { nix::libc::syscall(nix::libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        match nix::errno::Errno::result(answer)? {
            0 => sleep_for_ever(),
            child => Ok(Self(Pid::from_raw(child as i32))),
        }
    }

    pub(crate) fn tgid(&self) -> Tgid {
        Tgid(self.0.as_raw() as u32)
    }

    pub(crate) fn id(&self) -> ProcessId {
        let start = crate::kernel::procfs::start_time(self.tgid()).unwrap().unwrap();
        ProcessId { tgid: self.tgid(), start }
    }

    /// SIGKILL, and not reaped: a zombie soon.
    pub(crate) fn kill(&self) {
        kill(self.0, Signal::SIGKILL).unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // Neither can fail while the child is not reaped, and nobody else does.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

fn sleep_for_ever() -> ! {
    loop {
        // SAFETY: async-signal-safe and without arguments.
        unsafe { nix::libc::pause() };
    }
}

/// This test program, started again to play a role that needs a process of its
/// own. It ends when dropped.
#[derive(Debug)]
pub(crate) struct Actor {
    child: Child,
    /// What the role said when it was ready.
    pub(crate) line: String,
}

const ROLE: &str = "PORTGUARD_TEST_ROLE";
const SAYS: &str = "the role says: ";

impl Actor {
    pub(crate) fn play(role: &str, _: &Alone) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kernel::sandbox::actor", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line =
            lines.map(Result::unwrap).find_map(|line| Some(line.split_once(SAYS)?.1.to_owned())).unwrap();
        Self { child, line }
    }

    pub(crate) fn tgid(&self) -> Tgid {
        Tgid(self.child.id())
    }

    /// The inode that the role said.
    pub(crate) fn inode(&self) -> SocketInode {
        SocketInode(self.line.parse().unwrap())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Neither can fail before the child is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where an [`Actor`] begins. As a test of its own it does nothing.
#[test]
fn actor() {
    let Ok(role) = std::env::var(ROLE) else { return };
    thread::spawn(move || match role.as_str() {
        // Holds a listener; the thread group leader exits, this thread goes on.
        "leaderless" => {
            let (fd, _) = listening("127.0.0.1", None, REUSE);
            end_the_leader();
            say_and_stay(inode_of(&fd));
        }
        // Holds a listener in a descriptor table that only this thread has.
        "own-table" => {
            unshare(CloneFlags::CLONE_FILES).unwrap();
            let (fd, _) = listening("127.0.0.1", None, REUSE);
            say_and_stay(inode_of(&fd));
        }
        "what-is-unseen" => say_and_stay(format!("{:?}", crate::kernel::procfs::what_is_unseen().unwrap())),
        // In a child PID namespace, with its own /proc.
        "owners-inside" => say_and_stay(crate::kernel::bpf::tests::owners::asked_inside()),
        "open-parent" => {
            // In a child PID namespace with the parent namespace's /proc.
            let link = std::fs::read_link("/proc/self").unwrap();
            let tgid = Tgid(link.to_str().unwrap().parse().unwrap());
            let start = crate::kernel::procfs::start_time(tgid).unwrap().unwrap();
            say_and_stay(format!(
                "{:?}",
                crate::kernel::pidfd::PidFd::open(ProcessId { tgid: Tgid(1), start })
            ));
        }
        role => panic!("there is no role {role}"),
    });
    // Until the test that started this process ends it, or ends itself.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

fn say_and_stay(what: impl std::fmt::Display) {
    println!("{SAYS}{what}");
    sleep_for_ever();
}

fn end_the_leader() {
    extern "C" fn exit_this_thread(_: i32) {
        // SAFETY: ends the calling thread at once, without unwinding.
        unsafe { nix::libc::syscall(nix::libc::SYS_exit, 0) };
    }
    let action = SigAction::new(SigHandler::Handler(exit_this_thread), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler is async-signal-safe: one system call.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let leader = std::process::id();
    // SAFETY: no pointer is passed.
    let sent = unsafe { nix::libc::syscall(nix::libc::SYS_tgkill, leader, leader, Signal::SIGUSR1 as i32) };
    assert_eq!(sent, 0);
    let stat = format!("/proc/{leader}/stat");
    eventually("the leader is a zombie", || {
        std::fs::read_to_string(&stat).unwrap().contains(") Z ").then_some(())
    });
}
