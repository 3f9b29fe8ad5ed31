//! A guest whose PID 1 is systemd.

use std::convert::Infallible;
use std::fs::create_dir_all;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use guard_tests::systemd::{pid1, program, units};

/// The argument with which this program runs the steps of the manifest, as a service.
pub(crate) const STEPS: &str = "steps";

/// The service. However it ends, so does the guest.
const SERVICE: &str = "vm-steps.service";
const TEXT: &str = "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n\
    SuccessAction=poweroff-immediate\nFailureAction=poweroff-immediate\n\
    [Service]\nExecStart=/init steps\nLimitNOFILE=65536\nOOMPolicy=continue\n";

/// What it boots to: the target of the tests, and the service.
const TARGET: &str = "vm.target";

/// Becomes systemd, in the state in which every test finds it.
///
/// # Errors
/// When there is none, or a unit file cannot be written.
pub(crate) fn take_over() -> Result<Infallible> {
    let folder = Path::new(pid1::UNITS);
    create_dir_all(folder).context("make the folder for units")?;
    // Each test brings the units of its user.
    units::write_system(folder).context("write the units of the system")?;
    let wants = format!("[Unit]\nRequires={0} {SERVICE}\nAfter={0}\n", units::BOOTED);
    for (name, text) in [(SERVICE, TEXT), (TARGET, &wants)] {
        std::fs::write(folder.join(name), text).with_context(|| format!("write {name}"))?;
    }
    create_dir_all("/run/dbus").context("make a folder for the bus")?;
    create_dir_all("/run/user").context("make a folder for users")?;
    let program = program().context("no systemd is in the image")?;
    let error = Command::new(program)
        .args(["--system", &format!("--unit={TARGET}"), "--log-target=kmsg", "--show-status=0"])
        .exec();
    Err(error).context("become systemd")
}
