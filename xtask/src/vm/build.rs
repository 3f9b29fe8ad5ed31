//! Builds of everything that runs in a guest: the same ones that `cargo xtask test` makes, so neither compiles what the other has.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cargo_json::{self, Built, Executable};
use crate::process::say;
use crate::test;
use crate::workspace::Workspace;

/// Programs that the end-to-end tests run by name, beside portguard.
const OTHERS: [&str; 3] = ["standin", "bench", "pid_reuse"];

/// The programs of the guests.
#[derive(Debug)]
pub(crate) struct Programs {
    /// `portguard`.
    pub(crate) portguard: PathBuf,
    /// PID 1.
    pub(crate) init: PathBuf,
    /// What asks for the features.
    pub(crate) probe: PathBuf,
    /// What the tests run besides.
    pub(crate) others: Vec<PathBuf>,
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
    say("building the programs for the guests");
    let cargo = |arguments: &[&str]| {
        cargo_json::build(workspace.cargo_command().args(arguments).args(workspace.locked()))
    };
    let bins = cargo(&test::PROGRAMS)?;
    let mut arguments = test::harnesses();
    arguments.extend(end_to_end.then_some(["--test", "e2e"]).into_iter().flatten());
    arguments.extend(unit.then_some("--lib"));
    let tests = if end_to_end || unit { cargo(&arguments)? } else { Built::default() };
    let harness = |package: &str, target: &str| -> Result<PathBuf> {
        let is = |made: &&Executable| made.test && made.package == package && made.target == target;
        let made = tests.executables.iter().find(is);
        Ok(made.with_context(|| format!("the build made no tests `{target}`"))?.path.clone())
    };
    Ok(Programs {
        portguard: bins.binary("portguard")?.to_path_buf(),
        init: bins.binary("vm_init")?.to_path_buf(),
        probe: bins.binary("vm_probe")?.to_path_buf(),
        others: OTHERS.into_iter().map(|name| Ok(bins.binary(name)?.to_path_buf())).collect::<Result<_>>()?,
        end_to_end: end_to_end.then(|| harness(test::END_TO_END, "e2e")).transpose()?,
        unit: unit.then(|| harness("guard", "guard")).transpose()?,
    })
}
