//! Running portguard.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::DEADLINE;
use crate::caller::Caller;
use crate::child::Child;
use crate::events::{Event, Verdict};
use crate::lines::Lines;
use crate::process::Proc;
use crate::standin::{Plan, built};
use crate::tier::Tier;

/// The `portguard` under test.
///
/// # Panics
/// When it is not there.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("PORTGUARD_BIN").map_or_else(|| built("portguard"), PathBuf::from);
    assert!(
        path.is_file(),
        "no portguard at {}: build it (`cargo build -p guard`) or name it in PORTGUARD_BIN",
        path.display()
    );
    path
}

/// A portguard command line.
#[derive(Clone, Debug)]
pub struct Portguard {
    through: Vec<String>,
    program: Option<PathBuf>,
    arguments: Vec<String>,
    command: Vec<String>,
    caller: Caller,
    deadline: Duration,
}

/// A portguard that runs.
#[derive(Debug)]
pub struct Run {
    /// The process.
    pub child: Child,
    /// Its JSON lines: stdout, or stderr where stdout belongs to the command it runs.
    pub report: Lines,
    deadline: Duration,
}

/// A portguard that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code, or that of the command that replaced it; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its JSON lines, in order.
    pub events: Vec<Event>,
    /// The other lines on stdout: those of the command it ran.
    pub others: Vec<String>,
    /// What it wrote to stderr.
    pub stderr: String,
    line: String,
}

impl Portguard {
    /// `portguard COMMAND --json --tier TIER`.
    pub fn new(command: &str, tier: Tier) -> Self {
        Self::bare(&[command, "--json", "--tier", tier.name()])
    }

