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

/// Where the programs are in a guest, and the other places in which they are looked for.
pub(crate) const BIN: &str = "/bin";
const ALSO_BIN: [&str; 3] = ["/usr/bin", "/usr/sbin", "/sbin"];

/// This machine's program that what asks for features runs.
const PROBED: [&str; 1] = ["sleep"];

/// This machine's programs that the tests run by name. Not all in one, as in busybox: a test may give a copy
/// another name.
const HOST_PROGRAMS: [&str; 28] = [
    "sh",
    "chrt",
    "curl",
    "grep",
    "head",
    "kill",
    "prlimit",
    "sleep",
    "cat",
    "cp",
    "readlink",
    "sed",
    "tail",
    "touch",
    "true",
    "env",
    "false",
    "mkdir",
    "mount",
    "umount",
    "unshare",
    "nsenter",
    "setpriv",
    "systemctl",
    "systemd-run",
    "dbus-daemon",
    "ip",
    "ps",
];

/// What the tests run as PID 1 of a namespace, at its own path, and the settings of its bus, of which the last lets systemd have its
/// name. Since systemd 255 it has a helper.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd-executor"];
const BUS: [&str; 3] = [
    "/usr/share/dbus-1/system.conf",
    "/usr/share/dbus-1/session.conf",
    "/usr/share/dbus-1/system.d/org.freedesktop.systemd1.conf",
];

/// A hundred megabytes, which an emulated processor has to unpack.
const NODE: &str = "node";

/// Where the examples of clients are, which the tests run as they are.
pub(crate) const EXAMPLES: &str = "/examples";

/// The only users of a guest; the bus has one of its own.
const USERS: &str =
    "root:x:0:0:root:/:/bin/sh\nmessagebus:x:100:100::/:/bin/true\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
const GROUPS: &str = "root:x:0:\nmessagebus:x:100:\nnogroup:x:65534:\n";

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

/// What an image holds besides PID 1 and portguard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// What asks for the features.
    Probe,
    /// The tests too, and what they run.
    Tests,
    /// Node as well.
    TestsWithNode,
}

impl Base {
    /// Packs the programs, and what they in turn need.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub(crate) fn pack(workspace: &Workspace, programs: &Programs, content: Content) -> Result<Self> {
        let mut image = Image::onto(Vec::new(), BTreeSet::new());
        for link in ALSO_BIN {
            image.parents(link)?;
            image.archive.link(link, BIN).with_context(|| format!("packing {link}"))?;
        }
        let scratch = workspace.target().join("vm/stripped");
        image.own("/init", &programs.init, &scratch)?;
        image.own("/bin/portguard", &programs.portguard, &scratch)?;
        image.own("/bin/probe", &programs.probe, &scratch)?;
        image.host_programs(&PROBED)?;
        image.content("/etc/passwd", USERS.as_bytes())?;
        image.content("/etc/group", GROUPS.as_bytes())?;
        for folder in ["/proc", "/sys", "/dev", "/run", "/tmp"] {
            image.folder(Path::new(folder))?;
        }
        if content != Content::Probe {
            image.tests(programs, &scratch)?;
        }
        if content == Content::TestsWithNode {
            image.host_programs(&[NODE])?;
            image.file("/node/server.js", false, &workspace.root().join("tests/node/server.js"))?;
            for name in ["node-restart.mjs", "curl-restart.sh"] {
                let from = workspace.root().join("guard/examples").join(name);
                image.file(&format!("{EXAMPLES}/{name}"), false, &from)?;
            }
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

    /// The tests and all that they run but Node.
    fn tests(&mut self, programs: &Programs, scratch: &Path) -> Result<()> {
        for (path, harness) in [("/bin/e2e", &programs.end_to_end), ("/bin/unit", &programs.unit)] {
            if let Some(harness) = harness {
                self.own(path, harness, scratch)?;
            }
        }
        for program in &programs.others {
            let name = program.file_name().and_then(|name| name.to_str()).context("a program's name")?;
            self.own(&format!("{BIN}/{name}"), program, scratch)?;
        }
        self.host_programs(&HOST_PROGRAMS)?;
        for path in SYSTEMD.into_iter().filter(|path| Path::new(path).is_file()) {
            self.with_libraries(path, Path::new(path))?;
        }
        for path in BUS.into_iter().filter(|path| Path::new(path).is_file()) {
            self.file(path, false, Path::new(path))?;
        }
        Ok(())
    }

    fn host_programs(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            let program =
                which(name).with_context(|| format!("the tests run {name}, which is not installed"))?;
            self.with_libraries(&format!("{BIN}/{name}"), &program)?;
        }
        Ok(())
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

    /// A program of the workspace, without what only debuggers read: an emulated processor has to unpack it.
    fn own(&mut self, path: &str, from: &Path, scratch: &Path) -> Result<()> {
        read(Command::new("strip").arg("-o").arg(scratch).arg(from))?;
        self.with_libraries(path, scratch)?;
        fs::remove_file(scratch).with_context(|| format!("removing {}", scratch.display()))
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
