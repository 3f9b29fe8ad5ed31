//! Boots one guest and listens to its report.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::process::shown;
use crate::vm::kernel::Kernel;

/// What every line of the guest's PID 1 begins with (`tests/src/bin/vm_init`).
const MARK: &str = "@vm ";

/// With cx16, or with several processors, guests crash at random under emulation. The emulator is slow with string
/// instructions (erms, fsrm) and with page tables of five levels (la57).
const MACHINE: &str = "-accel tcg -machine pc -cpu max,-cx16,-erms,-fsrm,-la57 -smp 1 -display none -nodefaults -no-user-config \
                       -no-reboot -nic none";

/// The guest's clock counts instructions, not the host's time: what a guest sees does not depend on
/// how busy the host is, and a guest that waits skips to the end of its wait.
const CLOCK: &str = "shift=1,sleep=off";

/// Programs at the same addresses each time: the emulator then translates each of them once, not at each start.
const KERNEL: &str = "console=ttyS0 loglevel=5 panic=-1 norandmaps";

/// What a guest is told to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manifest {
    /// With systemd as PID 1.
    pub(crate) systemd: bool,
    /// Commands, one after another.
    pub(crate) steps: Vec<Step>,
}

/// One command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step {
    /// How the report calls it.
    pub(crate) name: String,
    /// On the guest's clock.
    pub(crate) limit: Duration,
    /// A file in the guest whose lines belong into the report.
    pub(crate) collect: Option<String>,
    /// Its environment, and nothing else.
    pub(crate) environment: Vec<(String, String)>,
    /// Capabilities that it does not get, by number.
    pub(crate) without: Vec<i32>,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
}

impl Manifest {
    /// As the guest's PID 1 reads it.
    pub(crate) fn text(&self, kernel: &Kernel) -> String {
        let mut text = String::new();
        let mut line = |word: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{word} {value}");
        };
        for module in &kernel.modules {
            if let Some(name) = module.file_stem().and_then(|name| name.to_str()) {
                line("module", name);
            }
        }
        if self.systemd {
            line("systemd", "");
        }
        for step in &self.steps {
            line("step", &step.name);
            line("limit", &step.limit.as_secs().to_string());
            if let Some(path) = &step.collect {
                line("collect", path);
            }
            for (name, value) in &step.environment {
                line("env", &format!("{name}={value}"));
            }
            for capability in &step.without {
                line("without", &capability.to_string());
            }
            for argument in &step.command {
                line("argument", argument);
            }
        }
        text
    }
}

/// A machine to be started.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// What is in front of every line that is shown.
    pub(crate) name: String,
    /// Its kernel.
    pub(crate) kernel: &'a Kernel,
    /// Its initramfs.
    pub(crate) image: &'a Path,
    /// More words for the kernel's command line.
    pub(crate) append: &'a str,
    /// In MiB.
    pub(crate) memory: u32,
    /// On the host's clock.
    pub(crate) limit: Duration,
    /// Whether to show every line as it comes.
    pub(crate) live: bool,
    /// Where the kernel's console is kept.
    pub(crate) console: PathBuf,
    /// Where it is noted what each test cost.
    pub(crate) times: PathBuf,
}

/// How a boot went.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    /// The commands that were begun.
    pub(crate) steps: Vec<Done>,
    /// What is wrong with the boot itself, in words; `None` when the guest said goodbye.
    pub(crate) wrong: Option<String>,
    /// How long it took.
    pub(crate) took: Duration,
    /// How much of that a processor worked for it: on a machine that is busy with other things, far less.
    pub(crate) worked: Option<Duration>,
}

/// How one command went.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Its name in the manifest.
    pub(crate) name: String,
    /// What it printed.
    pub(crate) lines: Vec<String>,
    /// The lines of the file that the manifest asked for.
    pub(crate) collected: Vec<String>,
    /// `exit status: 0`, or otherwise; `None` when the guest went away before.
    pub(crate) how: Option<String>,
    /// Seconds on the guest's clock.
    pub(crate) seconds: f64,
}

impl Done {
    /// Whether it ended with 0.
    pub(crate) fn succeeded(&self) -> bool {
        self.how.as_deref() == Some("exit status: 0")
    }
}

