//! Who runs a program: root, or somebody with fewer rights.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

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

/// Rights for a child process.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    uid: Option<u32>,
    dropped: Option<i32>,
    init_emptied: bool,
    elsewhere: bool,
    copies: Arc<Mutex<Vec<tempfile::TempDir>>>,
}

impl Caller {
    /// An ordinary user without any capability.
    pub fn user(uid: u32) -> Self {
        Self { uid: Some(uid), ..Self::default() }
    }

    /// Root without one capability.
    pub fn root_without(capability: i32) -> Self {
        Self { dropped: Some(capability), ..Self::default() }
    }

    /// Root in a mount namespace of its own, in which PID 1 shows no descriptors.
    ///
    /// A kernel may refuse even root a look at PID 1's descriptors. Then nobody can say that
    /// no process at all has a descriptor for a socket.
    pub fn init_emptied() -> Self {
        Self { init_emptied: true, ..Self::default() }
    }

    /// Root in a network namespace of its own, where nothing is and even `lo` is down.
    pub fn elsewhere() -> Self {
        Self { elsewhere: true, ..Self::default() }
    }

    /// Whether it is the superuser, with whatever capabilities.
    pub fn is_root(&self) -> bool {
        self.uid.is_none()
    }

    /// Makes `command` run with these rights.
    pub fn apply(&self, command: &mut Command) {
        let Self { uid, dropped, init_emptied, elsewhere, .. } = *self;
        if uid.is_some() {
            // The working directory may be closed to that user.
            command.current_dir("/");
        }
        // SAFETY: only system calls run between fork and exec; all of them are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                if elsewhere {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                }
                if init_emptied {
                    unshare(CloneFlags::CLONE_NEWNS)?;
                    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
                    for folder in ["/proc/1/fd", "/proc/1/task"] {
                        mount(NOTHING, folder, Some("tmpfs"), MsFlags::empty(), NOTHING)?;
                    }
                }
                if let Some(capability) = dropped {
                    Errno::result(nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, capability, 0, 0, 0))?;
                }
                if let Some(uid) = uid {
                    nix::unistd::setgroups(&[])?;
                    nix::unistd::setgid(Gid::from_raw(uid))?;
                    nix::unistd::setuid(Uid::from_raw(uid))?;
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
        let copied = Command::new("cp").arg(program).arg(&copy).status().expect("run cp");
        assert!(copied.success(), "copy {}", program.display());
        std::fs::set_permissions(&copy, open).expect("make the copy executable");
        copies.push(folder);
        copy
    }
}
