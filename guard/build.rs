//! Puts the BPF object where `include_bytes_aligned!` finds it: `OUT_DIR/portguard.bpf.o`.
//!
//! `GUARD_BPF` chooses the object: a path (relative to the workspace), or
//! `stub` for an empty one, so that check, clippy, editors and the pure tests
//! need no BPF toolchain. Unset, it is what `cargo xtask build-ebpf` made.
//! A stub build compiles with `--cfg bpf_stub`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

const VARIABLE: &str = "GUARD_BPF";
const OBJECT: &str = "portguard.bpf.o";

/// The first bytes of every ELF file.
const ELF: &[u8] = b"\x7fELF";

fn main() -> ExitCode {
    println!("cargo::rustc-check-cfg=cfg(bpf_stub)");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?).join(OBJECT);
    let release = variable("PROFILE")? == "release";
    let chosen = env::var_os(VARIABLE).filter(|value| !value.is_empty());
    if chosen.as_deref().is_some_and(|value| value == "stub") {
        if release {
            return Err(format!(
                "{VARIABLE}=stub in a release build: the binary would ship without its ebpf tier.\n\
                 Run `cargo xtask build --release`, or unset {VARIABLE}."
            ));
        }
        println!("cargo::rustc-cfg=bpf_stub");
        return store(&out, &[]);
    }
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let root = root.parent().ok_or("guard has no parent folder")?;
    let object = match chosen {
        // Joining an absolute path gives that path.
        Some(path) => root.join(path),
        None => root.join("target/bpf").join(if release { "release" } else { "dev" }).join(OBJECT),
    };
    // Also while it is missing: the error then goes away by itself once the object is built.
    println!("cargo::rerun-if-changed={}", object.display());
    let command = if release { "cargo xtask build-ebpf --release" } else { "cargo xtask build-ebpf" };
    let bytes = fs::read(&object).map_err(|error| {
        format!(
            "cannot read the BPF object {}: {error}.\n\
             Build it with `{command}`, or set {VARIABLE}=stub to build without the ebpf tier.",
            object.display()
        )
    })?;
    if !bytes.starts_with(ELF) {
        return Err(format!("{} is not an ELF object; build it again with `{command}`.", object.display()));
    }
    store(&out, &bytes)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("cargo did not set {name}: {error}"))
}

fn store(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
