//! `cargo xtask build-ebpf`: compiles `guard-ebpf` to the object that `guard` embeds.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process::{run, say};
use crate::setup;
use crate::toolchain::Toolchain;
use crate::workspace::{Profile, Workspace};

/// Options of `build-ebpf`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Without the log map: what a release of portguard embeds
    #[arg(long)]
    release: bool,
}

/// The BPF target of this host's byte order.
#[cfg(target_endian = "little")]
const TARGET: &str = "bpfel-unknown-none";
/// The BPF target of this host's byte order.
#[cfg(target_endian = "big")]
const TARGET: &str = "bpfeb-unknown-none";

/// The instruction set: 32-bit ALU and jumps, in every kernel since 5.1.
/// Named here so that the object does not depend on an LLVM's own default.
const BPF_CPU: &str = "v3";

/// Runs `build-ebpf`.
///
/// # Errors
///
/// When the toolchain cannot be had, or the programs do not compile.
pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    let profile = Profile::from_flag(args.release);
    let toolchain = setup::ensure_bpf(workspace, true)?;
    let object = build(workspace, &toolchain, profile)?;
    println!("{}", object.display());
    Ok(())
}

/// Builds the object of a profile and puts it where `guard/build.rs` looks.
///
/// The file is written only when its bytes changed: its time stamp decides
/// whether guard is compiled again.
///
/// # Errors
///
/// When the programs do not compile or the object cannot be stored.
pub(crate) fn build(workspace: &Workspace, toolchain: &Toolchain, profile: Profile) -> Result<PathBuf> {
    let folder = workspace.target().join("ebpf");
    let mut cargo = bpf_cargo(workspace, toolchain, "build", &folder);
    features(&mut cargo, profile);
    run(&mut cargo).context("building the BPF programs")?;
    let built = folder.join(TARGET).join("release").join("guard-ebpf");
    let object = workspace.bpf_object(profile);
    let bytes = fs::read(&built).with_context(|| format!("reading the built object {}", built.display()))?;
    if store(&object, &bytes)? {
        say(format!("BPF object ({}): {} bytes, new", profile.folder(), bytes.len()));
    }
    Ok(object)
}

/// The BPF programs log to user space in development builds only.
pub(crate) fn features(cargo: &mut Command, profile: Profile) {
    if profile == Profile::Dev {
        cargo.args(["--features", "log"]);
    }
}

/// A cargo command for `guard-ebpf` on the BPF target, with everything that the target needs.
pub(crate) fn bpf_cargo(
    workspace: &Workspace,
    toolchain: &Toolchain,
    subcommand: &str,
    folder: &Path,
) -> Command {
    let mut cargo = Command::new(&toolchain.cargo);
    cargo
        .current_dir(workspace.root())
        .args([subcommand, "--package", "guard-ebpf", "--bin", "guard-ebpf", "--release"])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .args(workspace.locked())
        .arg("--target-dir")
        .arg(folder);
    // Whatever the caller's environment says about compilers is about the host's.
    for variable in
        ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(variable);
    }
    let variable = format!("CARGO_TARGET_{}_LINKER", TARGET.to_uppercase().replace('-', "_"));
    cargo
        .env("RUSTC", &toolchain.rustc)
        // Lets a stable compiler and a stable cargo use -Z; a nightly ignores it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env(variable, workspace.bpf_linker())
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(workspace, toolchain))
        // The workspace's release profile is for the host. Here the linker optimises the whole
        // program by itself, and it makes the BTF, which the kernel wants, from full debug info.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3");
    cargo
}

/// Turns the warnings of our own packages into errors; cargo caps those of others.
pub(crate) fn deny_warnings<'a>(
    cargo: &'a mut Command,
    workspace: &Workspace,
    toolchain: &Toolchain,
) -> &'a mut Command {
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags(workspace, toolchain) + "\u{1f}-Dwarnings")
}

/// The flags, separated as cargo wants them: a path may contain a blank.
fn rustflags(workspace: &Workspace, toolchain: &Toolchain) -> String {
    let mut flags = vec![
        // aya-ebpf chooses register layouts by the architecture of the kernel, which the BPF target does not name.
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        format!("-Ctarget-cpu={BPF_CPU}"),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
    ];
    // BTF carries file names; they should not tell whose machine built the object.
    let mut remap =
        |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    if let Some(home) = cargo_home() {
        remap(&home, "cargo");
    }
    let source = toolchain.sysroot.join("lib/rustlib/src/rust");
    // Debian's folder is a link, and the compiler names some files by where it leads.
    if let Ok(real) = fs::canonicalize(&source) {
        remap(&real, "rust");
    }
    remap(&source, "rust");
    remap(workspace.root(), ".");
    flags.join("\u{1f}")
}

fn cargo_home() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| value.as_os_str() != OsStr::new(""));
    set("CARGO_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(set("HOME")?).join(".cargo")))
}

/// Returns whether the bytes were new.
fn store(path: &Path, bytes: &[u8]) -> Result<bool> {
    match fs::read(path) {
        Ok(old) if old == bytes => return Ok(false),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("reading {}", path.display()));
        }
        _ => {}
    }
    let folder = path.parent().context("the object path has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    // A build that reads the object at this moment sees the old one or the new one, never half.
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&fresh, bytes).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("replacing {}", path.display()))?;
    Ok(true)
}
