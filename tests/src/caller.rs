//! Who runs a program: root, or somebody with fewer rights.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

use crate::cgroup::Cgroup;
use crate::child::status;

/// The user id of `nobody` on every distribution.
pub const NOBODY: u32 = 65534;

/// `CAP_KILL`, from `include/uapi/linux/capability.h`.
pub const CAP_KILL: i32 = 5;

/// `CAP_NET_ADMIN`, from `include/uapi/linux/capability.h`.
pub const CAP_NET_ADMIN: i32 = 12;

/// `CAP_SYS_PTRACE`, from `include/uapi/linux/capability.h`.
pub const CAP_SYS_PTRACE: i32 = 19;

/// An argument of `mount()` that is left out.
const NOTHING: Option<&str> = None;

/// `CAP_SYS_ADMIN`, from `include/uapi/linux/capability.h`.
pub const CAP_SYS_ADMIN: i32 = 21;

/// `CAP_BPF`, from `include/uapi/linux/capability.h`.
pub const CAP_BPF: i32 = 39;

/// Rights for a child process.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    uid: Option<u32>,
    dropped: Vec<i32>,
    hidden: Vec<&'static str>,
    hidepid: bool,
    forbidden: Option<Forbidden>,
    elsewhere: bool,
    cgroup: Option<CString>,
    leads: bool,
    copies: Arc<Mutex<Vec<tempfile::TempDir>>>,
}

/// What a seccomp filter refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// `bpf()`, with `EPERM`.
    Bpf,
    /// `socket(AF_NETLINK, …)`, with `EPERM`.
    Netlink,
    /// `bind()` to whatever is no netlink address, with `EADDRINUSE`: what a port is like that somebody
    /// outside of the kernel has, as the Windows side of WSL's mirrored networking does.
    Binding,
}

impl Caller {
    /// An ordinary user without any capability.
    pub fn user(uid: u32) -> Self {
        Self { uid: Some(uid), ..Self::default() }
    }

    /// Root without one capability.
    pub fn root_without(capability: i32) -> Self {
        Self::default().without(&[capability])
    }

    /// Root in a mount namespace of its own, in which PID 1 shows no descriptors.
    ///
    /// A kernel may refuse even root a look at PID 1's descriptors. Then nobody can say that
    /// no process at all has a descriptor for a socket.
    pub fn init_emptied() -> Self {
        Self::default().hiding(&["/proc/1/fd", "/proc/1/task"])
    }

    /// Root in a network namespace of its own, where nothing is and even `lo` is down.
    pub fn elsewhere() -> Self {
        Self { elsewhere: true, ..Self::default() }
    }

    /// Without these capabilities, too.
    #[must_use]
    pub fn without(mut self, capabilities: &[i32]) -> Self {
        self.dropped.extend(capabilities);
        self
    }

