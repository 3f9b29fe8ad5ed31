//! What this machine lets portguard do: one rehearsal per feature, three
//! possible answers.
//!
//! Where it is harmless, the real system call is made, on sockets and processes
//! of portguard's own; version numbers prove nothing on a patched kernel or in
//! a sandbox. "Could not tell" is an answer too, and is never shown as "no".

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;

use guard_core::model::{ExitStatus, Port, ProcessId, TcpState};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::bind;
use super::bpf;
use super::pidfd::{self, PidFd, PidFdError};
use super::procfs::{self, HidePid};
use super::sock_diag::{DestroyError, DestroyedSockets, SockDiag, SockDiagError};

/// The answer to "can this machine do it?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It can; the rehearsal succeeded.
    Yes,
    /// It cannot.
    No {
        /// Why, and what would change it.
        because: String,
    },
    /// The rehearsal itself was not possible.
    CouldNotTell {
        /// Why.
        because: String,
    },
}

impl Answer {
    fn no(because: impl fmt::Display) -> Self {
        Self::No { because: because.to_string() }
    }

    fn could_not_tell(because: impl fmt::Display) -> Self {
        Self::CouldNotTell { because: because.to_string() }
    }

    fn yes_or(answer: bool, because: impl fmt::Display) -> Self {
        if answer { Self::Yes } else { Self::no(because) }
    }

    /// Whether it is a clear yes.
    pub const fn is_yes(&self) -> bool {
        matches!(self, Self::Yes)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No { because } => write!(f, "no: {because}"),
            Self::CouldNotTell { because } => write!(f, "could not tell: {because}"),
        }
    }
}

/// One thing that `portguard doctor` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Short name, stable, for people and for JSON.
    pub name: &'static str,
    /// What portguard does with it.
    pub used_for: &'static str,
    /// Whether it is there.
    pub answer: Answer,
}

/// Every feature that needs none of portguard's BPF programs to find out, in the
/// order in which to show them. It takes a few milliseconds: a child process is started and
/// ended for one of them, and sockets on kernel-chosen ports live for a moment.
pub fn all() -> Vec<Feature> {
    let locked_down = is_locked_down();
    let feature = |name, used_for, answer| Feature { name, used_for, answer };
    // What lockdown takes away is not blamed on anything else. A program that does nothing may
    // still hook a function then, but none of portguard's does nothing.
    let unlocked = |answer: fn() -> Answer| {
        if locked_down { Answer::no(LOCKED_DOWN) } else { answer() }
    };
    let mut features = vec![
        feature("sock_diag", "listing the sockets on a port", sock_diag_dump()),
        feature("destroy_announcements", "the netlink tier", destroy_announcements()),
        feature("bound_inactive", "seeing sockets that are bound and do not listen", bound_inactive()),
        feature("sock_destroy", "--evict", sock_destroy()),
        feature("pidfd", "signalling a process that cannot be mistaken", pidfd()),
        feature("pidfd_getfd", "reading SO_REUSEADDR of another process's listener", pidfd_getfd_of_others()),
        feature("pidfd_exit_info", "saying how an owner ended", pidfd_exit_info()),
        feature("all_processes", "finding every owner of a socket", all_processes()),
        feature("initial_pid_namespace", "owners outside of a container", initial_pid_namespace()),
        feature("ipv6", "IPv6 endpoints", ipv6()),
        feature("btf", "the ebpf tier", btf()),
        feature("no_lockdown", "the ebpf tier", no_lockdown()),
        feature(
            "kernel_functions",
            "the exact moments of release and of the end of TIME_WAIT, and failed binds at no cost to others",
            unlocked(bpf::may_hook_functions),
        ),
        feature("tracefs", "the ebpf tier on a kernel without BTF", unlocked(bpf::tracefs)),
        feature(
            "unprivileged_bpf",
            "the ebpf tier without CAP_BPF (portguard never relies on it)",
            unprivileged_bpf(),
        ),
    ];
    features.extend(CAPABILITIES.map(|(name, bit, used_for)| feature(name, used_for, capability(name, bit))));
    features
}

