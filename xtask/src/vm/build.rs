//! Static builds of everything that runs in a guest: a guest has no libraries of ours.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cargo_json::{self, Built};
use crate::process::say;
use crate::workspace::Workspace;

/// The target is named even though it is the host's own: build scripts and macros then stay as they
/// are, and these builds get a folder beside the usual ones.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs of the guests.
#[derive(Debug)]
pub(crate) struct Programs {
    /// `portguard`.
    pub(crate) portguard: PathBuf,
    /// PID 1.
    pub(crate) init: PathBuf,
    /// What asks for the features.
    pub(crate) probe: PathBuf,
    /// The program that the tests guard.
    pub(crate) stand_in: PathBuf,
    /// The end-to-end tests, where they were asked for.
    pub(crate) end_to_end: Option<PathBuf>,
    /// The unit tests of package guard, where they were asked for.
    pub(crate) unit: Option<PathBuf>,
}

/// Builds them, around the BPF object that is there: the tests only where they are asked for.
///
/// # Errors
///
/// When a build fails.
pub(crate) fn programs(workspace: &Workspace, end_to_end: bool, unit: bool) -> Result<Programs> {
    say("building static programs for the guests");
    let bins = cargo(workspace, &["build", "--package", "guard", "--package", "guard-tests", "--bins"])?;
    let tests = || cargo(workspace, &["test", "--no-run", "--package", "guard-tests", "--test", "e2e"]);
    let tests = end_to_end.then(tests).transpose()?;
    let lib = || cargo(workspace, &["test", "--no-run", "--package", "guard", "--lib"]);
    let unit = unit.then(lib).transpose()?;
    let harness = |built: &Built, target: &str| -> Result<PathBuf> {
        let made = built.executables.iter().find(|made| made.test && made.target == target);
        Ok(made.with_context(|| format!("the build made no tests `{target}`"))?.path.clone())
    };
    Ok(Programs {
        portguard: bins.binary("portguard")?.to_path_buf(),
        init: bins.binary("vm_init")?.to_path_buf(),
        probe: bins.binary("vm_probe")?.to_path_buf(),
        stand_in: bins.binary("standin")?.to_path_buf(),
        end_to_end: tests.map(|built| harness(&built, "e2e")).transpose()?,
        unit: unit.map(|built| harness(&built, "guard")).transpose()?,
    })
}

fn cargo(workspace: &Workspace, arguments: &[&str]) -> Result<Built> {
    let mut cargo = workspace.cargo_command();
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", TARGET.to_uppercase().replace('-', "_"));
    cargo
        .args(arguments)
        .args(["--target", TARGET])
        .args(workspace.locked())
        .env(flags, "-Ctarget-feature=+crt-static")
        // It would win over the flags of the target.
        .env_remove("RUSTFLAGS")
        // A panic names its place without it, and an image is unpacked by an emulated processor.
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    cargo_json::build(&mut cargo)
}
