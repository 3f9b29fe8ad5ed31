//! A real systemd: PID 1 of a PID namespace, as in a container, on the running kernel; in a test
//! guest that was booted for it, PID 1 itself ([`pid1`]).
//!
//! The one in a namespace has mounts, a cgroup v2 tree and a D-Bus of its own, reads only the unit files of its
//! test, and lives in the network namespace of the test that booted it. Nothing of the host is
//! started in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::child::{Child, output, status};
use crate::portguard::Portguard;
use crate::process::{Proc, only_child};
use crate::standin::{Plan, built, said};
use crate::{DEADLINE, wait_until};

pub mod pid1;
pub mod units;

use units::BOOTED;

/// Where Debian, Fedora and Arch have the program.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// The user whose own manager some tests start.
pub const USER: u32 = crate::caller::NOBODY;

/// Makes the namespaces' mounts and becomes systemd. `$1` is the folder with the unit files,
/// `$2` the program.
///
/// `/proc/sys` is read-only, as every container has it: PID 1 would raise the host's limits.
const BOOT: &str = r#"
set -e
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs -o mode=755,size=64M tmpfs /run
mkdir -p /run/lock /run/dbus /run/user
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    container=portguard-test SYSTEMD_UNIT_PATH="$1" SYSTEMD_CRASH_REBOOT=0 \
    "$2" --system --unit=test.target --log-target=null --show-status=0
"#;

/// The cgroup of a login session.
const SESSION: &str = "user.slice/user-0.slice/session-1.scope";

/// Moves into the cgroup `$1` and becomes the rest of the command line.
const MOVE: &str = r#"echo $$ > "$1/cgroup.procs"; shift; exec "$@""#;

/// A unit's `Restart=` and all else that a test wants to say of it.
#[derive(Debug)]
pub struct Service {
    name: String,
    service: Vec<String>,
    unit: Vec<String>,
}

impl Service {
    /// The unit `name`, which runs this stand-in.
    pub fn new(name: &str, standin: &Plan) -> Self {
        Self::running(name, &standin.command_line())
    }

    /// The unit `name`, which runs this command line.
    pub fn running(name: &str, command: &[String]) -> Self {
        let words: Vec<String> = command.iter().map(|word| format!("\"{word}\"")).collect();
        Self {
            name: name.to_owned(),
            service: vec![format!("ExecStart={}", words.join(" "))],
            unit: Vec::new(),
        }
    }

    /// A line of its `[Service]` section.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        self.service.push(line.to_owned());
        self
    }

    /// A line of its `[Unit]` section.
    #[must_use]
    pub fn unit(mut self, line: &str) -> Self {
        self.unit.push(line.to_owned());
        self
    }
}

/// A service manager in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// PID 1.
    System,
    /// [`USER`]'s own.
    User,
}

/// A booted systemd. Dropping it ends everything that runs in it.
#[derive(Debug)]
pub struct Machine {
    // Dropped first: it takes all processes along, and then the cgroups are empty.
    life: Life,
    init: i32,
    /// The root of its cgroups.
    cgroup: PathBuf,
    /// The system's unit files.
    units: PathBuf,
    folder: tempfile::TempDir,
}

/// What ends a machine.
#[derive(Debug)]
enum Life {
    Namespaces { unshare: Child, _cgroup: Cgroup },
    Pid1(pid1::Guest),
}

