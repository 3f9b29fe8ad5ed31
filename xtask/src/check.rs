//! `cargo xtask check`: everything that can be judged without running a test.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::build::{GUARD_BPF, OTLP};
use crate::layer_check::{self, File};
use crate::process::{read, run, say};
use crate::workspace::{Profile, Workspace};
use crate::{build_ebpf, facts, setup, traces};

type Step = fn(&Workspace) -> Result<()>;

/// Runs `check`: every step, also after one that failed, so that one run shows all there is to mend.
///
/// # Errors
///
/// When the tree cannot be read. Findings are not an error but the exit code 1.
pub(crate) fn command(workspace: &Workspace) -> Result<ExitCode> {
    let steps: [(&str, Step); 8] = [
        ("layers", layers),
        ("traces of a machine", machine),
        ("kernel facts", kernel_facts),
        ("fmt", fmt),
        ("clippy", clippy),
        ("guard-ebpf with its own compiler", ebpf_check),
        ("guard-ebpf clippy", ebpf_clippy),
        ("doc", doc),
    ];
    setup::ensure_lint_commands(workspace)?;
    let mut failed = Vec::new();
    for (name, step) in steps {
        let started = Instant::now();
        let result = step(workspace);
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        if let Err(error) = result {
            failed.push(name);
            say(format!("{error:#}"));
        }
        println!("{verdict:6} {name} ({:.1} s)", started.elapsed().as_secs_f64());
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn layers(workspace: &Workspace) -> Result<()> {
    found(layer_check::breaches(&files(workspace)?))
}

fn machine(workspace: &Workspace) -> Result<()> {
    found(traces::traces(&files(workspace)?))
}

fn kernel_facts(workspace: &Workspace) -> Result<()> {
    let files = files(workspace)?;
    found([facts::unpinned(&files), facts::outdated(&files), facts::unknown_exceptions(&files)].concat())
}

fn found(breaches: Vec<String>) -> Result<()> {
    if breaches.is_empty() {
        return Ok(());
    }
    for breach in &breaches {
        println!("{breach}");
    }
    bail!("{} found", breaches.len())
}

fn fmt(workspace: &Workspace) -> Result<()> {
    run(workspace.cargo_command().args(["fmt", "--all", "--check"])).context("`cargo fmt --all` mends this")
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let mut cargo = stub_cargo(workspace, "clippy")?;
    run(cargo.args(["--all-targets", "--", "-D", "warnings"]))?;
    let mut cargo = stub_cargo(workspace, "clippy")?;
    cargo.args(["--package", "guard", "--features", OTLP]);
    run(cargo.args(["--all-targets", "--", "-D", "warnings"]))
}

fn doc(workspace: &Workspace) -> Result<()> {
    run(stub_cargo(workspace, "doc")?.arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings"))
}

/// The compiler that builds the object is the judge of whether it builds without a warning, in both forms.
fn ebpf_check(workspace: &Workspace) -> Result<()> {
    let toolchain = setup::ensure_bpf(workspace, false)?;
    // Other flags in the folder of the builds would make each of the two compile core anew.
    let folder = workspace.target().join("ebpf-check");
    for profile in [Profile::Dev, Profile::Release] {
        let mut cargo = build_ebpf::bpf_cargo(workspace, &toolchain, "check", &folder);
        build_ebpf::features(&mut cargo, profile);
        run(build_ebpf::deny_warnings(&mut cargo, workspace, &toolchain))?;
    }
    Ok(())
}

/// Clippy exists for the host's compiler only, so it reads the BPF programs as host code. Nothing is linked.
fn ebpf_clippy(workspace: &Workspace) -> Result<()> {
    for features in [&["--features", "log"][..], &[]] {
        let mut cargo = stub_cargo(workspace, "clippy")?;
        cargo.args(["--package", "guard-ebpf"]).args(features);
        // no_std programs have no unwinding to offer.
        cargo.args(["--config", "profile.dev.panic=\"abort\"", "--", "-D", "warnings"]);
        run(&mut cargo)?;
    }
    Ok(())
}

/// A cargo command that needs no BPF object, in a target directory of its own:
/// switching guard between stub and object in one directory would compile it anew each time.
fn stub_cargo(workspace: &Workspace, subcommand: &str) -> Result<Command> {
    let folder = workspace.cargo_target()?.join("check");
    let mut cargo = workspace.cargo_command();
    cargo.arg(subcommand).args(workspace.locked()).arg("--target-dir").arg(folder).env(GUARD_BPF, "stub");
    Ok(cargo)
}

/// Every text file that is, or could become, part of the repository.
fn files(workspace: &Workspace) -> Result<Vec<File>> {
    let root = workspace.root();
    let mut paths = match tracked(root) {
        Ok(paths) => paths,
        // A source archive has no git folder; then everything but the build output counts.
        Err(_) => {
            let mut paths = Vec::new();
            walk(root, root, &mut paths)?;
            paths
        }
    };
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        // A file that is gone from disk but not yet from the index, and what is not text, have no lines to judge.
        if let Ok(text) = fs::read_to_string(root.join(&path)) {
            files.push(File { path, text });
        }
    }
    if files.is_empty() {
        bail!("no files found in {}", root.display());
    }
    Ok(files)
}

fn tracked(root: &Path) -> Result<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = read(Command::new("git").current_dir(root).args(arguments))?;
    Ok(listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

pub(crate) fn walk(root: &Path, folder: &Path, paths: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
        let path = entry.path();
        let kind = entry.file_type().with_context(|| format!("reading {}", path.display()))?;
        let name = entry.file_name();
        if kind.is_dir() && name != ".git" && !(folder == root && name == "target") {
            walk(root, &path, paths)?;
        } else if kind.is_file()
            && let Ok(inside) = path.strip_prefix(root)
        {
            paths.push(inside.to_string_lossy().into_owned());
        }
    }
    Ok(())
}
