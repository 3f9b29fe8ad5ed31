//! Finds a compiler that can build `core` for the BPF target.
//!
//! `-Z build-std=core` needs the source of exactly the release that compiles
//! it, so a compiler counts only together with its own source. Looking is free
//! of side effects: nothing is installed and nothing is downloaded.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process::{read, which};
use crate::workspace::Workspace;

/// The LLVM majors that the pinned bpf-linker has a feature for.
pub(crate) const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// The workspace's `rust-version`, which the BPF programs share.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// A compiler, its source and the cargo that drives it.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// How a person calls it.
    pub(crate) label: String,
    /// The compiler.
    pub(crate) rustc: PathBuf,
    /// The cargo to run it with.
    pub(crate) cargo: PathBuf,
    /// `rustc --print sysroot`.
    pub(crate) sysroot: PathBuf,
    /// What the compiler says about itself.
    pub(crate) version: RustcVersion,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RustcVersion { release, llvm_major } = &self.version;
        write!(f, "{} (rustc {release}, LLVM {llvm_major})", self.label)
    }
}

/// The two facts of `rustc -vV` that decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RustcVersion {
    /// For example `1.96.0` or `1.97.0-nightly`.
    pub(crate) release: String,
    /// The LLVM that writes the bitcode.
    pub(crate) llvm_major: u32,
}

/// What looking around gave: the first that fits, and why each one before it does not.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// The toolchain to use.
    pub(crate) found: Option<Toolchain>,
    /// `label: reason`, in the order in which they were looked at.
    pub(crate) rejected: Vec<String>,
    /// A rustup nightly that lacks nothing but the source.
    pub(crate) nightly_without_source: Option<String>,
}

/// Looks for a toolchain, nightly of rustup first, then Debian's, then the
/// active one with its source (a stable compiler is asked with `RUSTC_BOOTSTRAP`).
pub(crate) fn search(workspace: &Workspace) -> Search {
    let mut search = Search::default();
    for (name, sysroot) in rustup_toolchains() {
        if !name.starts_with("nightly") {
            continue;
        }
        let cargo = sysroot.join("bin/cargo");
        match examine(format!("rustup {name}"), &sysroot.join("bin/rustc"), cargo) {
            Ok(found) => return search.with(found),
            Err(Unfit::NoSource(why)) => {
                search.nightly_without_source.get_or_insert(name);
                search.rejected.push(why);
            }
            Err(Unfit::Other(why)) => search.rejected.push(why),
        }
    }
    let host_cargo = PathBuf::from(workspace.cargo());
    let debian = Path::new("/usr/bin/rustc");
    if debian.exists() {
        match examine("system /usr/bin/rustc".into(), debian, host_cargo.clone()) {
            Ok(found) => return search.with(found),
            Err(unfit) => search.rejected.push(unfit.into_reason()),
        }
    } else {
        search.rejected.push("system /usr/bin/rustc: not installed".into());
    }
    if let Some(rustc) = which("rustc").filter(|rustc| rustc != debian) {
        match examine("active rustc".into(), &rustc, host_cargo) {
            Ok(found) => return search.with(found),
            Err(unfit) => search.rejected.push(unfit.into_reason()),
        }
    }
    search
}

impl Search {
    fn with(mut self, found: Toolchain) -> Self {
        self.found = Some(found);
        self
    }
}

enum Unfit {
    NoSource(String),
    Other(String),
}

impl Unfit {
    fn into_reason(self) -> String {
        match self {
            Self::NoSource(why) | Self::Other(why) => why,
        }
    }
}

fn examine(label: String, rustc: &Path, cargo: PathBuf) -> Result<Toolchain, Unfit> {
    let other = |why: String| Unfit::Other(format!("{label}: {why}"));
    let version = rustc_version(rustc).map_err(|error| other(format!("{error:#}")))?;
    if !at_least(&version.release, OLDEST) {
        return Err(other(format!("{} is older than {OLDEST}", version.release)));
    }
    if !LINKER_LLVM.contains(&version.llvm_major) {
        let (low, high) = (LINKER_LLVM.start(), LINKER_LLVM.end());
        return Err(other(format!(
            "its LLVM {} is not one of bpf-linker's {low} to {high}",
            version.llvm_major
        )));
    }
    let sysroot = sysroot(rustc).map_err(|error| other(format!("{error:#}")))?;
    let source = sysroot.join("lib/rustlib/src/rust");
    if !source.join("library/core/src/lib.rs").exists() {
        return Err(Unfit::NoSource(format!("{label}: has no source of core (component rust-src)")));
    }
    if let Some(of) = source_release(&source)
        && of != version.release
    {
        return Err(other(format!("compiler {} but source of core {of}", version.release)));
    }
    if cargo.is_absolute() && !cargo.exists() {
        return Err(other(format!("{} is missing", cargo.display())));
    }
    // A rustup proxy decides anew in every directory; the file in the sysroot does not.
    let own = sysroot.join("bin/rustc");
    let rustc = if own.exists() { own } else { rustc.to_path_buf() };
    Ok(Toolchain { label, rustc, cargo, sysroot, version })
}

