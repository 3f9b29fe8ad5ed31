//! What a cargo build made, from its own messages: paths are never guessed.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::shown;

/// A program that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// The package's name.
    pub(crate) package: String,
    /// The folder of the package's `Cargo.toml`.
    pub(crate) folder: PathBuf,
    /// The target's name: of the binary, the library or the test.
    pub(crate) target: String,
    /// `bin`, `lib`, `test`, …
    pub(crate) kind: String,
    /// Whether it is a test harness.
    pub(crate) test: bool,
    /// The file, absolute.
    pub(crate) path: PathBuf,
}

/// Everything that one cargo command reported.
#[derive(Debug, Default)]
pub(crate) struct Built {
    /// Programs, in the order in which cargo finished them.
    pub(crate) executables: Vec<Executable>,
}

impl Built {
    /// The binary (not its test harness) of this name.
    ///
    /// # Errors
    ///
    /// When the build made no such binary.
    pub(crate) fn binary(&self, name: &str) -> Result<&Path> {
        self.executables
            .iter()
            .find(|made| !made.test && made.kind == "bin" && made.target == name)
            .map(|made| made.path.as_path())
            .with_context(|| format!("the build made no binary `{name}`"))
    }
}

/// Runs a cargo build and collects what it made; errors and warnings go to stderr as usual.
///
/// # Errors
///
/// When cargo cannot be started or the build fails.
pub(crate) fn build(cargo: &mut Command) -> Result<Built> {
    cargo.arg("--message-format=json-render-diagnostics");
    let mut child =
        cargo.stdout(Stdio::piped()).spawn().with_context(|| format!("starting `{}`", shown(cargo)))?;
    let stdout = child.stdout.take().context("cargo's stdout is missing")?;
    let mut built = Built::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("reading cargo's messages")?;
        built.executables.extend(parse(&line));
    }
    let status = child.wait().with_context(|| format!("waiting for `{}`", shown(cargo)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(cargo));
    }
    Ok(built)
}

fn parse(line: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    Some(Executable {
        package: package_name(message["package_id"].as_str()?),
        folder,
        target: message["target"]["name"].as_str()?.to_owned(),
        kind: message["target"]["kind"][0].as_str()?.to_owned(),
        test: message["profile"]["test"].as_bool()?,
        path: PathBuf::from(message["executable"].as_str()?),
    })
}

/// `path+file:///a/core#guard-core@0.1.0` names the package; without an `@` the folder does.
fn package_name(id: &str) -> String {
    let (address, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => address.rsplit('/').next().unwrap_or(address).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_package_id_give_the_name() {
        assert_eq!(package_name("path+file:///a/guard/core#guard-core@0.1.0"), "guard-core");
        assert_eq!(package_name("path+file:///a/xtask#0.1.0"), "xtask");
    }

    #[test]
    fn only_artifacts_with_a_program_count() {
        let program = r#"{"reason":"compiler-artifact","package_id":"path+file:///a/xtask#0.1.0",
            "manifest_path":"/a/xtask/Cargo.toml","target":{"name":"xtask","kind":["bin"]},
            "profile":{"test":true},"executable":"/a/target/debug/deps/xtask-1"}"#;
        let made = parse(program).unwrap();
        assert_eq!((made.package.as_str(), made.kind.as_str(), made.test), ("xtask", "bin", true));
        assert_eq!(made.folder, Path::new("/a/xtask"));
        assert_eq!(parse(&program.replace("\"/a/target/debug/deps/xtask-1\"", "null")), None);
        assert_eq!(parse("warning: not json"), None);
    }
}
