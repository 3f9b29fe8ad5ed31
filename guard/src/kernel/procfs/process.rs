//! One process, as the evidence for a decision shows it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use guard_core::model::{Ancestor, Process, ProcessId, ProcessState, Seen, StartTime, Tgid, Uid};
use rustix::fs::{AtFlags, CWD, Dir, readlinkat, statat};
use rustix::io::Errno;

use super::stat::Stat;
use super::{ProcError, is_gone, open_dir, open_process, read_at, read_start_at};

/// How often a process is read again because it changed its image meanwhile
/// (`execve()`, or the death of its leader). After that the last reading stands,
/// each part of which was true at some moment.
const ATTEMPTS: u32 = 3;

/// Longest part of an argv that is read: it may be megabytes, and what tells
/// one service from another is at its beginning.
const LONGEST_ARGV: u64 = 64 * 1024;

/// How often the walk to the top begins anew.
const WALKS: u32 = 8;

const DELETED: &str = " (deleted)";

/// What is known about the process with this number; `None` when there is none.
///
/// Its identity cannot change halfway: all is read through one descriptor of
/// `/proc/PID`, which dies with the process. `argv` is the first 64 KiB, and
/// empty strings at its end are dropped (a process that shortens its title
/// leaves them).
///
/// When the thread group leader has exited and other threads live on, `exe` and
/// `argv` come from one of those: the leader's own are gone with its address
/// space.
///
/// # Errors
///
/// When `/proc/PID/stat` may not be read (`hidepid=1`) or makes no sense. What
/// else may not be read is [`Seen::Hidden`].
pub fn process(tgid: Tgid) -> Result<Option<Process>, ProcError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let reading = match Reading::of(tgid) {
            Ok(reading) => reading,
            Err(Trouble::Gone) => return Ok(None),
            Err(Trouble::Error(error)) => return Err(error),
        };
        if reading.settled {
            return Ok(Some(reading.process));
        }
        last = Some(reading.process);
    }
    Ok(last)
}

/// Everybody that `/proc` shows. Who ends meanwhile, or may not be read, is left out.
///
/// # Errors
///
/// When `/proc` itself cannot be listed.
pub fn everybody() -> Result<Vec<Process>, ProcError> {
    let proc = open_proc()?;
    let entries = Dir::read_from(&proc).map_err(|errno| ProcError::new("/proc", errno))?;
    let numbers =
        entries.filter_map(Result::ok).filter_map(|entry| tgid_of_name(entry.file_name().to_bytes()));
    Ok(numbers.filter_map(|tgid| process(tgid).ok().flatten()).collect())
}

/// When the process with this number started; `None` when there is none.
///
/// # Errors
///
/// As [`process`].
pub fn start_time(tgid: Tgid) -> Result<Option<StartTime>, ProcError> {
    Ok(stat(tgid)?.map(|stat| stat.start))
}

/// What `/proc/PID/stat` says; `None` when there is no such process.
fn stat(tgid: Tgid) -> Result<Option<Stat>, ProcError> {
    let path = format!("/proc/{tgid}/stat");
    let line = read_at(CWD, &path).map_err(|errno| trouble(tgid, "stat", errno));
    match line.and_then(|line| parse_stat(tgid, &line)) {
        Ok(stat) => Ok(Some(stat)),
        Err(Trouble::Gone) => Ok(None),
        Err(Trouble::Error(error)) => Err(error),
    }
}

/// Who the calling process is, and in which cgroup; `None` where this `/proc` is another PID namespace's, in which its own
/// number is somebody else's or nobody's.
///
/// # Errors
///
/// As [`process`].
pub fn own() -> Result<Option<(ProcessId, Option<String>)>, ProcError> {
    let tgid = Tgid(std::process::id());
    // The link is empty where the process has no number at all.
    match readlinkat(CWD, "/proc/self", Vec::new()) {
        Ok(number) if number.to_bytes() == tgid.to_string().as_bytes() => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(ProcError::new("/proc/self", errno)),
    }
    let read = || {
        let dir = open_process(tgid).map_err(|errno| trouble(tgid, "", errno))?;
        let start = read_stat(tgid, dir.as_fd())?.start;
        Ok((ProcessId { tgid, start }, cgroup(tgid, dir.as_fd())?))
    };
    match read() {
        Ok(own) => Ok(Some(own)),
        Err(Trouble::Gone) => Ok(None),
        Err(Trouble::Error(error)) => Err(error),
    }
}

