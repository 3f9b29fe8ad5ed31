//! `cargo xtask setup`: everything that a build or a test needs and is not there yet.

use std::{fs, process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::linker;
use crate::process::{install, is_root, read, say, which};
use crate::toolchain::{self, Toolchain};
use crate::workspace::Workspace;

/// Options of `setup`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Only say what is there and what is missing; exits with 1 when something is
    #[arg(long)]
    check: bool,
}

/// The packages that Debian splits the compiler and its source into.
const DEBIAN_RUST: [&str; 2] = ["rustc-web", "rust-web-src"];

/// Commands that the end-to-end tests run, and the Debian package of each.
const TEST_COMMANDS: [(&str, &str); 7] = [
    ("node", "nodejs"),
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("ps", "procps"),
    ("unshare", "util-linux"),
    ("systemctl", "systemd"),
    ("dbus-daemon", "dbus-daemon"),
];

/// `rust-src` is 3 MB, a minimal nightly some 100 MB: enough for a slow line, not for a dead one.
const COMPONENT_LIMIT: Duration = Duration::from_secs(90);
const TOOLCHAIN_LIMIT: Duration = Duration::from_secs(600);
const APT_LIMIT: Duration = Duration::from_secs(900);

/// Runs `setup`.
///
/// # Errors
///
/// When something is missing and could not be installed; the message names the command that mends it.
pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.check {
        return check(workspace);
    }
    ensure_bpf(workspace, true)?;
    ensure_test_commands()
}

fn check(workspace: &Workspace) -> Result<()> {
    let mut missing = Vec::new();
    let search = toolchain::search(workspace);
    for why in &search.rejected {
        say(format!("looked at {why}"));
    }
    match &search.found {
        Some(toolchain) => {
            say(format!("BPF toolchain: {toolchain}"));
            match linker::state(workspace, toolchain) {
                Ok(version) => say(format!("linker: {version}")),
                Err(why) => missing.push(format!("bpf-linker ({why})")),
            }
        }
        None => missing.push("a Rust compiler with the source of core".into()),
    }
    missing.extend(missing_test_commands().iter().map(|(command, _)| format!("the command `{command}`")));
    if missing.is_empty() {
        say("nothing is missing");
        return Ok(());
    }
    bail!("missing: {}; `cargo xtask setup` installs it", missing.join(", "))
}

/// A toolchain for the BPF programs and a linker that fits it, installed when missing.
///
/// Needs no network when both are there. `talk` also reports what was found and passed over.
///
/// # Errors
///
/// When nothing fits and nothing could be installed.
pub(crate) fn ensure_bpf(workspace: &Workspace, talk: bool) -> Result<Toolchain> {
    let toolchain = ensure_toolchain(workspace, talk)?;
    let version = linker::ensure(workspace, &toolchain)?;
    if talk {
        say(format!("linker: {version}"));
    }
    Ok(toolchain)
}

fn ensure_toolchain(workspace: &Workspace, talk: bool) -> Result<Toolchain> {
    let mut search = toolchain::search(workspace);
    if search.found.is_none() {
        say("no Rust compiler with the source of core is installed yet");
        for why in &search.rejected {
            say(format!("looked at {why}"));
        }
        for attempt in attempts(search.nightly_without_source.as_deref()) {
            say(format!("installing: {}", attempt.what));
            if let Err(error) = (attempt.install)() {
                say(format!("not possible: {error:#}"));
                continue;
            }
            search = toolchain::search(workspace);
            if search.found.is_some() {
                break;
            }
            for why in &search.rejected {
                say(format!("still not: {why}"));
            }
        }
    } else if talk {
        for why in &search.rejected {
            say(format!("passed over {why}"));
        }
    }
    let Some(toolchain) = search.found else {
        bail!(
            "the BPF programs need a Rust compiler with the source of core; there is none and none could be \
             installed here. Mend it with: {}",
            mending_command()
        );
    };
    if talk {
        say(format!("BPF toolchain: {toolchain}"));
    }
    Ok(toolchain)
}

struct Attempt {
    what: String,
    install: Box<dyn Fn() -> Result<()>>,
}

