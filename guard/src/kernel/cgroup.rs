//! The cgroup v2 file system: who is in a cgroup, and ending all of them at once.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use guard_core::model::{ProcessId, Signal, Tgid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing::warn;

use super::pidfd::{PidFd, PidFdError};
use super::procfs;
use super::stop_signals::Deferred;

/// Since Linux 5.2.
const FREEZE: &str = "cgroup.freeze";

/// Freezing takes well under a millisecond, unless somebody is in D state: the run goes on without.
const FREEZES_WITHIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// `cgroup.events` also changes for other reasons, which are few.
const MOST_CHANGES: usize = 8;

/// Why a cgroup was not ended as a whole.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The cgroup v2 hierarchy is mounted nowhere, or the cgroup is not in it.
    #[error("{path} is not in a mounted cgroup v2 hierarchy, and v1 cannot end one as a whole")]
    NotThere {
        /// The cgroup.
        path: String,
    },
    /// The kernel has no `cgroup.freeze`.
    #[error("{path} has no cgroup.freeze: it needs Linux 5.2")]
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
    /// Somebody in it is in the kernel and does not leave it, so it could not be frozen.
    #[error("{path} could not be frozen: somebody in it is uninterruptible")]
    NotFrozen {
        /// The cgroup.
        path: String,
    },
    /// Somebody in it could not be signalled; others may have been.
    #[error("not everybody in {path} was signalled: {source}")]
    Signal {
        /// The cgroup.
        path: String,
        /// Why not.
        source: PidFdError,
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

/// Sends SIGKILL to everybody in the cgroup and below it, if `members` are all
/// there is in it, and says who that was. Whoever of them has left it is in other hands, and not signalled. Since Linux 5.2.
///
/// The cgroup is frozen meanwhile: nobody in it can start a process between the
/// last look and the signals. Those go through pidfds and not through
/// `cgroup.kill`, which asks nobody who is in it by then: whoever is moved or
/// started into the cgroup from outside in that moment goes on unharmed when it
/// is thawed.
///
/// # Errors
///
/// See [`CgroupError`]; then nobody was signalled, but for
/// [`CgroupError::Signal`], which tells who was not.
pub fn kill(cgroup: &str, members: &[ProcessId]) -> Result<Vec<ProcessId>, CgroupError> {
    kill_frozen(cgroup, members, |_| ())
}

/// As [`kill`]; `once_frozen` is called between the freezing and the last look.
fn kill_frozen(
    cgroup: &str,
    members: &[ProcessId],
    once_frozen: impl FnOnce(&Path),
) -> Result<Vec<ProcessId>, CgroupError> {
    let not_there = || CgroupError::NotThere { path: cgroup.to_owned() };
    let folder = mount_point().ok_or_else(not_there)?.join(cgroup.trim_start_matches('/'));
    if cgroup.len() < 2 || !folder.join("cgroup.procs").is_file() {
        return Err(not_there());
    }
    if !folder.join(FREEZE).is_file() {
        return Err(CgroupError::Unsupported { path: cgroup.to_owned() });
    }
    // Strangers are not even frozen; portguard itself would never thaw.
    only(members, cgroup, &folder)?;
    // Nobody would thaw it for a portguard that is ended meanwhile.
    let _deferred = Deferred::begin();
    let _frozen = Frozen::freeze(cgroup, &folder)?;
    once_frozen(&folder);
    let there = only(members, cgroup, &folder)?;
    let mut pidfds = Vec::new();
    for &member in members.iter().filter(|member| there.contains(&member.tgid)) {
        match PidFd::open(member) {
            Ok(pidfd) => pidfds.push((member, pidfd)),
            // It had ended before it could be frozen.
            Err(PidFdError::Gone(_) | PidFdError::IdentityChanged { .. }) => {}
            Err(source) => return Err(CgroupError::Signal { path: cgroup.to_owned(), source }),
        }
    }
    for (_, pidfd) in &pidfds {
        match pidfd.signal(Signal::Kill) {
            Ok(()) | Err(PidFdError::Gone(_)) => {}
            Err(source) => return Err(CgroupError::Signal { path: cgroup.to_owned(), source }),
        }
    }
    Ok(pidfds.into_iter().map(|(member, _)| member).collect())
}

/// Who is in the cgroup; fails when that is anybody else than `members`.
fn only(members: &[ProcessId], cgroup: &str, folder: &Path) -> Result<BTreeSet<Tgid>, CgroupError> {
    let there = members_of(folder)?;
    for &tgid in &there {
        let known = members.iter().any(|member| {
            member.tgid == tgid && procfs::start_time(tgid).ok().flatten() == Some(member.start)
        });
        if !known {
            return Err(CgroupError::OthersToo { path: cgroup.to_owned(), newcomer: tgid });
        }
    }
    Ok(there)
}

/// A frozen cgroup; it is thawed when this is dropped, unless somebody else had frozen it.
struct Frozen {
    file: PathBuf,
    by_others: bool,
}

impl Frozen {
    /// Freezes it and waits until everybody in it stands still.
    fn freeze(cgroup: &str, folder: &Path) -> Result<Self, CgroupError> {
        let file = folder.join(FREEZE);
        let before = std::fs::read_to_string(&file).map_err(|source| failed("reading", &file, source))?;
        std::fs::write(&file, "1").map_err(|source| failed("writing", &file, source))?;
        let frozen = Self { file, by_others: before.trim() == "1" };
        let path = folder.join("cgroup.events");
        let mut events = File::open(&path).map_err(|source| failed("opening", &path, source))?;
        for _ in 0..MOST_CHANGES {
            let mut text = String::new();
            events.rewind().map_err(|source| failed("reading", &path, source))?;
            events.read_to_string(&mut text).map_err(|source| failed("reading", &path, source))?;
            if text.lines().any(|line| line == "frozen 1") {
                return Ok(frozen);
            }
            let mut changed = [PollFd::new(&events, PollFlags::PRI)];
            match poll(&mut changed, Some(&FREEZES_WITHIN)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("waiting for", &path, errno.into())),
            }
        }
        Err(CgroupError::NotFrozen { path: cgroup.to_owned() })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.by_others {
            return;
        }
        // It may have been removed with its last process.
        if let Err(error) = std::fs::write(&self.file, "0")
            && self.file.exists()
        {
            warn!(%error, file = %self.file.display(), "a cgroup stays frozen: write 0 to this file");
        }
    }
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

#[cfg(test)]
mod tests;
