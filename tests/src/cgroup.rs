//! Cgroups of the running kernel, shaped like systemd's.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::DEADLINE;
use crate::process::Proc;
use crate::wait_until;

static MADE: AtomicU32 = AtomicU32::new(0);

/// A cgroup that this test made, `/portguard-test-….slice/NAME`. It is removed once it is empty.
#[derive(Debug)]
pub struct Cgroup {
    slice: PathBuf,
    folder: PathBuf,
    /// Its path, as `/proc/PID/cgroup` shows it.
    pub path: String,
}

impl Cgroup {
    /// A cgroup with this name, or why there is none.
    ///
    /// # Errors
    /// Where no cgroup v2 hierarchy is mounted, or nobody may make one.
    pub fn new(name: &str) -> Result<Self, String> {
        let mount = mount_point().ok_or("no cgroup v2 hierarchy is mounted")?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let slice = format!("portguard-test-{}-{number}.slice", std::process::id());
        let path = format!("/{slice}/{name}");
        let (slice, folder) = (mount.join(&slice), mount.join(path.trim_start_matches('/')));
        std::fs::create_dir_all(&folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
        Ok(Self { slice, folder, path })
    }

    /// A cgroup in the v1 hierarchy of this controller, or why there is none.
    ///
    /// # Errors
    /// Where that hierarchy is not mounted, or nobody may make a cgroup in it.
    pub fn of_controller(controller: &str, name: &str) -> Result<Self, String> {
        let found = mounted(|kind, options| kind == "cgroup" && options.split(',').any(|o| o == controller));
        let mount = found.ok_or_else(|| format!("no cgroup v1 hierarchy has the controller {controller}"))?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let slice = format!("portguard-test-{}-{number}.slice", std::process::id());
        let path = format!("/{slice}/{name}");
        let (slice, folder) = (mount.join(&slice), mount.join(path.trim_start_matches('/')));
        std::fs::create_dir_all(&folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
        Ok(Self { slice, folder, path })
    }

    /// Writes one of its files.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn set(&self, file: &str, value: &str) {
        std::fs::write(self.folder.join(file), value)
            .unwrap_or_else(|error| panic!("write {value} to {file} of {}: {error}", self.path));
    }

    /// One of its files; empty when it cannot be read.
    pub fn get(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }

    /// Moves a process in.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn take_in(&self, process: Proc) {
        std::fs::write(self.folder.join("cgroup.procs"), process.pid.to_string())
            .unwrap_or_else(|error| panic!("move {process} to {}: {error}", self.path));
    }

    /// The file to which a process writes `0` to move itself in.
    ///
    /// # Panics
    /// Never: the path has no NUL.
    pub fn procs(&self) -> CString {
        let file = self.folder.join("cgroup.procs").into_os_string().into_encoded_bytes();
        CString::new(file).expect("no NUL in a path")
    }

    /// Whether the kernel can freeze it, so that it is ended as a whole (Linux 5.2).
    pub fn can_be_killed(&self) -> bool {
        self.folder.join("cgroup.freeze").is_file()
    }

    /// The file to which `1` is written to end all of it (Linux 5.14).
    pub fn kill_file(&self) -> PathBuf {
        self.folder.join("cgroup.kill")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last member may still be on its way out; what cannot be removed is left to the next boot.
        wait_until(DEADLINE, || std::fs::remove_dir(&self.folder).is_ok() || !self.folder.exists());
        let _others_inside = std::fs::remove_dir(&self.slice);
    }
}

fn mount_point() -> Option<PathBuf> {
    mounted(|kind, _| kind == "cgroup2")
}

/// Where the first cgroup hierarchy that `wanted` accepts by its type and options is mounted from its root.
fn mounted(wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        let mut words = kind.split(' ');
        let found = wanted(words.next()?, words.nth(1)?);
        (found && root == "/").then(|| Path::new(point).to_owned())
    })
}
