//! Cgroups by their number.
//!
//! The kernel hands BPF programs the id of a cgroup, which is the inode number of
//! its directory in the v2 hierarchy. It names the cgroup of a process that is
//! gone already.

use std::fs;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Directories that are looked at in one search. Busy hosts have a few thousand.
const MOST: usize = 20_000;

/// The path of the cgroup with this id below the root of the v2 hierarchy, as
/// `/proc/PID/cgroup` shows it; `None` when it is gone, lies outside of what is
/// mounted here, or no v2 hierarchy is mounted. Walks the hierarchy.
pub fn path(id: u64) -> Option<String> {
    let root = mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)?;
    if fs::metadata(&root).ok()?.ino() == id {
        return Some("/".to_owned());
    }
    let below = find(&root, id)?;
    Some(format!("/{}", below.strip_prefix(&root).ok()?.to_str()?))
}

fn find(root: &Path, id: u64) -> Option<PathBuf> {
    let mut folders = vec![root.to_owned()];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        // Gone meanwhile, or closed to this user: the search goes on without it.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            looked_at += 1;
            if entry.ino() == id {
                return Some(entry.path());
            }
            if looked_at > MOST {
                return None;
            }
            folders.push(entry.path());
        }
    }
    None
}

/// Where the whole v2 hierarchy is mounted.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (filesystem.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_hierarchy_is_found_among_others() {
        let text = "25 1 0:22 / /sys/fs/cgroup rw - tmpfs none rw\n\
                    26 25 0:23 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                    27 25 0:24 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point(&text.replace("cgroup2 ", "cgroup ")), None);
    }

    #[test]
    fn a_cgroup_is_found_by_the_number_of_its_directory() {
        const NAME: &str = "a_cgroup_is_found_by_the_number_of_its_directory";
        let Some(root) = mount_point(&fs::read_to_string("/proc/self/mountinfo").unwrap()) else {
            return crate::kernel::sandbox::skip(NAME, "no cgroup v2 hierarchy is mounted");
        };
        let name = format!("portguard-test-{}", std::process::id());
        let Ok(()) = fs::create_dir(root.join(&name)) else {
            return crate::kernel::sandbox::skip(NAME, "this user may not make a cgroup");
        };
        let inner = root.join(&name).join("inner");
        fs::create_dir(&inner).unwrap();
        let id = fs::metadata(&inner).unwrap().ino();
        let found = path(id);
        fs::remove_dir(&inner).unwrap();
        fs::remove_dir(root.join(&name)).unwrap();
        assert_eq!(found, Some(format!("/{name}/inner")));
        assert_eq!(path(id), None, "it is gone");
    }
}
