//! Where things are: every path that a command needs, from one root.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// Which of the two builds of the product is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Logs from the BPF programs, line tables, quick to build.
    Dev,
    /// What users get.
    Release,
}

impl Profile {
    /// The profile that a `--release` flag selects.
    pub(crate) fn from_flag(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }

    /// The folder under `target/bpf`.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }
}

/// The checkout that a command works on.
///
/// Tools and BPF objects always live in the checkout's own `target/`, whatever
/// `CARGO_TARGET_DIR` says: `guard/build.rs` has to find the object without
/// being told, and a tool that took a minute to build should outlive a
/// throw-away target directory. Host builds follow `CARGO_TARGET_DIR` as usual.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the checkout from the package's manifest (set by `cargo run`), or
    /// from the current directory upwards when the binary is started by hand.
    ///
    /// # Errors
    ///
    /// When no parent directory holds a `Cargo.toml` with a `[workspace]`.
    pub(crate) fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => env::current_dir().context("reading the current directory")?,
        };
        for dir in start.ancestors() {
            let manifest = dir.join("Cargo.toml");
            if let Ok(text) = fs::read_to_string(&manifest)
                && text.lines().any(|line| line.trim() == "[workspace]")
            {
                return Ok(Self { root: dir.to_path_buf() });
            }
        }
        bail!("no workspace found from {} upwards: run this inside the portguard checkout", start.display())
    }

    /// The top folder of the checkout.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The checkout's own `target/`.
    pub(crate) fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// The install root of the tools that only this checkout uses.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target().join("tools")
    }

    /// The linker for BPF objects.
    pub(crate) fn bpf_linker(&self) -> PathBuf {
        self.tools().join("bin").join("bpf-linker")
    }

    /// The object that `guard/build.rs` embeds in a build of this profile.
    pub(crate) fn bpf_object(&self, profile: Profile) -> PathBuf {
        self.target().join("bpf").join(profile.folder()).join("portguard.bpf.o")
    }

    /// The cargo that started this command, else the one on `PATH`.
    pub(crate) fn cargo(&self) -> OsString {
        env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
    }

    /// A cargo command in the root of the checkout, on the host's toolchain.
    pub(crate) fn cargo_command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(self.cargo());
        command.current_dir(&self.root);
        // A relative value means the caller's directory, which this command is about to leave.
        if let Ok(dir) = self.cargo_target()
            && env::var_os("CARGO_TARGET_DIR").is_some()
        {
            command.env("CARGO_TARGET_DIR", dir);
        }
        command
    }

    /// Where host builds go: `CARGO_TARGET_DIR` when it is set, as cargo reads it.
    ///
    /// # Errors
    ///
    /// When the current directory, which a relative value counts from, cannot be read.
    pub(crate) fn cargo_target(&self) -> Result<PathBuf> {
        let Some(dir) = env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) else {
            return Ok(self.target());
        };
        Ok(env::current_dir().context("reading the current directory")?.join(dir))
    }

    /// `--locked` when there is a lock file to hold on to.
    pub(crate) fn locked(&self) -> Option<&'static str> {
        self.root.join("Cargo.lock").exists().then_some("--locked")
    }
}