/// A process's parents, up to PID 1 or the edge of the PID namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestors {
    /// From the parent upwards, without the process itself.
    pub seen: Vec<Ancestor>,
    /// The next ancestor, which is hidden (`hidepid=2`) or dies faster than the
    /// walk can follow: it and its own parents are unknown.
    pub hidden: Option<Tgid>,
}

/// The walk from `tgid` up. When an ancestor dies during the walk, its children belong to
/// another, and the walk begins anew. Only `stat` is read of each: who it is.
///
/// # Errors
///
/// As [`process`].
pub fn ancestors(tgid: Tgid) -> Result<Ancestors, ProcError> {
    let mut ancestors = Ancestors { seen: Vec::new(), hidden: None };
    for _ in 0..WALKS {
        ancestors = Ancestors { seen: Vec::new(), hidden: None };
        let mut child = tgid;
        let mut next = parent_of(tgid)?;
        loop {
            let Some(above) = next else { return Ok(ancestors) };
            let Some(Stat { comm, parent, start, .. }) = stat(above)? else {
                ancestors.hidden = Some(above);
                if parent_of(child)? == Some(above) {
                    return Ok(ancestors);
                }
                break;
            };
            child = above;
            next = parent;
            ancestors.seen.push(Ancestor { id: ProcessId { tgid: above, start }, parent, comm });
        }
    }
    Ok(ancestors)
}

fn parent_of(child: Tgid) -> Result<Option<Tgid>, ProcError> {
    Ok(stat(child)?.and_then(|stat| stat.parent))
}

/// `USER_HZ`: how many ticks of [`StartTime`] make a second. 100 everywhere
/// that Linux runs today, and asked for all the same.
pub fn clock_ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}

enum Trouble {
    Gone,
    Error(ProcError),
}

fn trouble(tgid: Tgid, file: &str, errno: Errno) -> Trouble {
    if is_gone(errno) {
        Trouble::Gone
    } else {
        Trouble::Error(ProcError::new(format!("/proc/{tgid}/{file}"), errno))
    }
}

fn read_stat(tgid: Tgid, dir: BorrowedFd<'_>) -> Result<Stat, Trouble> {
    parse_stat(tgid, &read_at(dir, "stat").map_err(|errno| trouble(tgid, "stat", errno))?)
}

fn parse_stat(tgid: Tgid, line: &[u8]) -> Result<Stat, Trouble> {
    Stat::parse(line).ok_or_else(|| {
        let path = format!("/proc/{tgid}/stat");
        Trouble::Error(ProcError::Malformed { path, what: "not the fields of proc_pid_stat(5)" })
    })
}

struct Reading {
    process: Process,
    /// Nothing that would show a change of image changed while it was read.
    settled: bool,
}

impl Reading {
    fn of(tgid: Tgid) -> Result<Self, Trouble> {
        let dir = open_process(tgid).map_err(|errno| trouble(tgid, "", errno))?;
        let stat = read_stat(tgid, dir.as_fd())?;
        let status = read_at(dir.as_fd(), "status").map_err(|errno| trouble(tgid, "status", errno))?;
        let uid = effective_uid(&status).ok_or_else(|| {
            let path = format!("/proc/{tgid}/status");
            Trouble::Error(ProcError::Malformed { path, what: "no line \"Uid:\"" })
        })?;
        let survivor = if stat.state == ProcessState::Zombie { live_thread(dir.as_fd(), tgid) } else { None };
        let image = survivor.as_ref().unwrap_or(&dir).as_fd();
        // In this order: a process that loses its address space in between has an
        // argv and no exe, never the exe of a live server without its argv.
        let argv = argv(image);
        let (exe, exe_deleted) = exe(image, stat.kernel_thread);
        let cgroup = cgroup(tgid, dir.as_fd())?;
        let wait_channel = read_at(dir.as_fd(), "wchan").ok().and_then(|text| wait_channel(&text));
        // Fails when it died meanwhile: half a description is none.
        let after = read_stat(tgid, dir.as_fd())?;
        let died = stat.state != ProcessState::Zombie && after.state == ProcessState::Zombie;
        let settled = after.start == stat.start && after.comm == stat.comm && !died;
        let process = Process {
            id: ProcessId { tgid, start: after.start },
            parent: after.parent,
            group: after.group,
            uid,
            comm: after.comm,
            exe,
            exe_deleted,
            argv,
            cgroup,
            kernel_thread: after.kernel_thread,
            state: after.state,
            wait_channel,
        };
        Ok(Self { process, settled })
    }
}

