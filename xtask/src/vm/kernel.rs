//! A kernel, taken out of its packages: the image and the modules that the tests need.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process::{read, run, say};
use crate::vm::apt::Apt;
use crate::vm::series::Series;

/// What the guests load: `sock_diag`'s families, modules in all of Debian's kernels.
const MODULES: [&str; 4] = ["inet_diag", "tcp_diag", "udp_diag", "unix_diag"];

/// Named like the folder of a finished extraction: written last.
const DONE: &str = "modules.list";

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Its series.
    pub(crate) series: Series,
    /// `uname -r`.
    pub(crate) release: String,
    /// The compressed image.
    pub(crate) image: PathBuf,
    /// Modules in the order in which they need each other, uncompressed.
    pub(crate) modules: Vec<PathBuf>,
}

impl Kernel {
    /// The newest kernel of a series: fetched, or an earlier one that is still there.
    ///
    /// # Errors
    ///
    /// When there is none on disk and none can be fetched; the message says why.
    pub(crate) fn get(series: Series, apt: &Result<Apt>, folder: &Path) -> Result<Self> {
        let folder = folder.join(series.name);
        let fetched = match apt {
            Ok(apt) => fetch(series, apt, &folder),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        let why = match fetched {
            Ok(kernel) => return Ok(kernel),
            Err(error) => error,
        };
        let Some(kernel) = newest_on_disk(series, &folder) else { return Err(why) };
        say(format!("{why:#}; going on with the {} of an earlier run", kernel.release));
        Ok(kernel)
    }

    fn read(series: Series, folder: &Path) -> Result<Self> {
        let release = folder.file_name().and_then(|name| name.to_str()).context("a folder without a name")?;
        let list = fs::read_to_string(folder.join(DONE)).with_context(|| format!("{}", folder.display()))?;
        Ok(Self {
            series,
            release: release.to_owned(),
            image: folder.join("vmlinuz"),
            modules: list.lines().map(|name| folder.join(name)).collect(),
        })
    }
}

fn fetch(series: Series, apt: &Apt, folder: &Path) -> Result<Kernel> {
    // Lists that cannot be renewed may do; a series that they do not know is the error to report.
    if let Err(error) = apt.update() {
        say(format!("{error:#}; going on with the lists on disk"));
    }
    let packages = apt.newest(&series)?;
    let kept = folder.join(&packages.release);
    if let Ok(kernel) = Kernel::read(series, &kept) {
        return Ok(kernel);
    }
    let files = apt.download(&packages)?;
    take_apart(&files, &kept)
        .with_context(|| format!("taking the packages of {} apart", packages.release))?;
    Kernel::read(series, &kept)
}

fn newest_on_disk(series: Series, folder: &Path) -> Option<Kernel> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let newest = entries
        .filter_map(|entry| {
            let modified = entry.path().join(DONE).metadata().ok()?.modified().ok()?;
            Some((modified, entry.path()))
        })
        .max()?;
    Kernel::read(series, &newest.1).ok()
}

fn take_apart(packages: &[PathBuf], to: &Path) -> Result<()> {
    let contents = to.join("contents");
    // Of an extraction that did not end.
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(&contents).with_context(|| format!("creating {}", contents.display()))?;
    for package in packages {
        run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&contents))?;
    }
    let mut files = Vec::new();
    walk(&contents, &mut files)?;
    let image = files.iter().find(|file| name(file).starts_with("vmlinuz")).context("no vmlinuz inside")?;
    fs::rename(image, to.join("vmlinuz")).context("moving vmlinuz")?;

    let builtin = files.iter().find(|file| name(file) == "modules.builtin");
    let builtin = builtin.map(fs::read_to_string).transpose().context("reading modules.builtin")?;
    let builtin: BTreeSet<String> =
        builtin.unwrap_or_default().lines().filter_map(|line| module_name(Path::new(line))).collect();
    let mut set = Modules { files: &files, builtin, list: Vec::new(), to };
    for name in MODULES {
        set.add(name)?;
    }
    let list: String = set.list.iter().map(|name| format!("{name}.ko\n")).collect();
    fs::remove_dir_all(&contents).context("removing what is not needed")?;
    fs::write(to.join(DONE), list).with_context(|| format!("writing {DONE}"))
}

struct Modules<'a> {
    files: &'a [PathBuf],
    builtin: BTreeSet<String>,
    /// Those that are there already, each after what it needs.
    list: Vec<String>,
    to: &'a Path,
}

impl Modules<'_> {
    /// Takes over a module, and before it those that it names as its dependencies.
    fn add(&mut self, wanted: &str) -> Result<()> {
        if self.builtin.contains(wanted) || self.list.iter().any(|listed| listed == wanted) {
            return Ok(());
        }
        let file = self.files.iter().find(|file| module_name(file).is_some_and(|name| name == wanted));
        let file = file.with_context(|| format!("the kernel has no module {wanted}"))?;
        let target = self.to.join(format!("{wanted}.ko"));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("ko") => {
                fs::copy(file, &target).with_context(|| format!("copying {}", file.display()))?;
            }
            Some("xz") => {
                let unpacked = fs::File::create(&target).with_context(|| target.display().to_string())?;
                run(Command::new("xz").args(["--decompress", "--stdout"]).arg(file).stdout(unpacked))?;
            }
            other => bail!("no program here unpacks a module that ends in {other:?}"),
        }
        for needed in dependencies(&fs::read(&target).with_context(|| target.display().to_string())?) {
            self.add(&needed)?;
        }
        self.list.push(wanted.to_owned());
        Ok(())
    }
}

/// The entry `depends=a,b` of a module's `.modinfo`, a section of strings that end in NUL.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(0);
    let list = String::from_utf8_lossy(&rest[..end]).into_owned();
    list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// `kernel/fs/crc32c-intel.ko.xz` → `crc32c_intel`.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
        let kind = entry.file_type().with_context(|| format!("looking at {}", entry.path().display()))?;
        if kind.is_dir() {
            walk(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Checks that the programs that take packages apart are there.
///
/// # Errors
///
/// When one is missing.
pub(crate) fn check_programs() -> Result<()> {
    read(Command::new("dpkg-deb").arg("--version"))?;
    read(Command::new("xz").arg("--version")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_from_the_module_itself() {
        assert_eq!(
            dependencies(b"x\0license=GPL\0depends=inet_diag,crc32c-x\0name=y\0"),
            ["inet_diag", "crc32c_x"]
        );
        assert!(dependencies(b"license=GPL\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }

    #[test]
    fn a_module_s_name_has_no_dashes() {
        assert_eq!(module_name(Path::new("a/b/crc32c-intel.ko.xz")).as_deref(), Some("crc32c_intel"));
        assert_eq!(module_name(Path::new("a/b/ext4.ko")).as_deref(), Some("ext4"));
        assert_eq!(module_name(Path::new("modules.dep")), None);
    }
}