    /// With an empty folder in the place of each of these that exists, in a mount namespace of its own.
    #[must_use]
    pub fn hiding(mut self, folders: &[&'static str]) -> Self {
        self.hidden.extend(folders);
        self
    }

    /// With a `/proc` that hides other users' processes, in a mount namespace of its own.
    #[must_use]
    pub fn hidepid(mut self) -> Self {
        self.hidepid = true;
        self
    }

    /// Where a seccomp filter refuses this.
    #[must_use]
    pub fn forbidding(mut self, what: Forbidden) -> Self {
        self.forbidden = Some(what);
        self
    }

    /// Root in this cgroup.
    pub fn within(cgroup: &Cgroup) -> Self {
        Self { cgroup: Some(cgroup.procs()), ..Self::default() }
    }

    /// As the leader of a process group of its own.
    pub fn leading() -> Self {
        Self { leads: true, ..Self::default() }
    }

    /// Whether it is the superuser, with whatever capabilities.
    pub fn is_root(&self) -> bool {
        self.uid.is_none()
    }

    /// Makes `command` run with these rights.
    pub fn apply(&self, command: &mut Command) {
        let Self { uid, dropped, hidden, hidepid, forbidden, elsewhere, cgroup, leads, copies: _ } =
            self.clone();
        if uid.is_some() {
            // The working directory may be closed to that user.
            command.current_dir("/");
        }
        // SAFETY: only system calls run between fork and exec; all of them are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                if let Some(procs) = &cgroup {
                    let file = nix::fcntl::open(procs.as_c_str(), OFlag::O_WRONLY, Mode::empty())?;
                    nix::unistd::write(&file, b"0")?;
                }
                if leads {
                    nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0))?;
                }
                if elsewhere {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                }
                if hidepid || !hidden.is_empty() {
                    unshare(CloneFlags::CLONE_NEWNS)?;
                    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
                }
                if hidepid {
                    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), Some("hidepid=2"))?;
                }
                for &folder in &hidden {
                    match mount(NOTHING, folder, Some("tmpfs"), MsFlags::empty(), NOTHING) {
                        Ok(()) | Err(Errno::ENOENT) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                for &capability in &dropped {
                    Errno::result(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0))?;
                }
                if let Some(uid) = uid {
                    nix::unistd::setgroups(&[])?;
                    nix::unistd::setgid(Gid::from_raw(uid))?;
                    nix::unistd::setuid(Uid::from_raw(uid))?;
                }
                if let Some(what) = forbidden {
                    forbid(what)?;
                }
                Ok(())
            });
        }
    }

    /// `program` at a path that this caller may execute: a copy when it is not root.
    ///
    /// # Panics
    /// When the copy cannot be made.
    pub fn reachable(&self, program: &Path) -> PathBuf {
        if self.uid.is_none() {
            return program.to_owned();
        }
        let name = program.file_name().expect("a program's name");
        let mut copies = self.copies.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(copy) = copies.iter().map(|folder| folder.path().join(name)).find(|copy| copy.is_file()) {
            return copy;
        }
        let open = std::fs::Permissions::from_mode(0o755);
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::set_permissions(folder.path(), open.clone()).expect("open the temporary folder");
        let copy = folder.path().join(name);
        // By a process of its own: while this one has the copy open for writing, a child that another
        // thread forks has it too, and executing it fails with ETXTBSY.
        let copied = status(Command::new("cp").arg(program).arg(&copy)).expect("run cp");
        assert!(copied.success(), "copy {}", program.display());
        std::fs::set_permissions(&copy, open).expect("make the copy executable");
        copies.push(folder);
        copy
    }
}

/// Installs the seccomp filter for the rest of the calling thread's life.
fn forbid(what: Forbidden) -> std::io::Result<()> {
    // Offsets in `struct seccomp_data`; the low half of an argument comes first.
    const NUMBER: u32 = 0;
    const THIRD_ARGUMENT: u32 = if cfg!(target_endian = "little") { 32 } else { 36 };
    const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const UNLESS_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const IN_USE: u32 = libc::SECCOMP_RET_ERRNO | libc::EADDRINUSE as u32;
    let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let unless = |k, skipped| libc::sock_filter { code: UNLESS_EQUAL, jt: 0, jf: skipped, k };
    let netlink = [
        step(LOAD, NUMBER),
        unless(libc::SYS_socket as u32, 3),
        step(LOAD, FIRST_ARGUMENT),
        unless(libc::AF_NETLINK as u32, 1),
        step(RETURN, REFUSE),
        step(RETURN, ALLOW),
    ];
    let bpf =
        [step(LOAD, NUMBER), unless(libc::SYS_bpf as u32, 1), step(RETURN, REFUSE), step(RETURN, ALLOW)];
    // A filter cannot read the address; netlink's is shorter than any other.
    let binding = [
        step(LOAD, NUMBER),
        unless(libc::SYS_bind as u32, 4),
        step(LOAD, THIRD_ARGUMENT),
        unless(size_of::<libc::sockaddr_nl>() as u32, 1),
        step(RETURN, ALLOW),
        step(RETURN, IN_USE),
        step(RETURN, ALLOW),
    ];
    let filter: &[libc::sock_filter] = match what {
        Forbidden::Binding => &binding,
        Forbidden::Bpf => &bpf,
        Forbidden::Netlink => &netlink,
    };
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which lives across the calls.
    unsafe {
        Errno::result(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        Errno::result(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program))?;
    }
    Ok(())
}