/// Name, number in `include/uapi/linux/capability.h`, and what it is for.
const CAPABILITIES: [(&str, u32, &str); 6] = [
    ("CAP_BPF", 39, "loading BPF programs"),
    ("CAP_PERFMON", 38, "attaching BPF programs to tracepoints"),
    ("CAP_NET_ADMIN", 12, "--evict"),
    ("CAP_SYS_PTRACE", 19, "seeing other users' owners of a socket"),
    ("CAP_SYS_ADMIN", 21, "--netns, and BPF before Linux 5.8"),
    ("CAP_KILL", 5, "ending other users' processes"),
];

/// The running kernel's release, e.g. `6.12.1-amd64`.
pub fn kernel_release() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/osrelease").ok()?.trim().to_owned())
}

/// systemd runs as this machine's service manager: as `sd_booted(3)` tells it, or,
/// in a container with the host's PID namespace, as PID 1 calls itself.
pub fn service_manager_runs() -> bool {
    std::fs::symlink_metadata("/run/systemd/system").is_ok_and(|found| found.is_dir())
        || std::fs::read_to_string("/proc/1/comm").is_ok_and(|comm| comm.trim_end() == "systemd")
}

/// Whether the kernel lets this process signal other users' processes.
pub fn may_signal_others() -> bool {
    const CAP_KILL: u32 = 5;
    procfs::effective_capabilities().is_ok_and(|set| set & (1 << CAP_KILL) != 0)
}

fn capability(name: &str, bit: u32) -> Answer {
    match procfs::effective_capabilities() {
        Ok(set) => Answer::yes_or(
            set & (1 << bit) != 0,
            format_args!(
                "{name} is not among the effective capabilities; run portguard as root, or in a unit with \
                 AmbientCapabilities={name}"
            ),
        ),
        Err(error) => Answer::could_not_tell(error),
    }
}

/// Whether the kernel announces destroyed sockets to this user.
pub fn destroy_announcements() -> Answer {
    match DestroyedSockets::subscribe(&[], None) {
        Ok(_) => Answer::Yes,
        Err(error @ (SockDiagError::Unsupported { .. } | SockDiagError::Denied { .. })) => Answer::no(error),
        Err(error) => Answer::could_not_tell(error),
    }
}

/// Whether `sock_diag` lists TCP sockets.
pub fn sock_diag_dump() -> Answer {
    let Some(port) = Port::new(1) else { return Answer::could_not_tell("port 1 is no port") };
    match SockDiag::open().and_then(|mut diag| diag.dump(port)) {
        Ok(_) => Answer::Yes,
        Err(error @ (SockDiagError::Unsupported { .. } | SockDiagError::Denied { .. })) => Answer::no(error),
        Err(error) => Answer::could_not_tell(error),
    }
}

/// Whether a dump lists a socket that is only bound (Linux 6.8).
pub fn bound_inactive() -> Answer {
    let (port, _socket) = match bound_only_socket() {
        Ok(bound) => bound,
        Err(error) => return Answer::could_not_tell(format_args!("binding a socket failed: {error}")),
    };
    match SockDiag::open().and_then(|mut diag| diag.dump(port)) {
        Ok(sockets) => Answer::yes_or(
            sockets.iter().any(|socket| socket.state == TcpState::BoundInactive),
            "it needs Linux 6.8; a port held by such a socket shows as busy without a holder",
        ),
        Err(error) => Answer::could_not_tell(error),
    }
}

/// The port is the kernel's choice, so it is in nobody's way.
fn bound_only_socket() -> io::Result<(Port, TcpListener)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::new(0, 0, 0, 0, 0))?;
    // std's type is only used for its name: nothing listens.
    let socket = TcpListener::from(fd);
    let port = Port::new(socket.local_addr()?.port()).ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((port, socket))
}

