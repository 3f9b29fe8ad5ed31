//! The initramfs of a guest.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process::{read, which};
use crate::vm::build::Programs;
use crate::vm::cpio::Archive;
use crate::vm::guest::Manifest;
use crate::vm::kernel::Kernel;
use crate::workspace::Workspace;

/// Where the programs are in a guest.
pub(crate) const BIN: &str = "/bin";

/// This machine's programs that the tests run by name. Not all in one, as in busybox: a test may give a copy
/// another name.
const HOST_PROGRAMS: [&str; 9] = ["sh", "cat", "cp", "node", "readlink", "sleep", "tail", "touch", "true"];

/// The only users of a guest.
const USERS: &str = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";

/// The part that all guests share, packed once.
#[derive(Debug)]
pub(crate) struct Base {
    archive: Vec<u8>,
    folders: BTreeSet<PathBuf>,
}

/// An image under construction.
struct Image {
    archive: Archive<Vec<u8>>,
    folders: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl Base {
    /// Packs the programs, and what they in turn need.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub(crate) fn pack(workspace: &Workspace, programs: &Programs) -> Result<Self> {
        let mut image = Image::onto(Vec::new(), BTreeSet::new());
        image.program("/init", &programs.init)?;
        image.program("/bin/portguard", &programs.portguard)?;
        image.program("/bin/e2e", &programs.end_to_end)?;
        if let Some(unit) = &programs.unit {
            image.program("/bin/unit", unit)?;
        }
        image.program("/bin/standin", &programs.stand_in)?;
        for name in HOST_PROGRAMS {
            let program =
                which(name).with_context(|| format!("the tests run {name}, which is not installed"))?;
            image.with_libraries(&format!("{BIN}/{name}"), &program)?;
        }
        image.file("/node/server.js", false, &workspace.root().join("tests/node/server.js"))?;
        image.content("/etc/passwd", USERS.as_bytes())?;
        image.content("/etc/group", b"root:x:0:\nnogroup:x:65534:\n")?;
        for folder in ["/proc", "/sys", "/dev", "/run", "/tmp"] {
            image.folder(Path::new(folder))?;
        }
        Ok(Self { archive: image.archive.finish().context("packing the image")?, folders: image.folders })
    }

    /// Writes the image of one boot: the programs, the kernel's modules and the manifest.
    ///
    /// # Errors
    ///
    /// When a module cannot be read or the file cannot be written.
    pub(crate) fn write(&self, kernel: &Kernel, manifest: &Manifest, to: &Path) -> Result<()> {
        // The kernel unpacks archives one after another.
        let mut image = Image::onto(self.archive.clone(), self.folders.clone());
        for module in &kernel.modules {
            let name = module.file_name().and_then(|name| name.to_str()).context("a module's name")?;
            image.file(&format!("/modules/{name}"), false, module)?;
        }
        image.content("/manifest", manifest.text(kernel).as_bytes())?;
        let archive = image.archive.finish().context("packing the image")?;
        fs::write(to, archive).with_context(|| format!("writing {}", to.display()))
    }
}

impl Image {
    fn onto(archive: Vec<u8>, folders: BTreeSet<PathBuf>) -> Self {
        Self { archive: Archive::new(archive), folders, files: BTreeSet::new() }
    }

    fn folder(&mut self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent() else { return Ok(()) };
        self.folder(parent)?;
        if self.folders.insert(path.to_path_buf()) {
            self.archive.folder(&path.display().to_string())?;
        }
        Ok(())
    }

    fn file(&mut self, path: &str, executable: bool, from: &Path) -> Result<()> {
        if !self.files.insert(path.into()) {
            return Ok(());
        }
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.parents(path)?;
        self.archive.file(path, executable, &content).with_context(|| format!("packing {path}"))
    }

    fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        self.file(path, true, from)
    }

    fn content(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.archive.file(path, false, content).with_context(|| format!("packing {path}"))
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        let parent = Path::new(path).parent().context("a path without a folder")?;
        self.folder(parent).with_context(|| format!("packing {path}"))
    }

    /// A program of this machine, with the libraries that its loader names, at their own paths.
    fn with_libraries(&mut self, path: &str, program: &Path) -> Result<()> {
        self.program(path, program)?;
        for library in libraries(&read(Command::new("ldd").arg(program))?) {
            self.program(library, Path::new(library))?;
        }
        Ok(())
    }
}

/// The absolute paths that `ldd` prints: `libm.so.6 => /lib/…/libm.so.6 (0x…)`.
fn libraries(printed: &str) -> Vec<&str> {
    printed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_itself_are_found() {
        let printed =
            "\tlinux-vdso.so.1 (0x1)\n\tlibm.so.6 => /lib/x/libm.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(libraries(printed), ["/lib/x/libm.so.6", "/lib64/ld.so.2"]);
    }
}
