//! `cargo xtask build`: the BPF object, then portguard around it.

use std::{env, path::PathBuf};

use anyhow::Result;

use crate::process::say;
use crate::workspace::{Profile, Workspace};
use crate::{build_ebpf, cargo_json, setup};

/// The variable that `guard/build.rs` reads.
pub(crate) const GUARD_BPF: &str = "GUARD_BPF";

/// The feature of package guard that no build has unless somebody asks for it.
pub(crate) const OTLP: &str = "otlp";

/// Options of `build`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Optimised, without the log map in the BPF object
    #[arg(long)]
    release: bool,
    /// With the feature otlp: the sidecar exports its runs as traces
    #[arg(long)]
    otlp: bool,
}

/// What to embed in portguard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Embed {
    /// The object under `target/bpf`, or what the caller's `GUARD_BPF` names.
    Object,
    /// Nothing: portguard without its ebpf tier.
    Stub,
}

/// Runs `build`.
///
/// # Errors
///
/// When the BPF toolchain cannot be had or a build fails.
pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    let profile = Profile::from_flag(args.release);
    prepare_object(workspace, profile, true)?;
    let features = if args.otlp { &[OTLP][..] } else { &[] };
    println!("{}", portguard_with(features, workspace, profile, Embed::Object)?.display());
    Ok(())
}

/// Builds the object of a profile, unless `GUARD_BPF` already chose one.
///
/// # Errors
///
/// When the BPF toolchain cannot be had or the programs do not compile.
pub(crate) fn prepare_object(workspace: &Workspace, profile: Profile, talk: bool) -> Result<()> {
    if let Some(chosen) = env::var_os(GUARD_BPF).filter(|value| !value.is_empty()) {
        say(format!("{GUARD_BPF}={} is set: the BPF programs are not built", chosen.display()));
        return Ok(());
    }
    let toolchain = setup::ensure_bpf(workspace, talk)?;
    build_ebpf::build(workspace, &toolchain, profile)?;
    Ok(())
}

/// Builds portguard and returns the path of the binary.
///
/// # Errors
///
/// When the build fails.
pub(crate) fn portguard(workspace: &Workspace, profile: Profile, embed: Embed) -> Result<PathBuf> {
    portguard_with(&[], workspace, profile, embed)
}

/// Builds portguard with these features.
///
/// # Errors
///
/// When the build fails.
pub(crate) fn portguard_with(
    features: &[&str],
    workspace: &Workspace,
    profile: Profile,
    embed: Embed,
) -> Result<PathBuf> {
    let mut cargo = workspace.cargo_command();
    cargo.args(["build", "--package", "guard", "--bin", "portguard"]).args(workspace.locked());
    cargo.args(features.iter().flat_map(|feature| ["--features", feature]));
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    if embed == Embed::Stub {
        cargo.env(GUARD_BPF, "stub");
    }
    Ok(cargo_json::build(&mut cargo)?.binary("portguard")?.to_path_buf())
}