/// Whether `SOCK_DESTROY` works, tried on a listener of portguard's own. (A
/// socket that does not exist answers `ENOENT` before any permission is asked.)
pub fn sock_destroy() -> Answer {
    match rehearse_destroy() {
        Ok(Ok(())) => Answer::Yes,
        Ok(Err(error @ (DestroyError::Unsupported { .. } | DestroyError::Denied { .. }))) => {
            Answer::no(error)
        }
        Ok(Err(error)) => Answer::could_not_tell(error),
        Err(because) => Answer::could_not_tell(because),
    }
}

/// Destroys a listener of portguard's own, in the calling thread's network
/// namespace.
///
/// # Errors
///
/// The inner one is the answer, the outer one says in words why there is none.
pub fn rehearse_destroy() -> Result<Result<(), DestroyError>, String> {
    // The wildcard is for a namespace whose `lo` is down.
    let listener =
        TcpListener::bind(&[(Ipv4Addr::LOCALHOST, 0).into(), (Ipv4Addr::UNSPECIFIED, 0).into()][..])
            .map_err(|e| format!("listening failed: {e}"))?;
    let local: SocketAddr =
        listener.local_addr().map_err(|e| format!("a listener without an address: {e}"))?;
    let port = Port::new(local.port()).ok_or("a listener without a port")?;
    let mut diag = SockDiag::open().map_err(|e| e.to_string())?;
    let sockets = diag.dump(port).map_err(|e| e.to_string())?;
    let own = sockets.iter().find(|socket| socket.state == TcpState::Listen && socket.address == local.ip());
    Ok(diag.destroy(own.ok_or("the dump does not show portguard's own listener")?))
}

fn own_process() -> Result<ProcessId, Answer> {
    match procfs::own() {
        Ok(Some((process, _))) => Ok(process),
        Ok(None) => {
            Err(Answer::could_not_tell("/proc does not show portguard itself: it is another PID namespace's"))
        }
        Err(error) => Err(Answer::could_not_tell(error)),
    }
}

/// Whether a process can be held by a pidfd, tried on portguard itself.
pub fn pidfd() -> Answer {
    match own_process().map(PidFd::open) {
        Ok(Ok(_)) => Answer::Yes,
        Ok(Err(error @ (PidFdError::Unsupported { .. } | PidFdError::Denied { .. }))) => Answer::no(error),
        Ok(Err(error)) => Answer::could_not_tell(error),
        Err(answer) => answer,
    }
}

/// Whether descriptors of other processes may be duplicated, tried on PID 1 and,
/// where a security module protects that one, on portguard's parent: with a
/// descriptor number that nobody has, since the kernel asks for the permission
/// first (`EPERM`), and only then for the descriptor (`EBADF`).
pub fn pidfd_getfd_of_others() -> Answer {
    match rehearse_getfd(Pid::INIT) {
        Err(Errno::PERM | Errno::ACCESS) => {}
        other => return getfd_answer(other),
    }
    match procfs::may_trace_everybody() {
        Ok(true) => getfd_answer(rustix::process::getppid().map_or(Err(Errno::PERM), rehearse_getfd)),
        Ok(false) => Answer::no("it needs CAP_SYS_PTRACE"),
        Err(error) => Answer::could_not_tell(error),
    }
}

fn rehearse_getfd(pid: Pid) -> Result<(), Errno> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    pidfd_getfd(&process, i32::MAX, PidfdGetfdFlags::empty()).map(drop)
}

fn getfd_answer(rehearsal: Result<(), Errno>) -> Answer {
    match rehearsal {
        Ok(()) | Err(Errno::BADF) => Answer::Yes,
        Err(Errno::PERM | Errno::ACCESS) => Answer::no(
            "a security module forbids it; if it is Yama, `sysctl kernel.yama.ptrace_scope=2` or lower allows it",
        ),
        Err(Errno::NOSYS) => Answer::no("it needs Linux 5.6"),
        Err(errno) => Answer::could_not_tell(errno),
    }
}

