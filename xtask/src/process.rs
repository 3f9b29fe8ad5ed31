//! Child processes: run one, read one, or give one a deadline.

use std::{
    env,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// Prints one line of progress for a person; results go to stdout, this goes to stderr.
pub(crate) fn say(line: impl AsRef<str>) {
    // A closed stderr must not stop a build: nobody is reading.
    let _ = writeln!(std::io::stderr(), "xtask: {}", line.as_ref());
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    std::iter::once(name)
        .chain(command.get_args().map(|arg| arg.to_string_lossy().into_owned()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command to its end, its output untouched.
///
/// # Errors
///
/// When it cannot be started or does not exit with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting `{}`", shown(command)))?;
    succeeded(command, status)
}

/// Runs a command and returns its stdout; its stderr is part of the error.
///
/// # Errors
///
/// When it cannot be started or does not exit with 0.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting `{}`", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", shown(command), output.status, last_line(&stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs an installer: silent unless it fails, and ended at the deadline because it may hang on a network.
///
/// # Errors
///
/// When it cannot be started, does not exit with 0, or is still running at the
/// deadline. The error carries the one line of its output that says most.
pub(crate) fn install(command: &mut Command, limit: Duration) -> Result<()> {
    let mut output = nameless_file().context("making a file for an installer's output")?;
    let copy = || output.try_clone().context("sharing the file for an installer's output");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(copy()?)
        .stderr(copy()?)
        // A person wants the error, not the installer's own stack.
        .env("RUST_BACKTRACE", "0")
        .spawn()
        .with_context(|| format!("starting `{}`", shown(command)))?;
    let pid = child.id();
    let (ended, wait) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let status = child.wait();
        // The receiver is gone only when the deadline was reported already.
        let _ = ended.send(status);
    });
    let Ok(status) = wait.recv_timeout(limit) else {
        // The child has not been reaped (the waiter thread still waits for it), so the number is still its own.
        let _ = Command::new("kill").arg(pid.to_string()).status();
        let _ = waiter.join();
        bail!("`{}` was not done after {} s", shown(command), limit.as_secs())
    };
    let status = status.with_context(|| format!("waiting for `{}`", shown(command)))?;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    output.seek(SeekFrom::Start(0)).context("rewinding an installer's output")?;
    output.read_to_end(&mut said).context("reading an installer's output")?;
    bail!("`{}` failed ({status}): {}", shown(command), telling_line(&String::from_utf8_lossy(&said)))
}

/// A file that is gone from its folder as soon as it is made. Unlike a pipe it
/// cannot be held open by a daemon that the installer started.
fn nameless_file() -> std::io::Result<File> {
    let path = env::temp_dir().join(format!("xtask-{}-{:?}", std::process::id(), thread::current().id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The first line that calls itself an error, as rustup and apt write them, else the last one.
fn telling_line(output: &str) -> String {
    const WIDTH: usize = 200;
    let error = |line: &&str| line.starts_with("error:") || line.starts_with("E: ");
    let line = output.lines().find(error).unwrap_or_else(|| last_line(output));
    // rustup appends every URL and file on the way; the beginning says what failed.
    let short: String = line.chars().take(WIDTH).collect();
    if short.len() < line.len() { short + "…" } else { short }
}

fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{}` failed ({status})", shown(command))
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message")
}

/// The file that a bare command name would run, searched as a shell does, plus
/// the folders of system commands that an ordinary user's `PATH` may lack.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.metadata().is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0))
}

/// Whether this process may do what only root may.
pub(crate) fn is_root() -> bool {
    // A process's own entry in /proc belongs to its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failed_installer_is_told_in_its_own_words() {
        let script = "echo info: trying; echo error: no route to host >&2; echo Caused by: much; exit 1";
        let error = install(&mut shell(script), Duration::from_secs(20)).unwrap_err().to_string();
        assert!(error.ends_with("error: no route to host"), "{error}");
    }

    #[test]
    fn an_installer_that_hangs_is_ended() {
        let error = install(&mut shell("exec sleep 60"), Duration::from_millis(100)).unwrap_err().to_string();
        assert!(error.contains("was not done after"), "{error}");
    }

    #[test]
    fn a_missing_command_is_not_found() {
        assert!(which("sh").is_some());
        assert_eq!(which("no-such-command-anywhere"), None);
    }
}
