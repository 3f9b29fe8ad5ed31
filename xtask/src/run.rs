//! `cargo xtask run`: build everything and start portguard; the newcomer's first command.

use std::{ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::build::{self, Embed};
use crate::process::{is_root, say};
use crate::setup;
use crate::workspace::{Profile, Workspace};

/// Options of `run`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Do not mention what root would add
    #[arg(long)]
    no_root_hint: bool,
    /// Arguments of portguard; without any, `portguard demo` runs
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// Runs `run`. Returns only on failure: portguard takes this process over, so
/// its exit code and its signals are the caller's.
///
/// # Errors
///
/// When a build fails or portguard cannot be started.
pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    let program = program(workspace)?;
    if !is_root() && !args.no_root_hint {
        say(
            "not root: portguard uses the best tier that you may have; `sudo` adds the kernel's own events (ebpf)",
        );
    }
    let mut portguard = Command::new(&program);
    if args.arguments.is_empty() {
        portguard.arg("demo");
    } else {
        portguard.args(&args.arguments);
    }
    let error = portguard.exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// The release build; without a BPF toolchain a development build that lacks the ebpf tier.
fn program(workspace: &Workspace) -> Result<PathBuf> {
    let chosen = std::env::var_os(build::GUARD_BPF).filter(|value| !value.is_empty());
    if chosen.as_deref().is_some_and(|value| value == "stub") {
        return build::portguard(workspace, Profile::Dev, Embed::Stub);
    }
    // Only a toolchain that cannot be had is a reason to do without; BPF programs that do not compile are not.
    if chosen.is_none()
        && let Err(error) = setup::ensure_bpf(workspace, false)
    {
        say(format!("{error:#}"));
        say("WITHOUT THE EBPF TIER: no BPF programs can be built here, so this portguard");
        say(
            "cannot see the kernel's own events. Verdicts are the same, gates open later (netlink or poll tier).",
        );
        say(format!("For the ebpf tier run once: {}", setup::mending_command()));
        return build::portguard(workspace, Profile::Dev, Embed::Stub);
    }
    build::prepare_object(workspace, Profile::Release, false)?;
    build::portguard(workspace, Profile::Release, Embed::Object)
}