    /// `portguard ARGUMENTS`.
    pub fn bare(arguments: &[&str]) -> Self {
        Self {
            through: Vec::new(),
            program: None,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            command: Vec::new(),
            caller: Caller::default(),
            deadline: Duration::from_secs(40),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(self, arguments: &[&str]) -> Self {
        arguments.iter().fold(self, |portguard, argument| portguard.arg(argument))
    }

    /// `--address`
    #[must_use]
    pub fn address(self, address: &str) -> Self {
        self.arg("--address").arg(address)
    }

    /// `--match`
    #[must_use]
    pub fn matching(self, regex: &str) -> Self {
        self.arg(&format!("--match={regex}"))
    }

    /// `--timeout`, in place of one given before.
    #[must_use]
    pub fn timeout(self, span: &str) -> Self {
        self.set("--timeout", span)
    }

    /// `--drain`, in place of one given before.
    #[must_use]
    pub fn drain(self, span: &str) -> Self {
        self.set("--drain", span)
    }

    fn set(mut self, flag: &str, value: &str) -> Self {
        let prefix = format!("{flag}=");
        self.arguments.retain(|argument| !argument.starts_with(&prefix));
        self.arg(&format!("{prefix}{value}"))
    }

    /// `-- STANDIN…`
    #[must_use]
    pub fn then_start(mut self, standin: &Plan) -> Self {
        self.command = standin.command_line();
        self
    }

    /// `-- CMD…`
    #[must_use]
    pub fn then(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Run by somebody with these rights.
    #[must_use]
    pub fn by(mut self, caller: Caller) -> Self {
        self.caller = caller;
        self
    }

    /// Run by this command line, which ends with what it runs.
    #[must_use]
    pub fn through(mut self, line: Vec<String>) -> Self {
        self.through = line;
        self
    }

    /// This copy of it.
    #[must_use]
    pub fn program(mut self, path: PathBuf) -> Self {
        self.program = Some(path);
        self
    }

    /// How long the test waits for its end.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Program and arguments, for a stand-in that runs it.
    pub fn command_line(&self) -> Vec<String> {
        let program = binary().into_os_string().into_string().expect("a path in UTF-8");
        let mut line: Vec<String> = std::iter::once(program).chain(self.arguments.iter().cloned()).collect();
        if !self.command.is_empty() {
            line.push("--".to_owned());
            line.extend(self.command.iter().cloned());
        }
        line
    }

    /// Starts it.
    pub fn start(&self) -> Run {
        let line = self.command_line();
        let program = self.program.clone().unwrap_or_else(|| self.caller.reachable(&binary()));
        let mut command = match self.through.split_first() {
            Some((outer, between)) => {
                let mut command = Command::new(outer);
                command.args(between).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(&line[1..]);
        self.caller.apply(&mut command);
        let child = Child::start(command, &format!("portguard {}", line[1..].join(" ")));
        let restart = self.arguments.first().is_some_and(|command| command == "restart");
        let report = if restart { child.stderr.clone() } else { child.stdout.clone() };
        Run { child, report, deadline: self.deadline }
    }

    /// Starts it and waits for its end.
    pub fn run(&self) -> Finished {
        self.start().finish()
    }
}

impl Run {
    /// The first event that `wanted` accepts.
    ///
    /// # Panics
    /// When none comes within [`DEADLINE`].
    pub fn event(&self, what: &str, mut wanted: impl FnMut(&Event) -> bool) -> Event {
        self.report
            .wait_for(DEADLINE, |line| Event::parse(line).filter(|event| wanted(event)))
            .unwrap_or_else(|| panic!("{what}: no such event\n{}", self.child.said()))
    }

    /// Waits until it has sent `signal` to `to`.
    pub fn sent(&self, signal: &str, to: Proc) -> Event {
        self.event(&format!("{signal} to {to}"), |event| {
            event.kind() == "signal_sent" && event.signal() == signal && event.process() == to
        })
    }

    /// Waits until it has seen that the port is not free, so that it waits itself.
    pub fn waits(&self) -> Event {
        self.event("a busy snapshot", |event| event.kind() == "snapshot" && event.verdict() != Verdict::Free)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time, or broke a rule that holds for every run.
    pub fn finish(mut self) -> Finished {
        let status = self.child.wait(self.deadline);
        // A command it started may keep the pipes open; what portguard itself wrote is in them by now,
        // and only has to be read.
        self.child.stdout.ended_within(Duration::from_secs(2));
        self.child.stderr.ended_within(Duration::from_secs(2));
        let mut said = self.child.stdout.so_far();
        let mut complaints = self.child.stderr.so_far();
        let events = [&mut said, &mut complaints]
            .into_iter()
            .flat_map(|lines| lines.extract_if(.., |line| Event::parse(line).is_some()))
            .filter_map(|line| Event::parse(&line))
            .collect();
        let finished = Finished {
            code: status.code(),
            events,
            others: said,
            stderr: complaints.join("\n"),
            line: self.child.name.clone(),
        };
        finished.check();
        finished
    }
}

impl Finished {
    /// What holds for every run.
    fn check(&self) {
        for pair in self.events.windows(2) {
            assert!(pair[0].seq() < pair[1].seq(), "seq does not grow\n{self}");
            assert_eq!(pair[0].version(), pair[1].version(), "v changes\n{self}");
        }
        let mut termed = Vec::new();
        for (process, signal) in self.signals() {
            match signal {
                "SIGTERM" => termed.push(process),
                // SIGCONT only wakes a stopped process up, so that it can act on SIGTERM.
                "SIGKILL" | "SIGCONT" => {
                    assert!(termed.contains(&process), "{signal} without a SIGTERM before\n{self}");
                }
                other => panic!("{other} is never sent\n{self}"),
            }
        }
        assert!(!self.stderr.contains("panicked at"), "portguard panicked\n{self}");
        let logged = self.stderr.lines().any(|line| line.trim_start().starts_with("ERROR "));
        assert!(!logged, "an error was logged\n{self}");
        // Wrong arguments begin no run; --exec hands the process and its exit code on; a failure of
        // portguard itself (3, 6) may come before the run.
        let told = match self.code {
            None | Some(2) => false,
            Some(3 | 6) => !self.events.is_empty(),
            Some(_) => !self.line.contains(" --exec ") && self.line.contains(" --json "),
        };
        if told {
            let last = self.events.last().unwrap_or_else(|| panic!("no events\n{self}"));
            assert_eq!(last.kind(), "run_finished", "{self}");
            assert_eq!(Some(last.exit_code()), self.code.map(i64::from), "{self}");
        }
        if self.code == Some(0) {
            assert!(self.of("gate_refused").is_empty(), "success with a refused gate\n{self}");
        }
        // A unit that was started behind an open gate can still lose to a rival.
        let rival = self.events.last().is_some_and(|event| event.outcome() == "rival");
        if self.code.is_some_and(|code| !matches!(code, 0 | 7)) && !rival {
            assert!(self.of("gate_opened").is_empty(), "failure with an open gate\n{self}");
        }
    }

    /// Checks the exit code, and shows everything when it is another.
    ///
    /// # Panics
    /// When it is.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code\n{self}");
        self
    }

    /// All events of this type.
    pub fn of(&self, kind: &str) -> Vec<&Event> {
        self.events.iter().filter(|event| event.kind() == kind).collect()
    }

    /// The notes of this kind.
    pub fn notes(&self, code: &str) -> Vec<&Event> {
        self.events.iter().filter(|event| event.is_note(code)).collect()
    }

    /// Every signal sent, in order.
    pub fn signals(&self) -> Vec<(Proc, &str)> {
        self.of("signal_sent").into_iter().map(|event| (event.process(), event.signal())).collect()
    }

    /// The signals that this process was sent.
    pub fn signals_to(&self, process: Proc) -> Vec<&str> {
        self.signals().into_iter().filter(|(to, _)| *to == process).map(|(_, signal)| signal).collect()
    }

    /// The states of the sockets that it destroyed, in order.
    pub fn evicted(&self) -> Vec<&str> {
        let steps = self.of("run_step").into_iter().filter(|event| event.0["step"] == "evicted");
        steps.map(|event| event.0["socket"]["state"].as_str().expect("a socket's state")).collect()
    }

    /// The last verdict. A port that is free at the first probe needs no snapshot.
    ///
    /// # Panics
    /// Without any `snapshot` or `gate_opened` event.
    pub fn verdict(&self) -> Verdict {
        if !self.of("gate_opened").is_empty() {
            return Verdict::Free;
        }
        self.of("snapshot").last().unwrap_or_else(|| panic!("no snapshot\n{self}")).verdict()
    }

    /// Some snapshot classed this process so.
    pub fn classed(&self, process: Proc, class: &str) -> bool {
        self.of("snapshot").iter().any(|snapshot| {
            snapshot.holders().iter().any(|holder| {
                holder.owners().iter().any(|owner| owner.process() == process && owner.class() == class)
            })
        })
    }

    /// Anything it said, on stdout or stderr, contains this word.
    pub fn mentions(&self, word: &str) -> bool {
        self.stderr.contains(word) || self.events.iter().any(|event| event.mentions(word))
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "--- {} ended with {:?}; its events:", self.line, self.code)?;
        for event in &self.events {
            writeln!(f, "{event}")?;
        }
        writeln!(f, "--- other lines:\n{}", self.others.join("\n"))?;
        write!(f, "--- stderr:\n{}", self.stderr)
    }
}