/// What may be installed here, the cheapest first: the source for a nightly
/// that is there already, then Debian's pair, then a whole nightly.
fn attempts(nightly_without_source: Option<&str>) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    if let Some(nightly) = nightly_without_source {
        let nightly = nightly.to_owned();
        attempts.push(Attempt {
            what: format!("the component rust-src of rustup's {nightly}"),
            install: Box::new(move || {
                install(
                    rustup().args(["component", "add", "rust-src", "--toolchain", &nightly]),
                    COMPONENT_LIMIT,
                )
            }),
        });
    }
    if is_debian() && is_root() {
        attempts.push(Attempt {
            what: format!("Debian's {}", DEBIAN_RUST.join(" and ")),
            install: Box::new(|| apt_install(&DEBIAN_RUST)),
        });
    }
    if nightly_without_source.is_none() && which("rustup").is_some() {
        attempts.push(Attempt {
            what: "a minimal nightly with rust-src by rustup".into(),
            install: Box::new(|| {
                let arguments =
                    ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
                install(rustup().args(arguments).arg("--no-self-update"), TOOLCHAIN_LIMIT)
            }),
        });
    }
    attempts
}

/// The one command that a person can run where this program may not.
pub(crate) fn mending_command() -> String {
    if is_debian() && which("rustup").is_none() {
        let sudo = if is_root() { "" } else { "sudo " };
        return format!("{sudo}apt-get install {}", DEBIAN_RUST.join(" "));
    }
    if is_debian() && !is_root() {
        return format!(
            "sudo apt-get install {} (or: rustup toolchain install nightly --component rust-src)",
            DEBIAN_RUST.join(" ")
        );
    }
    "rustup toolchain install nightly --component rust-src".into()
}

fn rustup() -> Command {
    let mut command = Command::new("rustup");
    // A host that cannot reach the component server should learn it at once, not after a series of retries.
    command.env("RUSTUP_AUTO_INSTALL", "0").env("RUSTUP_MAX_RETRIES", "0").env_remove("RUSTUP_TOOLCHAIN");
    command
}

/// Makes sure of the commands that the end-to-end tests run.
///
/// # Errors
///
/// When one is missing and cannot be installed here.
pub(crate) fn ensure_test_commands() -> Result<()> {
    ensure_packages("the tests", &missing_test_commands())
}

/// Installs what lacks of the commands that `what_for` runs, each with its Debian package.
///
/// # Errors
///
/// When one is missing and cannot be installed here.
pub(crate) fn ensure_packages(what_for: &str, missing: &[(&str, &str)]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let commands: Vec<_> = missing.iter().map(|(command, _)| *command).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    if !(is_debian() && is_root()) {
        bail!(
            "{what_for} need {}, which is not installed; mend it with: sudo apt-get install {}",
            commands.join(", "),
            packages.join(" ")
        );
    }
    say(format!("installing for {what_for}: {}", packages.join(" ")));
    apt_install(&packages)
}

fn missing_test_commands() -> Vec<(&'static str, &'static str)> {
    TEST_COMMANDS.into_iter().filter(|(command, _)| which(command).is_none()).collect()
}

/// Makes sure of `cargo fmt` and `cargo clippy`, which a minimal rustup profile leaves out.
///
/// # Errors
///
/// When one is missing and rustup cannot add it.
pub(crate) fn ensure_lint_commands(workspace: &Workspace) -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if read(workspace.cargo_command().args([subcommand, "--version"])).is_ok() {
            continue;
        }
        say(format!("installing the component {component} of the active toolchain"));
        let mut add = Command::new("rustup");
        add.env("RUSTUP_MAX_RETRIES", "0")
            .args(["component", "add", component])
            .current_dir(workspace.root());
        install(&mut add, COMPONENT_LIMIT)?;
    }
    Ok(())
}

/// Installs Debian packages. A failing `update` is not the end: the lists on disk may do.
///
/// # Errors
///
/// When apt-get cannot install them.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    if let Err(error) = install(&mut apt(&["update"]), APT_LIMIT) {
        say(format!("{error:#}; going on with the package lists on disk"));
    }
    install(apt(&["install", "--yes", "--no-install-recommends"]).args(packages), APT_LIMIT)
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=1"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Whether packages come by apt here (Debian and its descendants).
pub(crate) fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let is = |line: &str| {
        let value = line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE="));
        value.is_some_and(|value| value.split(['"', ' ']).any(|word| word == "debian"))
    };
    release.lines().any(is) && which("apt-get").is_some()
}

/// Checks that a C linker is there before cargo reports its absence in twenty lines.
///
/// # Errors
///
/// When neither `cc` nor permission to install it is there.
pub(crate) fn ensure_host_linker() -> Result<()> {
    if which("cc").is_some() {
        return Ok(());
    }
    if is_debian() && is_root() {
        say("installing a C linker: gcc libc6-dev");
        return apt_install(&["gcc", "libc6-dev"]);
    }
    bail!("no C linker `cc`; mend it with: sudo apt-get install gcc libc6-dev")
}