impl Boot<'_> {
    /// Runs the machine until it powers off, or until the limit.
    ///
    /// # Errors
    ///
    /// When the emulator cannot be started.
    pub(crate) fn run(&self) -> Result<Ran> {
        let began = Instant::now();
        let mut command = self.command();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{}`", shown(&command)))?;
        let (sender, lines) = mpsc::channel();
        let report = child.stdout.take().context("the emulator's stdout is missing")?;
        thread::spawn(move || forward(report, |line| sender.send(line).is_ok()));
        let stderr = child.stderr.take().context("the emulator's stderr is missing")?;
        let complaints = thread::spawn(move || {
            let mut said = Vec::new();
            forward(stderr, |line| {
                said.push(line);
                true
            });
            said
        });
        let times =
            File::create(&self.times).with_context(|| format!("creating {}", self.times.display()))?;
        let mut listener = Listener {
            boot: self,
            ran: Ran::default(),
            bye: false,
            pid: child.id(),
            times,
            worked: Duration::ZERO,
        };
        let late = loop {
            match lines.recv_timeout(self.limit.saturating_sub(began.elapsed())) {
                Ok(line) => listener.hear(line),
                Err(RecvTimeoutError::Timeout) => break true,
                Err(RecvTimeoutError::Disconnected) => break false,
            }
        };
        if late {
            // It may have ended by itself in this moment.
            let _ = child.kill();
        }
        let worked = processor_time(child.id());
        let status = child.wait().context("waiting for the emulator")?;
        let complaints = complaints.join().unwrap_or_default();
        let Listener { mut ran, bye, .. } = listener;
        ran.took = began.elapsed();
        ran.worked = worked;
        if late {
            self.blame(&mut ran, &format!("not done after {} s", self.limit.as_secs()));
        } else if !status.success() {
            self.blame(&mut ran, &format!("the emulator ended with {status}: {}", complaints.join(" ")));
        } else if !bye {
            self.blame(&mut ran, "the guest ended without a word");
        }
        Ok(ran)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(MACHINE.split_whitespace())
            .args(["-icount", CLOCK, "-m", &self.memory.to_string()])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.image)
            .args(["-append", &format!("{KERNEL} {}", self.append)])
            .args(["-serial", &format!("file:{}", self.console.display()), "-serial", "stdio"]);
        command
    }

    fn blame(&self, ran: &mut Ran, what: &str) {
        let console = fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let tail: Vec<&str> = console.lines().rev().take(12).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        let first = ran.wrong.take().map(|wrong| wrong + "; ").unwrap_or_default();
        ran.wrong = Some(format!("{first}{what}; its console:\n    {}", tail.join("\n    ")));
    }
}

/// Takes in the report of one guest.
struct Listener<'a> {
    boot: &'a Boot<'a>,
    ran: Ran,
    bye: bool,
    pid: u32,
    times: File,
    /// The processor time of everything that has been noted.
    worked: Duration,
}

impl Listener<'_> {
    fn hear(&mut self, line: String) {
        // A command may have left a line of its own unfinished.
        let Some((before, word)) = line.split_once(MARK) else { return self.output(line) };
        if !before.is_empty() {
            self.output(before.to_owned());
        }
        let (word, rest) = word.split_once(' ').unwrap_or((word, ""));
        if word == "begin" {
            self.note(None);
        }
        let last = self.ran.steps.last_mut();
        match (word, last) {
            ("begin", _) => {
                self.ran.steps.push(Done { name: rest.to_owned(), ..Done::default() });
            }
            ("line", Some(step)) => step.collected.push(rest.to_owned()),
            ("end", Some(step)) => {
                let (seconds, how) = rest.split_once(' ').unwrap_or(("", rest));
                step.seconds = seconds.parse().unwrap_or(f64::NAN);
                step.how = Some(how.to_owned());
            }
            ("ready", _) => {}
            ("bye", _) => self.bye = true,
            _ => self.ran.wrong = Some(line.clone()),
        }
    }

    fn output(&mut self, line: String) {
        if self.boot.live {
            println!("{}: {line}", self.boot.name);
        }
        if line.starts_with("test ") && line.contains(" ... ") {
            self.note(Some(&line));
        }
        if let Some(step) = self.ran.steps.last_mut() {
            step.lines.push(line);
        }
    }

    /// What the emulator has worked since the last note, and for which test.
    fn note(&mut self, test: Option<&str>) {
        let Some(worked) = processor_time(self.pid) else { return };
        let since = worked.saturating_sub(self.worked);
        self.worked = worked;
        if let Some(test) = test {
            // For people only: a disk that is full shows in what is missing.
            let _ = writeln!(self.times, "{:7.2} {test}", since.as_secs_f64());
        }
    }
}

/// Of a child that has not been waited for.
fn processor_time(pid: u32) -> Option<Duration> {
    // The kernel counts in hundredths of a second for everybody outside of it.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    // utime and stime are numbers 14 and 15; the first one after the name is number 3.
    let ticks: u32 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    Some(TICK * ticks)
}

fn forward(pipe: impl Read, mut to: impl FnMut(String) -> bool) {
    for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        if !to(line) {
            return;
        }
    }
}
