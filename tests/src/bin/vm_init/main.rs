//! PID 1 of the test guests: sets the machine up, runs what the manifest says, reports, powers off. Where the manifest
//! wants systemd, it becomes that, and a service of systemd runs this program once more for the rest.
//!
//! The second serial port is the report: what the commands print, and lines of this program's
//! own, which begin with [`MARK`]. Whoever reads it trusts nothing that ends without `bye`.

#![expect(clippy::disallowed_methods, reason = "a process of its own, in which no test runs")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};

mod manifest;
mod setup;
mod steps;
mod systemd;

use manifest::Manifest;

/// What every line of this program begins with; `cargo xtask vm-test` looks for it.
const MARK: &str = "@vm ";

/// The port that carries the report. The first one is the kernel's console.
const REPORT: &str = "/dev/ttyS1";

/// Where the report goes.
#[derive(Debug)]
struct Report(File);

impl Report {
    fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(REPORT).context(REPORT)?;
        let mut terminal = tcgetattr(&file).context("read the settings of the serial port")?;
        terminal.output_flags.remove(OutputFlags::OPOST);
        tcsetattr(&file, SetArg::TCSANOW, &terminal).context("no line endings for terminals")?;
        Ok(Self(file))
    }

    /// One line of this program's own.
    fn say(&mut self, line: &str) {
        // Nobody is left to be told when the port itself fails; without `bye` the run is a failure.
        let _told = writeln!(self.0, "{MARK}{line}");
    }

    fn to_child(&self) -> Result<std::process::Stdio> {
        Ok(self.0.as_fd().try_clone_to_owned().context("share the serial port")?.into())
    }
}

fn main() -> ExitCode {
    let pid1 = std::process::id() == 1;
    match (pid1, std::env::args().nth(1).as_deref()) {
        (true, _) => power_off(setup::file_systems().and_then(|()| told(guest))),
        (false, Some(systemd::STEPS)) => power_off(told(|report, manifest| run(report, manifest, false))),
        (false, _) => {
            eprintln!("vm_init is the first program of a test guest: `cargo xtask vm-test` starts it there");
            ExitCode::FAILURE
        }
    }
}

/// Does what the manifest says, and tells the host how that went.
fn told(work: impl FnOnce(&mut Report, &Manifest) -> Result<()>) -> Result<()> {
    let mut report = Report::open()?;
    if let Err(error) = Manifest::read().and_then(|manifest| work(&mut report, &manifest)) {
        report.say(&format!("failed {error:#}"));
    }
    report.say("bye");
    nix::sys::termios::tcdrain(&report.0).context("wait for the serial port")
}

fn guest(report: &mut Report, manifest: &Manifest) -> Result<()> {
    setup::modules(&manifest.modules)?;
    setup::limits()?;
    setup::loopback()?;
    if manifest.systemd {
        match systemd::take_over()? {}
    }
    run(report, manifest, true)
}

fn run(report: &mut Report, manifest: &Manifest, alone: bool) -> Result<()> {
    report.say("ready");
    for step in &manifest.steps {
        steps::run(report, step)?;
        if alone {
            steps::end_the_rest();
        }
    }
    Ok(())
}

fn power_off(told: Result<()>) -> ExitCode {
    if let Err(error) = told {
        // The console; the host shows its last lines when a guest did not say `bye`.
        eprintln!("vm_init: {error:#}");
    }
    match reboot(RebootMode::RB_POWER_OFF) {
        Err(errno) => eprintln!("vm_init: power off: {errno}"),
        Ok(never) => match never {},
    }
    // The end of PID 1 is a panic, and with panic=-1 the end of the machine.
    ExitCode::FAILURE
}
