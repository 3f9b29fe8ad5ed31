//! bpf-linker, built once per checkout against an LLVM that is already here.
//!
//! The linker reads the compiler's bitcode, so its LLVM must be at least as new
//! as the compiler's. The compiler brings a shared LLVM along: linking against
//! that one fits by construction and needs no LLVM development packages.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process::{read, run, say};
use crate::toolchain::{self, Toolchain};
use crate::workspace::Workspace;

/// The release that goes with the aya releases in `Cargo.toml`.
const RELEASE: &str = "0.13.0";

/// Says which linker is there, or why there is none that fits.
///
/// # Errors
///
/// The reason, in words.
pub(crate) fn state(workspace: &Workspace, toolchain: &Toolchain) -> Result<String> {
    let path = workspace.bpf_linker();
    if !path.exists() {
        bail!("not built yet");
    }
    // The loader refuses it when the LLVM that it was linked against has gone, as after `rustup update`.
    let version = read(Command::new(&path).arg("--version")).context("does not start")?;
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let need = toolchain.version.llvm_major;
    match needed_llvm(&bytes) {
        Some(major) if major < need => bail!("its LLVM {major} is older than the compiler's {need}"),
        Some(major) => Ok(format!("{} (LLVM {major})", version.trim())),
        None => Ok(format!("{} (LLVM linked in)", version.trim())),
    }
}

/// Builds the linker into `target/tools` unless one that fits is there.
///
/// # Errors
///
/// When no LLVM library fits, or the build fails.
pub(crate) fn ensure(workspace: &Workspace, toolchain: &Toolchain) -> Result<String> {
    match state(workspace, toolchain) {
        Ok(version) => return Ok(version),
        Err(why) => say(format!("bpf-linker: {why:#}; building {RELEASE} (about a minute)")),
    }
    install(workspace, toolchain)?;
    state(workspace, toolchain).context("bpf-linker was built but cannot be used")
}

fn install(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    crate::setup::ensure_host_linker()?;
    let library = find_llvm(toolchain)?;
    say(format!("bpf-linker: linking against LLVM {} of {}", library.major, library.file.display()));
    let tools = workspace.tools();
    let prefix = tools.join("llvm");
    let folder = prefix.join("lib64");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    relink(&library.file, &folder.join("libLLVM.so"))?;
    let home = library.file.parent().unwrap_or(Path::new("/"));
    let scratch = tools.join("build");
    let mut cargo = workspace.cargo_command();
    cargo
        .args(["install", "bpf-linker", "--version", RELEASE, "--locked", "--force", "--quiet"])
        .args(["--no-default-features", "--features", &format!("llvm-{}", library.major), "--root"])
        .arg(&tools)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_TARGET_DIR", &scratch)
        .env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", home.display()))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET");
    run(&mut cargo).with_context(|| {
        format!("building bpf-linker {RELEASE}; the crate registry must be reachable for this one step")
    })?;
    // Hundreds of megabytes that nothing reads again.
    match fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            say(format!("left {} behind: {error}", scratch.display()));
        }
        _ => {}
    }
    Ok(())
}

fn relink(to: &Path, at: &Path) -> Result<()> {
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", at.display()));
        }
        _ => {}
    }
    symlink(to, at).with_context(|| format!("linking {} to {}", at.display(), to.display()))
}

struct Library {
    file: PathBuf,
    major: u32,
}

/// The compiler's own LLVM, else the system's, else that of the host's compiler; never one older than the compiler's.
fn find_llvm(toolchain: &Toolchain) -> Result<Library> {
    let mut folders = vec![toolchain.sysroot.join("lib")];
    // Debian keeps it in the multiarch folder, others in lib64.
    folders.extend(subfolders(&toolchain.sysroot.join("lib")).filter(|dir| dir.ends_with_str("-linux-gnu")));
    folders.push(toolchain.sysroot.join("lib64"));
    folders.extend(toolchain::host_sysroot().ok().map(|sysroot| sysroot.join("lib")));
    let need = toolchain.version.llvm_major;
    for folder in &folders {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let mut libraries: Vec<Library> = entries
            .flatten()
            .filter_map(|entry| {
                let major = shared_llvm_major(entry.file_name().to_str()?)?;
                Some(Library { file: entry.path(), major })
            })
            .filter(|library| library.major >= need && toolchain::LINKER_LLVM.contains(&library.major))
            .collect();
        // The nearest to the compiler's; the name settles ties so that every run chooses the same.
        libraries.sort_by(|a, b| (a.major, &a.file).cmp(&(b.major, &b.file)));
        if let Some(library) = libraries.into_iter().next() {
            return Ok(library);
        }
    }
    let looked: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    bail!(
        "no shared LLVM {need} for bpf-linker in {}; mend it with: apt-get install libllvm{need}",
        looked.join(", ")
    )
}

fn subfolders(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
}

trait EndsWithStr {
    fn ends_with_str(&self, end: &str) -> bool;
}

impl EndsWithStr for PathBuf {
    fn ends_with_str(&self, end: &str) -> bool {
        self.file_name().is_some_and(|name| name.to_string_lossy().ends_with(end))
    }
}

/// `libLLVM.so.22.1-rust-1.95.0-stable` → 22. Names without a version are links to one that has it.
fn shared_llvm_major(name: &str) -> Option<u32> {
    let version = name.strip_prefix("libLLVM.so.")?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).map_or(version, |end| &version[..end]);
    digits.parse().ok()
}

/// The LLVM major in a binary's list of needed libraries.
///
/// The string table keeps each name as it is written, so a search for the
/// name's beginning finds it without an ELF reader.
fn needed_llvm(binary: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"libLLVM.so.";
    let start = binary.windows(NAME.len()).position(|window| window == NAME)?;
    let rest = &binary[start..];
    let end = rest.iter().position(|&byte| byte == 0)?;
    shared_llvm_major(std::str::from_utf8(&rest[..end]).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_major_is_read_from_library_names() {
        assert_eq!(shared_llvm_major("libLLVM.so.22.1-rust-1.95.0-stable"), Some(22));
        assert_eq!(shared_llvm_major("libLLVM.so.23"), Some(23));
        assert_eq!(shared_llvm_major("libLLVM-22-rust-1.95.0-stable.so"), None);
        assert_eq!(shared_llvm_major("libLLVM.so"), None);
    }

    #[test]
    fn the_needed_llvm_is_found_inside_a_binary() {
        assert_eq!(needed_llvm(b"\x7fELF..\0libc.so.6\0libLLVM.so.22.1-rust\0tail"), Some(22));
        assert_eq!(needed_llvm(b"\x7fELF..\0libc.so.6\0"), None);
    }
}
