//! What an init system would have done: file systems, modules, the loopback interface.

use std::fs::{File, create_dir_all};
use std::path::Path;

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};

/// Source, target, type, data. Those that an old kernel or a locked-down one lacks are no error:
/// the tests find out what that means for portguard.
const MOUNTS: [(&str, &str, &str, &str, bool); 10] = [
    ("dev", "/dev", "devtmpfs", "", true),
    ("proc", "/proc", "proc", "", true),
    ("sys", "/sys", "sysfs", "", true),
    ("run", "/run", "tmpfs", "mode=755", true),
    ("tmp", "/tmp", "tmpfs", "mode=1777", true),
    ("pts", "/dev/pts", "devpts", "mode=620,ptmxmode=666", true),
    ("shm", "/dev/shm", "tmpfs", "mode=1777", true),
    ("cgroup", "/sys/fs/cgroup", "cgroup2", "", true),
    ("securityfs", "/sys/kernel/security", "securityfs", "", false),
    ("tracefs", "/sys/kernel/tracing", "tracefs", "", false),
];

/// Mounts what every distribution does.
pub(crate) fn file_systems() -> Result<()> {
    for (source, target, kind, data, needed) in MOUNTS {
        if !Path::new(target).exists() {
            create_dir_all(target).with_context(|| format!("make {target}"))?;
        }
        let mounted = mount(Some(source), target, Some(kind), MsFlags::empty(), Some(data));
        if needed {
            mounted.with_context(|| format!("mount {kind} on {target}"))?;
        }
    }
    Ok(())
}

/// Loads the modules of the image in this order.
pub(crate) fn modules(names: &[String]) -> Result<()> {
    for name in names {
        let path = format!("/modules/{name}.ko");
        let file = File::open(&path).with_context(|| path.clone())?;
        finit_module(&file, c"", ModuleInitFlags::empty()).with_context(|| format!("load {path}"))?;
    }
    Ok(())
}

/// The limits that a shell on a usual machine has; the kernel's own first ones are far lower.
pub(crate) fn limits() -> Result<()> {
    const FILES: u64 = 1 << 16;
    setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).context("raise the limit of open files")
}

/// The first network namespace has to look like a real machine's too.
pub(crate) fn loopback() -> Result<()> {
    guard_tests::netns::raise_loopback().context("bring lo up")
}