impl Machine {
    /// Why no systemd can be booted here.
    pub fn missing() -> Option<&'static str> {
        static MISSING: OnceLock<Option<&'static str>> = OnceLock::new();
        *MISSING.get_or_init(|| {
            let there = |program: &str| {
                std::env::var_os("PATH").is_some_and(|path| {
                    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
                })
            };
            if program().is_none() {
                Some("systemd is not installed")
            } else if !["systemctl", "systemd-run", "dbus-daemon", "unshare", "nsenter"]
                .into_iter()
                .all(there)
            {
                Some("systemctl, systemd-run, dbus-daemon, unshare or nsenter is not installed")
            } else if cgroup2().is_none() {
                Some("no cgroup v2 hierarchy is mounted in which this process has a place")
            } else {
                None
            }
        })
    }

    /// Boots it.
    ///
    /// # Panics
    /// When it is not up within [`DEADLINE`].
    pub fn boot() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        open(folder.path());
        if pid1::is_ours() {
            return Self::on_pid1(folder);
        }
        let units = folder.path().join("units");
        std::fs::create_dir(&units).expect("a folder for unit files");
        units::write_system(&units).expect("write the unit files");
        units::write_user(&units, &folder.path().join("user-units")).expect("write the unit files");
        let cgroup = Cgroup::new();
        let mut command = Command::new("sh");
        command
            .args(["-c", MOVE, "sh"])
            .arg(&cgroup.0)
            .args(["unshare", "--pid", "--fork", "--kill-child", "--mount", "--propagation", "private"])
            .args(["--cgroup", "--uts", "--ipc", "--", "sh", "-c", BOOT, "sh"])
            .arg(&units)
            .arg(program().expect("systemd is installed"));
        let unshare = Child::start(command, "systemd");
        let mut init = None;
        let forked = wait_until(DEADLINE, || {
            init = only_child(unshare.id.pid);
            init.is_some()
        });
        assert!(forked, "no PID namespace\n{}", unshare.said());
        let place = cgroup.0.clone();
        let life = Life::Namespaces { unshare, _cgroup: cgroup };
        let machine = Self { init: init.unwrap_or_default(), life, cgroup: place, units, folder };
        machine.is_up();
        machine
    }

    /// The PID 1 of this guest, which the machine before has left as it was after its boot.
    fn on_pid1(folder: tempfile::TempDir) -> Self {
        let guest = pid1::Guest::new();
        let units = PathBuf::from(pid1::UNITS);
        units::write_user(&units, &folder.path().join("user-units")).expect("write the unit files");
        guest.owns(&format!("user@{USER}.service"));
        let life = Life::Pid1(guest);
        let machine = Self { life, init: 1, cgroup: pid1::CGROUPS.into(), units, folder };
        machine.is_up();
        machine.systemctl(&["daemon-reload"]);
        machine
    }

    fn is_up(&self) {
        let up = wait_until(DEADLINE, || self.try_systemctl(&["is-active", BOOTED]).status.success());
        let said = match &self.life {
            Life::Namespaces { unshare, .. } => unshare.said(),
            Life::Pid1(_) => String::new(),
        };
        assert!(up, "systemd did not boot\n{said}");
    }

    /// The folder of a manager's unit files, of which this one is about to be written.
    fn units_of(&self, manager: Manager, unit: &str) -> PathBuf {
        match (manager, &self.life) {
            (Manager::User, _) => self.folder.path().join("user-units"),
            (Manager::System, life) => {
                if let Life::Pid1(guest) = life {
                    guest.owns(unit);
                }
                self.units.clone()
            }
        }
    }

    /// Starts [`USER`]'s own manager.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_user_manager(&self) {
        let runtime = self.root().join(format!("run/user/{USER}"));
        std::fs::create_dir_all(&runtime).expect("the user's runtime folder");
        std::os::unix::fs::chown(&runtime, Some(USER), Some(USER)).expect("give it to the user");
        std::fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("close the user's runtime folder");
        self.systemctl(&["start", &format!("user@{USER}.service")]);
    }

    /// Writes a service's unit file and makes it known.
    ///
    /// # Panics
    /// When it cannot be written or read.
    pub fn install(&self, manager: Manager, service: &Service) {
        let folder = self.units_of(manager, &service.name);
        // What the unit says goes to a file: see `said`.
        let text = format!(
            "[Unit]\nDefaultDependencies=no\n{}\n[Service]\nStandardOutput=append:{}\n{}\n",
            service.unit.join("\n"),
            self.output_of(&service.name).display(),
            service.service.join("\n"),
        );
        std::fs::write(folder.join(&service.name), text).expect("write a unit file");
        self.ask(manager, &["daemon-reload"]);
    }

    /// Adds a drop-in to a unit and makes it known.
    ///
    /// # Panics
    /// When it cannot be written or read.
    pub fn drop_in(&self, manager: Manager, unit: &str, text: &str) {
        let folder = self.units_of(manager, unit).join(format!("{unit}.d"));
        std::fs::create_dir_all(&folder).expect("a folder for drop-ins");
        std::fs::write(folder.join("10-test.conf"), text).expect("write a drop-in");
        self.ask(manager, &["daemon-reload"]);
    }

    /// Writes any other unit file of the system and makes it known.
    ///
    /// # Panics
    /// When it cannot be written or read.
    pub fn install_text(&self, name: &str, text: &str) {
        let text = format!("[Unit]\nDefaultDependencies=no\n{text}");
        std::fs::write(self.units_of(Manager::System, name).join(name), text).expect("write a unit file");
        self.systemctl(&["daemon-reload"]);
    }

    /// Installs a service and starts it.
    pub fn start(&self, service: &Service) {
        self.install(Manager::System, service);
        self.systemctl(&["start", &service.name]);
    }

    /// Waits for a line of the stand-in that a unit runs, and returns it. `nth` counts from 0
    /// over the life of the machine.
    ///
    /// # Panics
    /// When there is none within [`DEADLINE`].
    pub fn line(&self, unit: &str, what: &str, nth: usize) -> Value {
        let mut found = None;
        let came = wait_until(DEADLINE, || {
            found = self.said(unit, what).into_iter().nth(nth);
            found.is_some()
        });
        assert!(came, "{unit}: no line {what} number {nth}\n{}", self.status(unit));
        found.unwrap_or_default()
    }

    /// The stand-in's lines of this kind, of all the unit's processes so far.
    pub fn said(&self, unit: &str, what: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.output_of(unit)).unwrap_or_default();
        text.lines().filter_map(|line| said(line, what)).collect()
    }

    fn output_of(&self, unit: &str) -> PathBuf {
        self.folder.path().join(format!("{unit}.out"))
    }

    /// A folder that everybody in the machine may read and write.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `systemctl ARGUMENTS`, which must succeed; its standard output.
    pub fn systemctl(&self, arguments: &[&str]) -> String {
        self.ask(Manager::System, arguments)
    }

    /// `systemctl ARGUMENTS`, whatever comes of it.
    pub fn try_systemctl(&self, arguments: &[&str]) -> Output {
        output(self.command(&["systemctl"]).args(arguments)).expect("run systemctl")
    }

    /// `systemctl [--user] ARGUMENTS`, which must succeed; its standard output.
    ///
    /// # Panics
    /// When it does not.
    pub fn ask(&self, manager: Manager, arguments: &[&str]) -> String {
        let mut command = match manager {
            Manager::System => self.command(&["systemctl"]),
            Manager::User => {
                let runtime = format!("XDG_RUNTIME_DIR=/run/user/{USER}");
                let (uid, gid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
                self.command(&[
                    "setpriv",
                    &uid,
                    &gid,
                    "--clear-groups",
                    "env",
                    &runtime,
                    "systemctl",
                    "--user",
                ])
            }
        };
        let output = output(command.args(arguments)).expect("run systemctl");
        assert!(output.status.success(), "systemctl {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// One property of a unit.
    pub fn show(&self, unit: &str, property: &str) -> String {
        self.systemctl(&["show", "--value", "-p", property, unit])
    }

    /// What a person would look at, for messages.
    pub fn status(&self, unit: &str) -> String {
        let output = self.try_systemctl(&["status", "--full", unit]);
        let lines = std::fs::read_to_string(self.output_of(unit)).unwrap_or_default();
        format!("--- status of {unit}\n{}\n{lines}", String::from_utf8_lossy(&output.stdout))
    }

    /// The main process of a unit, as its own PID namespace numbers it.
    ///
    /// # Panics
    /// When it has none.
    pub fn main_process(&self, unit: &str) -> Proc {
        let pid = self.show(unit, "MainPID").parse().expect("a PID");
        self.process(pid).unwrap_or_else(|| panic!("{unit} has no main process\n{}", self.status(unit)))
    }

    /// The process with this PID in the machine.
    pub fn process(&self, pid: i32) -> Option<Proc> {
        Proc::of_in(&self.root().join("proc"), pid)
    }

    /// Any of its threads still runs.
    pub fn alive(&self, process: Proc) -> bool {
        process.alive_in(&self.root().join("proc"))
    }

    /// Its root folder, as seen from outside.
    pub fn root(&self) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root")
    }

    /// `portguard COMMAND` for this port, run by root from a login session of the machine.
    pub fn portguard(&self, portguard: Portguard) -> Portguard {
        portguard.through(self.session())
    }

    /// `portguard COMMAND`, run by [`USER`] from a login session.
    pub fn portguard_of_user(&self, portguard: Portguard) -> Portguard {
        let mut line = self.session();
        line.extend(["setpriv", "--clear-groups"].map(str::to_owned));
        line.extend([format!("--reuid={USER}"), format!("--regid={USER}")]);
        portguard.through(line).program(self.reachable("portguard"))
    }

    /// Starts a command line in a login session of the machine: outside of any unit.
    pub fn stray(&self, words: &[&str]) -> Child {
        Child::start(self.command(words), words[0])
    }

    /// A command line that runs whatever follows in a login session of the machine.
    fn session(&self) -> Vec<String> {
        let scope = self.cgroup.join(SESSION);
        std::fs::create_dir_all(&scope).expect("a cgroup for the login session");
        let scope = scope.to_str().expect("a path in UTF-8").to_owned();
        let words = ["sh", "-c", MOVE, "sh", &scope, "nsenter", "--target"];
        let mut line: Vec<String> = words.into_iter().map(str::to_owned).collect();
        line.push(self.init.to_string());
        line.extend(["--pid", "--mount", "--cgroup", "--uts", "--ipc", "--"].map(str::to_owned));
        line
    }

    /// A command in a login session of the machine.
    pub fn command(&self, words: &[&str]) -> Command {
        let session = self.session();
        let mut command = Command::new(&session[0]);
        command.args(&session[1..]).args(words);
        command.env("NO_COLOR", "1").env("SYSTEMD_PAGER", "");
        command
    }

    /// A copy of a program of the tests that every user of the machine may execute.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn reachable(&self, name: &str) -> PathBuf {
        let copy = self.folder.path().join(name);
        if !copy.is_file() {
            let copied = status(Command::new("cp").arg(built(name)).arg(&copy)).expect("run cp");
            assert!(copied.success(), "copy {name}");
        }
        copy
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let unshare = match &mut self.life {
            Life::Namespaces { unshare, .. } => unshare,
            Life::Pid1(guest) => return guest.clear(),
        };
        // SIGKILL to a PID namespace's PID 1 ends all of it.
        unshare.signal(nix::sys::signal::Signal::SIGKILL);
        let init = Path::new("/proc").join(self.init.to_string());
        wait_until(Duration::from_secs(10), || !init.exists());
    }
}

