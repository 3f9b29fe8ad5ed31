//! The tools to compare with: installed into the target folder where that is possible, else named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

use crate::process::{install, is_root, read, say, which};
use crate::setup;
use crate::workspace::Workspace;

/// A command and the Debian package that brings it.
const DEBIAN: [(&str, &str); 4] =
    [("lsof", "lsof"), ("fuser", "psmisc"), ("ss", "iproute2"), ("tcpstates", "libbpf-tools")];
/// From crates.io.
const CRATES: [&str; 1] = ["killport"];
/// A command and the npm package that brings it.
const NPM: [(&str, &str); 2] = [("fkill", "fkill-cli"), ("kill-port", "kill-port")];

const CRATE_LIMIT: Duration = Duration::from_secs(900);
const NPM_LIMIT: Duration = Duration::from_secs(300);

/// Where what is not a system package goes.
pub(crate) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target().join("bench").join("peers")
}

/// Installs what is missing. What cannot be installed is said, and shown as absent by the measurements.
///
/// # Errors
///
/// When the folder cannot be made.
pub(crate) fn ensure(workspace: &Workspace) -> Result<()> {
    let folder = folder(workspace);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for (command, package) in DEBIAN {
        if which(command).is_none() && system_tool(command).is_none() {
            told(package, debian(package));
        }
    }
    for name in CRATES {
        if !folder.join("bin").join(name).is_file() {
            told(name, crates(workspace, &folder, name));
        }
    }
    for (command, package) in NPM {
        if !folder.join("node_modules/.bin").join(command).exists() {
            told(package, npm(&folder, package));
        }
    }
    Ok(())
}

fn told(name: &str, result: Result<()>) {
    match result {
        Ok(()) => say(format!("installed to compare with: {name}")),
        Err(error) => say(format!("{name} cannot be compared with: {error:#}")),
    }
}

/// libbpf-tools lie beside the path of an ordinary user on some distributions.
fn system_tool(command: &str) -> Option<PathBuf> {
    let path = Path::new("/usr/sbin").join(command);
    path.is_file().then_some(path)
}

fn debian(package: &str) -> Result<()> {
    if !(setup::is_debian() && is_root()) {
        bail!("its package {package} can be installed here by apt-get as root only");
    }
    setup::apt_install(&[package])
}

fn crates(workspace: &Workspace, folder: &Path, name: &str) -> Result<()> {
    let mut cargo = Command::new(workspace.cargo());
    // Not in the checkout: its settings are not the tool's.
    cargo.current_dir(folder).args(["install", "--locked", "--root"]).arg(folder).arg(name);
    install(cargo.env("CARGO_TARGET_DIR", folder.join("build")), CRATE_LIMIT)
}

fn npm(folder: &Path, package: &str) -> Result<()> {
    if which("npm").is_none() {
        bail!("npm is not installed");
    }
    let mut npm = Command::new("npm");
    npm.arg("--prefix").arg(folder).args(["install", "--no-fund", "--no-audit", "--ignore-scripts", package]);
    install(&mut npm, NPM_LIMIT)
}

/// Which version of each was measured.
pub(crate) fn versions(workspace: &Workspace) -> Value {
    let folder = folder(workspace);
    let mut versions = Map::new();
    for (_, package) in DEBIAN {
        let mut dpkg = Command::new("dpkg-query");
        if let Ok(version) = read(dpkg.args(["--showformat=${Version}", "--show", package])) {
            versions.insert(package.to_owned(), version.trim().into());
        }
    }
    for name in CRATES {
        if let Ok(version) = read(Command::new(folder.join("bin").join(name)).arg("--version")) {
            versions.insert(name.to_owned(), version.trim().into());
        }
    }
    for (_, package) in NPM {
        let manifest = folder.join("node_modules").join(package).join("package.json");
        let version = fs::read_to_string(manifest)
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            .and_then(|manifest| manifest["version"].as_str().map(str::to_owned));
        if let Some(version) = version {
            versions.insert(package.to_owned(), version.into());
        }
    }
    Value::Object(versions)
}