/// Whether a pidfd still tells how its process ended after it was reaped
/// (Linux 6.15), tried on a child that does nothing but exit.
pub fn pidfd_exit_info() -> Answer {
    const CODE: u8 = 7;
    // SAFETY: the child calls nothing but `_exit`, which is async-signal-safe.
    let child = match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => child,
        // SAFETY: ends the child without running anybody's exit handlers.
        Ok(ForkResult::Child) => unsafe { nix::libc::_exit(CODE.into()) },
        Err(errno) => {
            return Answer::could_not_tell(format_args!("starting a child process failed: {errno}"));
        }
    };
    // Not reaped before `waitpid`, so the number is still the child's.
    let held = Pid::from_raw(child.as_raw()).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let reaped = waitpid(child, None);
    match (held, reaped) {
        (Some(Ok(fd)), Ok(_)) => match pidfd::exit_status_of(fd.as_fd()) {
            Some(ExitStatus::Code(CODE)) => Answer::Yes,
            Some(other) => {
                Answer::could_not_tell(format_args!("the child ended otherwise than it should: {other:?}"))
            }
            None => Answer::no("it needs Linux 6.15"),
        },
        (Some(Err(Errno::NOSYS)), _) => Answer::no("it needs pidfds (Linux 5.3)"),
        (_, Err(errno)) => {
            Answer::could_not_tell(format_args!("waiting for a child process failed: {errno}"))
        }
        _ => Answer::could_not_tell("opening a child process failed"),
    }
}

/// Whether this process may see the descriptors of every process.
pub fn all_processes() -> Answer {
    match procfs::hidepid() {
        Ok(HidePid::Invisible | HidePid::Ptraceable) => match procfs::what_is_unseen() {
            Ok(None) => may_trace(),
            Ok(Some(_)) => Answer::no(
                "/proc is mounted with hidepid and CAP_SYS_PTRACE is missing: give it, or `mount -o remount,hidepid=0 /proc`",
            ),
            Err(error) => Answer::could_not_tell(error),
        },
        Ok(HidePid::Off | HidePid::NoAccess) => may_trace(),
        Err(error) => Answer::could_not_tell(error),
    }
}

fn may_trace() -> Answer {
    match (fs::read_link("/proc/1/fd/0"), procfs::may_trace_everybody()) {
        // Not there: PID 1 has closed it, and said so.
        (Ok(_), _) => Answer::Yes,
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Answer::Yes,
        (Err(error), Ok(false)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Answer::no("other users' processes may not be looked into: it needs CAP_SYS_PTRACE")
        }
        (Err(error), Ok(true)) if error.kind() == io::ErrorKind::PermissionDenied => Answer::no(
            "a security module forbids to look into PID 1, even with CAP_SYS_PTRACE: it may own any socket",
        ),
        (Err(error), _) => Answer::could_not_tell(format_args!("reading /proc/1/fd failed: {error}")),
    }
}

/// Whether portguard runs in the initial PID namespace.
pub fn initial_pid_namespace() -> Answer {
    match procfs::in_initial_pid_namespace() {
        Ok(initial) => {
            Answer::yes_or(initial, "this is a container: an owner outside of it has no number here")
        }
        Err(error) => Answer::could_not_tell(error),
    }
}

/// Whether there are IPv6 sockets and `[::1]` can be bound.
pub fn ipv6() -> Answer {
    if !bind::ipv6_available() {
        return Answer::no("this machine makes no IPv6 sockets");
    }
    match TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => Answer::Yes,
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            Answer::no("[::1] is on no interface (net.ipv6.conf.*.disable_ipv6, or lo is down)")
        }
        Err(error) => Answer::could_not_tell(format_args!("binding [::1] failed: {error}")),
    }
}

/// Whether the kernel carries its own BTF.
pub fn btf() -> Answer {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    match fs::File::open(path) {
        Ok(_) => Answer::Yes,
        Err(error) if error.kind() == io::ErrorKind::NotFound && Path::new("/sys/kernel").exists() => {
            Answer::no("there is no /sys/kernel/btf/vmlinux: it needs a kernel with CONFIG_DEBUG_INFO_BTF")
        }
        Err(error) => Answer::could_not_tell(format_args!("{}: {error}", path.display())),
    }
}

