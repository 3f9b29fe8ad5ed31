//! The cgroup v2 file system: who is in a cgroup, and ending all of them at once.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use guard_core::model::{ProcessId, Tgid};

use super::procfs;

const FILE: &str = "cgroup.kill";

/// Why a cgroup was not ended as a whole. Nobody in it was signalled.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The cgroup v2 hierarchy is mounted nowhere, or the cgroup is not in it.
    #[error("{path} is not in a mounted cgroup v2 hierarchy, and v1 has no cgroup.kill")]
    NotThere {
        /// The cgroup.
        path: String,
    },
    /// The kernel has no `cgroup.kill`.
    #[error("{path} has no cgroup.kill: it needs Linux 5.14")]
    Unsupported {
        /// The cgroup.
        path: String,
    },
    /// Somebody is in it who was not judged.
    #[error("pid {newcomer} is in {path} too, and was not looked at")]
    OthersToo {
        /// The cgroup.
        path: String,
        /// One of them.
        newcomer: Tgid,
    },
    /// Any other error.
    #[error("{operation} {path} failed: {source}")]
    Failed {
        /// The step.
        operation: &'static str,
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Sends SIGKILL to everybody in the cgroup and below it, forks included, if
/// `members` are all there is in it just before. Since Linux 5.14.
///
/// # Errors
///
/// See [`CgroupError`]; then nobody was signalled.
pub fn kill(cgroup: &str, members: &[ProcessId]) -> Result<(), CgroupError> {
    let not_there = || CgroupError::NotThere { path: cgroup.to_owned() };
    let folder = mount_point().ok_or_else(not_there)?.join(cgroup.trim_start_matches('/'));
    if cgroup.len() < 2 || !folder.join("cgroup.procs").is_file() {
        return Err(not_there());
    }
    let file = folder.join(FILE);
    if !file.is_file() {
        return Err(CgroupError::Unsupported { path: cgroup.to_owned() });
    }
    for tgid in members_of(&folder)? {
        let known = members.iter().any(|member| {
            member.tgid == tgid && procfs::start_time(tgid).ok().flatten() == Some(member.start)
        });
        if !known {
            return Err(CgroupError::OthersToo { path: cgroup.to_owned(), newcomer: tgid });
        }
    }
    std::fs::write(&file, "1").map_err(|source| failed("writing", &file, source))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Failed { operation, path: path.display().to_string(), source }
}

/// Everybody in the cgroup of this folder and below it.
fn members_of(folder: &Path) -> Result<BTreeSet<Tgid>, CgroupError> {
    let mut members = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let procs = folder.join("cgroup.procs");
        let text = std::fs::read_to_string(&procs).map_err(|source| failed("reading", &procs, source))?;
        members.extend(text.lines().filter_map(|line| line.parse().ok()).map(Tgid));
        let entries = std::fs::read_dir(&folder).map_err(|source| failed("reading", &folder, source))?;
        let below =
            entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.map(|entry| entry.path()));
    }
    Ok(members)
}

/// Where the cgroup v2 hierarchy is mounted from its root: line by line, the
/// root within it is field 4, the mount point field 5, the type follows " - ".
fn mount_point() -> Option<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        (kind.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
}
