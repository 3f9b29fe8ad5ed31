//! How often the kernel's OOM killer struck in a process's memory cgroup.
//!
//! No pidfd and no wait status tells an OOM kill from any other SIGKILL. The
//! cgroup counts its victims (`oom_kill` in `memory.events`, in v1 in
//! `memory.oom_control`; since Linux 4.13), whether its own limit or the whole
//! machine was out of memory, and before it sends them SIGKILL.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use guard_core::model::Tgid;

/// The count of one process's memory cgroup, and what it was at first.
#[derive(Debug)]
pub struct OomCount {
    file: File,
    first: u64,
    /// Where the cgroup itself goes with its last process.
    machine: Option<u64>,
}

impl OomCount {
    /// The count as it is now; `None` where there is none: the root cgroup of v2
    /// has none, and a kernel may have no memory controller.
    pub fn of(process: Tgid) -> Option<Self> {
        let cgroups = std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mut file = counters(&cgroups, &mounts).into_iter().find_map(|path| File::open(path).ok())?;
        let first = count(&mut file)?;
        Some(Self { file, first, machine: machine() })
    }

    /// Somebody in the cgroup was a victim since. Where systemd removed the cgroup meanwhile, the
    /// count of the whole machine has to do.
    pub fn rose(&mut self) -> bool {
        match count(&mut self.file) {
            Some(now) => now > self.first,
            None => self.machine.zip(machine()).is_some_and(|(first, now)| now > first),
        }
    }
}

fn count(file: &mut File) -> Option<u64> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    victims(&text)
}

fn machine() -> Option<u64> {
    victims(&std::fs::read_to_string("/proc/vmstat").ok()?)
}

fn victims(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The files that may have the count: where both hierarchies are mounted, only one has the controller.
fn counters(cgroups: &str, mounts: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (kind, file) = match controllers {
            "" => ("cgroup2", "memory.events"),
            list if list.split(',').any(|name| name == "memory") => ("cgroup", "memory.oom_control"),
            _ => continue,
        };
        files.extend(mounted(mounts, kind, path).map(|folder| folder.join(file)));
    }
    files
}

/// The folder of the cgroup `path` in the hierarchy of this kind; of v1, in that of the memory controller.
fn mounted(mounts: &str, kind: &str, path: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut words = filesystem.split(' ');
        let (found, options) = (words.next()?, words.nth(1)?);
        if found != kind || (kind == "cgroup" && !options.split(',').any(|option| option == "memory")) {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_controller_is_found_in_either_hierarchy() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 24 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let files = counters("8:pids:/a\n4:memory:/b/c\n0::/d.service\n", mounts);
        let expected = [
            "/sys/fs/cgroup/memory/b/c/memory.oom_control",
            "/sys/fs/cgroup/unified/d.service/memory.events",
        ];
        assert_eq!(files, expected.map(PathBuf::from));
        assert_eq!(counters("0::/\n", ""), Vec::<PathBuf>::new());
    }

    #[test]
    fn victims_are_counted_in_either_spelling() {
        assert_eq!(victims("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(victims("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), Some(1));
        assert_eq!(victims("oom_kill_disable 0\n"), None);
    }

    #[test]
    fn this_machine_counts() {
        assert!(machine().is_some());
    }
}