/// Whether the kernel is not locked down for confidentiality, which refuses
/// BPF programs that read kernel memory.
pub fn no_lockdown() -> Answer {
    let path = "/sys/kernel/security/lockdown";
    match fs::read_to_string(path) {
        Ok(text) => lockdown_mode(&text).map_or_else(
            || Answer::could_not_tell(format_args!("{path} has an unexpected form")),
            |mode| Answer::yes_or(mode != "confidentiality", LOCKED_DOWN),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Answer::could_not_tell(format_args!(
            "{path} is not there: securityfs is not mounted, or there is no lockdown"
        )),
        Err(error) => Answer::could_not_tell(format_args!("{path}: {error}")),
    }
}

/// The kernel certainly refuses programs that read its memory, and files that describe it.
pub fn is_locked_down() -> bool {
    matches!(no_lockdown(), Answer::No { .. })
}

/// Why, in the words of all that it takes away.
pub const LOCKED_DOWN: &str =
    "the kernel is locked down (confidentiality), which refuses BPF programs that read its memory";

/// The mode in brackets: `none [integrity] confidentiality`.
fn lockdown_mode(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

/// Whether BPF is open to processes without capabilities.
pub fn unprivileged_bpf() -> Answer {
    let path = "/proc/sys/kernel/unprivileged_bpf_disabled";
    match fs::read_to_string(path).as_deref().map(str::trim) {
        Ok("0") => Answer::Yes,
        Ok(value) => Answer::no(format_args!("kernel.unprivileged_bpf_disabled is {value}")),
        Err(error) => Answer::could_not_tell(format_args!("{path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::sandbox::{self, alone};

    #[test]
    fn lockdown_s_mode_is_the_bracketed_one() {
        assert_eq!(lockdown_mode("none [integrity] confidentiality\n"), Some("integrity"));
        assert_eq!(lockdown_mode("[none] integrity confidentiality\n"), Some("none"));
        assert_eq!(lockdown_mode(""), None);
    }

    #[test]
    fn every_answer_says_why() {
        let _alone = alone();
        let features = all();
        for Feature { name, used_for, answer } in &features {
            println!("{name:22} {answer}  ({used_for})");
            assert!(!used_for.is_empty());
            if let Answer::No { because } | Answer::CouldNotTell { because } = answer {
                assert!(!because.is_empty(), "{name}");
            }
        }
        let mut names: Vec<_> = features.iter().map(|feature| feature.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), features.len());
    }

    #[test]
    fn what_needs_no_privilege_works_here() {
        assert_eq!(destroy_announcements(), Answer::Yes);
        assert_eq!(sock_diag_dump(), Answer::Yes);
        assert_eq!(pidfd(), Answer::Yes);
    }

    #[test]
    fn root_may_destroy_and_look_into_everybody() {
        sandbox::netns("root_may_destroy_and_look_into_everybody", || {
            assert_eq!(sock_destroy(), Answer::Yes);
            assert_eq!(pidfd_getfd_of_others(), Answer::Yes);
            assert!(!matches!(all_processes(), Answer::CouldNotTell { .. }));
            assert_eq!(ipv6(), Answer::Yes);
        });
    }

    #[test]
    fn a_namespace_whose_loopback_is_down_cannot_tell_or_says_no() {
        if !sandbox::root_or_skip("a_namespace_whose_loopback_is_down_cannot_tell_or_says_no") {
            return;
        }
        let answers = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            (sock_destroy(), ipv6(), bound_inactive())
        });
        let (destroy, ipv6, bound_inactive) = answers.join().unwrap();
        assert!(matches!(destroy, Answer::CouldNotTell { .. } | Answer::Yes), "{destroy}");
        assert!(!ipv6.is_yes(), "{ipv6}");
        assert!(!matches!(bound_inactive, Answer::CouldNotTell { .. }), "{bound_inactive}");
    }
}