/// A cgroup for one machine.
#[derive(Debug)]
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = cgroup2().expect("a place in the cgroup v2 hierarchy");
        let cgroup = folder.join(format!("portguard-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&cgroup).expect("make a cgroup");
        Self(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever is left, such as a portguard that a failed test forgot. Kernels before 5.14 have
        // no such file; there the processes are gone with their PID namespace.
        let _killed = std::fs::write(self.0.join("cgroup.kill"), "1");
        let empty = wait_until(Duration::from_secs(10), || remove(&self.0).is_ok());
        if !empty && !std::thread::panicking() {
            panic!("the cgroup {} is left behind", self.0.display());
        }
    }
}

/// Removes a cgroup and all below it.
fn remove(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    std::fs::remove_dir(folder)
}

/// The folder of this process's own cgroup in the v2 hierarchy.
fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        // Field 5 is the mount point.
        kind.starts_with("cgroup2 ").then(|| place.split(' ').nth(4))?
    })?;
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = Path::new(mount).join(path.trim_start_matches('/'));
    folder.is_dir().then_some(folder)
}

/// Where systemd is.
pub fn program() -> Option<&'static Path> {
    SYSTEMD.into_iter().map(Path::new).find(|path| path.is_file())
}

/// Lets everybody in.
fn open(folder: &Path) {
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("open a folder to everybody");
}
