//! Fetches kernel packages into `target/` without touching the system's own package state.
//!
//! The archive is the one that the system's own sources name, with the key that they name; only
//! the suites are others. Nothing that is fetched here is ever installed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::process::{install, read, say, which};
use crate::vm::series::{ALL, PATTERN, Packages, Series};

const UPDATE_LIMIT: Duration = Duration::from_secs(300);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);

/// A kernel may be a day old before the lists are asked again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// One archive of the system's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Archive {
    uri: String,
    suites: Vec<String>,
    signed_by: Option<String>,
}

/// A package state of our own.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
    archive: Archive,
}

impl Apt {
    /// The state in `folder`, made when missing.
    ///
    /// # Errors
    ///
    /// When this is not a Debian system for amd64, or the folder cannot be written to.
    pub(crate) fn open(folder: PathBuf) -> Result<Self> {
        if which("apt-get").is_none() {
            bail!("kernels come as Debian packages, and there is no apt-get here");
        }
        if std::env::consts::ARCH != "x86_64" {
            bail!(
                "the guests are x86_64 machines with this machine's programs, but this is {}",
                std::env::consts::ARCH
            );
        }
        let archive = archives(Path::new("/etc/apt")).into_iter().find(Archive::is_debian);
        let archive = archive.context(
            "none of the package sources of this system is Debian's main archive, which has the kernels",
        )?;
        for name in ["lists/partial", "cache/archives/partial", "debs"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        Ok(Self { folder, archive })
    }

    /// Asks the archive for its lists unless they were asked for lately.
    ///
    /// # Errors
    ///
    /// When the archive does not answer.
    pub(crate) fn update(&self) -> Result<()> {
        let sources = self.sources();
        let path = self.folder.join("sources.list");
        let stamp = self.folder.join("updated");
        let same = fs::read_to_string(&path).is_ok_and(|old| old == sources);
        if same && age(&stamp).is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        fs::write(&path, sources).with_context(|| format!("writing {}", path.display()))?;
        // No package is installed in this state.
        fs::write(self.folder.join("status"), "").context("writing the empty package state")?;
        say("asking Debian's archive for its newest kernels");
        install(self.apt("apt-get").arg("update"), UPDATE_LIMIT)?;
        fs::write(&stamp, "").with_context(|| format!("writing {}", stamp.display()))
    }

    /// The newest kernel of a series that the lists know.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(crate) fn newest(&self, series: &Series) -> Result<Packages> {
        let found = read(self.apt("apt-cache").args(["search", "--names-only", PATTERN]))?;
        let names: Vec<String> =
            found.lines().filter_map(|line| Some(line.split_once(" - ")?.0.to_owned())).collect();
        series.newest(&names).with_context(|| {
            format!(
                "the package lists of {} ({}) know no kernel {}",
                self.archive.uri, series.suite, series.name
            )
        })
    }

    /// Fetches packages and returns the files.
    ///
    /// # Errors
    ///
    /// When one cannot be fetched.
    pub(crate) fn download(&self, packages: &Packages) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join("debs").join(&packages.release);
        // What is left there is a download that was cut off.
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("clearing {}", folder.display()));
            }
            _ => fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?,
        }
        say(format!("fetching the kernel {}", packages.release));
        let mut apt = self.apt("apt-get");
        apt.arg("download").args(&packages.names).current_dir(&folder);
        install(&mut apt, DOWNLOAD_LIMIT)?;
        let files = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        files.map(|file| Ok(file?.path())).collect()
    }

    fn sources(&self) -> String {
        let Archive { uri, signed_by, .. } = &self.archive;
        let options = signed_by.as_ref().map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        ALL.iter().map(|series| format!("deb {options}{uri} {} main\n", series.suite)).collect()
    }

    /// The system's own configuration (proxies, mirrors) with folders of our own.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = |name: &str| self.folder.join(name).display().to_string();
        for setting in [
            format!("Dir::State={}", path("")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::State::lists={}", path("lists")),
            format!("Dir::Cache={}", path("cache")),
            format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferences=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            // The sandbox user may not reach into a checkout.
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=1".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
        ] {
            command.args(["-o", &setting]);
        }
        command.arg("-qq");
        command
    }
}

impl Archive {
    /// Debian's main archive has a suite with the plain code name of this release.
    fn is_debian(&self) -> bool {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let field = |name: &str| {
            let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.map(|value| value.trim_matches('"').to_owned())
        };
        field("ID").is_some_and(|id| id == "debian")
            && self.suites.iter().any(|suite| {
                matches!(suite.as_str(), "stable" | "testing" | "unstable" | "sid")
                    || field("VERSION_CODENAME").is_some_and(|code| code == *suite)
            })
    }
}

/// Every archive of the system's sources, in both of their forms.
fn archives(folder: &Path) -> Vec<Archive> {
    let mut files = vec![folder.join("sources.list")];
    let parts = fs::read_dir(folder.join("sources.list.d")).into_iter().flatten();
    files.extend(parts.filter_map(|entry| Some(entry.ok()?.path())));
    files.sort();
    files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("sources") => stanzas(&text),
                Some("list") => text.lines().filter_map(one_line).collect(),
                _ => Vec::new(),
            }
        })
        .collect()
}

/// `deb [signed-by=…] URI SUITE COMPONENT…`
fn one_line(line: &str) -> Option<Archive> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    words.any(|component| component == "main").then(|| Archive {
        uri: uri.to_owned(),
        suites: vec![suite.to_owned()],
        signed_by: signed_by.map(str::to_owned),
    })
}

/// Paragraphs of `Name: value`. A key that is written into the file itself is left to apt's own keyring.
fn stanzas(text: &str) -> Vec<Archive> {
    let stanza = |stanza: &str| {
        let field = |name: &str| {
            let line = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).filter(|value| !value.is_empty())
        };
        let has =
            |name: &str, word: &str| field(name).is_some_and(|value| value.split(' ').any(|w| w == word));
        if !has("Types", "deb") || !has("Components", "main") || has("Enabled", "no") {
            return None;
        }
        Some(Archive {
            uri: field("URIs")?.split_whitespace().next()?.to_owned(),
            suites: field("Suites")?.split_whitespace().map(str::to_owned).collect(),
            signed_by: field("Signed-By").map(str::to_owned),
        })
    };
    text.split("\n\n").filter_map(stanza).collect()
}

fn age(file: &Path) -> Option<Duration> {
    SystemTime::now().duration_since(file.metadata().ok()?.modified().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_sources_are_read() {
        let old =
            one_line("deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main contrib");
        let new = stanzas(
            "Types: deb\n# why\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\nSigned-By: /k.gpg\n\n\
             Types: deb-src\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n",
        );
        let expected = Archive {
            uri: "http://mirror.example/debian".into(),
            suites: vec!["trixie".into()],
            signed_by: Some("/k.gpg".into()),
        };
        assert_eq!(old, Some(expected.clone()));
        assert_eq!(new, [expected]);
    }

    #[test]
    fn other_sources_are_passed_over() {
        assert_eq!(one_line("# deb http://mirror.example/debian trixie main"), None);
        assert_eq!(one_line("deb-src http://mirror.example/debian trixie main"), None);
        assert_eq!(one_line("deb http://mirror.example/debian trixie contrib"), None);
    }
}
