//! The systemd that is PID 1 of a test guest. Tests use it one after another, in its own network namespace, and
//! each leaves it as it was after the boot.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::{SESSION, USER, remove};
use crate::child::output;
use crate::process::PidFd;
use crate::wait_until;

/// Where it looks for the units of the tests.
pub const UNITS: &str = "/run/systemd/system";

/// Its cgroups.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// The variable by which `cargo xtask vm-test --systemd` says that PID 1 is there for the tests. Without it, PID 1
/// is somebody's own.
const OURS: &str = "PORTGUARD_TEST_PID1";

/// Cgroups of whoever belongs to the guest and not to a test.
const RESIDENTS: [&str; 2] = ["/init.scope", "/system.slice/dbus.service"];

/// Longest that the end of a test's processes takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether PID 1 is a systemd that is there for the tests.
pub fn is_ours() -> bool {
    let named = std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim_end() == "systemd");
    named && std::env::var_os(OURS).is_some_and(|value| value == "1")
}

/// What a test has made on PID 1.
#[derive(Debug)]
pub(super) struct Guest {
    units: Mutex<BTreeSet<String>>,
}

impl Guest {
    pub(super) fn new() -> Self {
        Self { units: Mutex::default() }
    }

    /// This unit is the test's.
    pub(super) fn owns(&self, unit: &str) {
        self.units.lock().unwrap_or_else(PoisonError::into_inner).insert(unit.to_owned());
    }

    /// Ends and forgets everything of the test.
    pub(super) fn clear(&self) {
        let units = self.units.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Nothing is started again once its stop is asked for, so SIGKILL comes second.
        systemctl(&["stop", "--no-block"], &units);
        systemctl(&["kill", "--signal=SIGKILL"], &units);
        systemctl(&["stop"], &units);
        let empty = wait_until(PATIENCE, || {
            let left = visitors();
            left.iter().for_each(|pidfd| pidfd.signal(Signal::SIGKILL));
            left.is_empty()
        });
        for unit in &units {
            let file = Path::new(UNITS).join(unit);
            // Whichever of the two it has.
            let _absent = std::fs::remove_file(&file);
            let _absent = std::fs::remove_dir_all(Path::new(UNITS).join(format!("{unit}.d")));
        }
        let runtime = format!("/run/user/{USER}");
        // Few tests mount it, and few have a sidecar.
        let _not_mounted = umount2(Path::new(&runtime), MntFlags::MNT_DETACH);
        for folder in [&runtime, "/run/portguard"] {
            let _absent = std::fs::remove_dir_all(folder);
        }
        let _kept_by_systemd = remove(&PathBuf::from(CGROUPS).join(SESSION));
        systemctl(&["daemon-reload"], &BTreeSet::new());
        systemctl(&["reset-failed"], &BTreeSet::new());
        if !empty && !std::thread::panicking() {
            panic!("a process of the test does not end");
        }
    }
}

/// `systemctl`, whatever comes of it: many a unit has never been started.
fn systemctl(words: &[&str], units: &BTreeSet<String>) {
    let needs_units = !matches!(words, ["daemon-reload" | "reset-failed"]);
    if needs_units && units.is_empty() {
        return;
    }
    output(Command::new("systemctl").args(words).args(units)).expect("run systemctl");
}

/// Every process that belongs neither to the guest nor to the test program itself, which is in a unit of its own.
fn visitors() -> Vec<PidFd> {
    let own = cgroup_of("self").unwrap_or_default();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let pidfd = PidFd::open(pid)?;
        // A kernel thread is in the root; a zombie has no say any more.
        let cgroup = cgroup_of(&pid.to_string()).filter(|cgroup| cgroup != "/" && *cgroup != own)?;
        let resident = RESIDENTS.contains(&cgroup.as_str());
        (!resident && !pidfd.ended_within(Duration::ZERO)).then_some(pidfd)
    })
    .collect()
}

fn cgroup_of(pid: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}