/// Debian unpacks the source into a folder named after its release, and the
/// two packages can be upgraded apart. rustup keeps them together by itself.
fn source_release(source: &Path) -> Option<String> {
    let real = fs::canonicalize(source).ok()?;
    Some(real.file_name()?.to_str()?.strip_prefix("rustc-")?.to_owned())
}

/// Names and folders of rustup's toolchains; empty without rustup.
fn rustup_toolchains() -> Vec<(String, PathBuf)> {
    let Some(rustup) = which("rustup") else { return Vec::new() };
    let listed = read(Command::new(rustup).args(["toolchain", "list", "-v"]).env("RUSTUP_AUTO_INSTALL", "0"));
    parse_toolchains(&listed.unwrap_or_default())
}

fn parse_toolchains(listed: &str) -> Vec<(String, PathBuf)> {
    let line = |line: &str| {
        let name = line.split_whitespace().next()?;
        let folder = &line[line.find(" /")? + 1..];
        Some((name.to_owned(), PathBuf::from(folder)))
    };
    listed.lines().filter_map(line).collect()
}

/// The compiler of the host builds, for its LLVM library.
///
/// # Errors
///
/// When `rustc` cannot be run.
pub(crate) fn host_sysroot() -> Result<PathBuf> {
    sysroot(Path::new("rustc"))
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    let printed = read(quiet(rustc).args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(printed.trim()))
}

fn rustc_version(rustc: &Path) -> Result<RustcVersion> {
    let printed = read(quiet(rustc).arg("-vV"))?;
    parse_version(&printed).with_context(|| format!("reading the version of {}", rustc.display()))
}

/// A rustup proxy must not start a download because we asked it a question.
fn quiet(rustc: &Path) -> Command {
    let mut command = Command::new(rustc);
    command.env("RUSTUP_AUTO_INSTALL", "0");
    command
}

fn parse_version(printed: &str) -> Result<RustcVersion> {
    let field = |name: &str| printed.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = field("release:").context("no `release:` line")?.to_owned();
    let llvm = field("LLVM version:").context("no `LLVM version:` line")?;
    let llvm_major = llvm.split('.').next().unwrap_or(llvm).parse().context("unreadable LLVM version")?;
    Ok(RustcVersion { release, llvm_major })
}

/// Compares `major.minor` only: a nightly of a release counts as that release.
fn at_least(release: &str, oldest: &str) -> bool {
    let numbers = |text: &str| {
        let mut parts = text.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    numbers(release) >= numbers(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_rustc_prints() {
        let printed =
            "rustc 1.97.0-nightly (e50 2026-05-19)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let expected = RustcVersion { release: "1.97.0-nightly".into(), llvm_major: 22 };
        assert_eq!(parse_version(printed).unwrap(), expected);
        assert!(parse_version("release: 1.97.0\n").is_err());
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(at_least("1.97.0-nightly", "1.95"));
        assert!(at_least("1.95.0", "1.95"));
        assert!(at_least("1.100.0", "1.95"));
        assert!(!at_least("1.85.0", "1.95"));
    }

    #[test]
    fn the_list_of_rustup_is_read_with_and_without_marks() {
        let listed = "stable-x (active, default) /r/toolchains/stable-x\nnightly-x /r/tool chains/nightly-x\nno path\n";
        let names = parse_toolchains(listed);
        assert_eq!(names[0], ("stable-x".into(), "/r/toolchains/stable-x".into()));
        assert_eq!(names[1], ("nightly-x".into(), "/r/tool chains/nightly-x".into()));
        assert_eq!(names.len(), 2);
    }
}