/// Another thread than the leader, where there is one.
fn live_thread(dir: BorrowedFd<'_>, tgid: Tgid) -> Option<OwnedFd> {
    let tasks = open_dir(dir, "task").ok()?;
    let leader = tgid.to_string();
    Dir::read_from(&tasks).ok()?.filter_map(Result::ok).find_map(|entry| {
        let name = entry.file_name().to_str().ok()?;
        let is_other = name != leader && name.bytes().all(|b| b.is_ascii_digit());
        is_other.then(|| open_dir(tasks.as_fd(), name).ok()).flatten()
    })
}

/// The second number of the line "Uid:": real, *effective*, saved, file system.
fn effective_uid(status: &[u8]) -> Option<Uid> {
    let text = String::from_utf8_lossy(status);
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok().map(Uid)
}

fn exe(dir: BorrowedFd<'_>, kernel_thread: bool) -> (Seen<String>, bool) {
    match readlinkat(dir, "exe", Vec::new()) {
        Ok(target) => {
            let target = target.to_string_lossy().into_owned();
            match target.strip_suffix(DELETED) {
                Some(path) if !is_that_file(dir, &target) => (Seen::Known(path.to_owned()), true),
                _ => (Seen::Known(target), false),
            }
        }
        Err(Errno::ACCESS | Errno::PERM) if !kernel_thread => (Seen::Hidden, false),
        Err(_) => (Seen::Absent, false),
    }
}

/// A file may really be called "x (deleted)".
fn is_that_file(dir: BorrowedFd<'_>, path: &str) -> bool {
    let Ok(running) = statat(dir, "exe", AtFlags::empty()) else { return false };
    std::fs::metadata(path).is_ok_and(|found| found.dev() == running.st_dev && found.ino() == running.st_ino)
}

fn argv(dir: BorrowedFd<'_>) -> Seen<Vec<String>> {
    match read_start_at(dir, "cmdline", LONGEST_ARGV) {
        Ok(bytes) => {
            let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
            match bytes.get(..end) {
                None | Some([]) => Seen::Absent,
                Some(words) => Seen::Known(
                    words.split(|&b| b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect(),
                ),
            }
        }
        Err(Errno::ACCESS | Errno::PERM) => Seen::Hidden,
        Err(_) => Seen::Absent,
    }
}

/// Protection and units stand on it, so "not read" must not pass for "in none".
fn cgroup(tgid: Tgid, dir: BorrowedFd<'_>) -> Result<Option<String>, Trouble> {
    match read_at(dir, "cgroup") {
        Ok(text) => Ok(most_specific_cgroup(&text)),
        // The kernel has no cgroups; or the process is gone, which another reading shows, and is not the caller.
        Err(errno) if is_gone(errno) => Ok(None),
        Err(errno) => Err(trouble(tgid, "cgroup", errno)),
    }
}

/// The path in the cgroup v2 hierarchy, or in systemd's named v1 hierarchy.
/// Where both are mounted (hybrid), systemd may have put its units into either,
/// so the deeper path is taken: `/` says nothing. v2 wins a tie.
fn most_specific_cgroup(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let path = |wanted: fn(&str, &str) -> bool| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            wanted(id, controllers).then(|| path.to_owned())
        })
    };
    let unified = path(|id, controllers| id == "0" && controllers.is_empty());
    let systemd = path(|_, controllers| controllers == "name=systemd");
    let depth =
        |path: &Option<String>| path.as_ref().map(|p| p.split('/').filter(|part| !part.is_empty()).count());
    if depth(&systemd) > depth(&unified) { systemd } else { unified }
}

/// "0" when it is running, or when the kernel does not say.
fn wait_channel(text: &[u8]) -> Option<String> {
    let name = String::from_utf8_lossy(text).trim().to_owned();
    (!name.is_empty() && name != "0").then_some(name)
}

/// Whether a name in `/proc` is a process.
pub(super) fn tgid_of_name(name: &[u8]) -> Option<Tgid> {
    std::str::from_utf8(name).ok().filter(|n| n.bytes().all(|b| b.is_ascii_digit()))?.parse().ok().map(Tgid)
}

/// `/proc` itself.
pub(super) fn open_proc() -> Result<OwnedFd, ProcError> {
    open_dir(CWD, "/proc").map_err(|errno| ProcError::new("/proc", errno))
}

#[cfg(test)]
mod tests;
