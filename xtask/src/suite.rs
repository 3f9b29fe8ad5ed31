//! Runs one test harness: shows it, reads its result, never waits for ever.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::process::shown;

/// How much of a harness's output a person sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// Every line as it comes: for suites that take their time.
    Live,
    /// Everything, but only when something failed.
    Failures,
}

/// How the harness shows a test under `#[ignore = "a measurement…"]`, a number for people to read.
const MEASUREMENT: &str = "ignored, a measurement";

/// How the harness shows a test under `#[ignore = "in a guest: …"]`: `cargo xtask vm-test` runs it.
const IN_A_GUEST: &str = "ignored, in a guest";

/// How one suite, or several together, went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Tests that the harness calls passed.
    pub(crate) passed: usize,
    /// Tests that failed.
    pub(crate) failed: usize,
    /// `suite: test` of each failed test.
    pub(crate) failures: Vec<String>,
    /// `suite: test` of each ignored test.
    pub(crate) ignored: Vec<String>,
    /// `suite: test` of each measurement: it judges nothing, so leaving it out skips nothing.
    pub(crate) measurements: Vec<String>,
    /// `suite: test` of each test that needs a machine of its own and is run in one elsewhere.
    pub(crate) in_a_guest: Vec<String>,
}

impl Outcome {
    /// Adds another suite's outcome to this one.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.ignored.extend(other.ignored);
        self.measurements.extend(other.measurements);
        self.in_a_guest.extend(other.in_a_guest);
    }

    /// Takes in one line of what a harness prints; whether it is the result of all.
    pub(crate) fn read(&mut self, suite: &str, line: &str) -> bool {
        if let Some((passed, failed)) = result_line(line) {
            self.passed += passed;
            self.failed += failed;
            return true;
        }
        if let Some((test, verdict)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            let list = match verdict.split([',', ' ']).next() {
                Some("ignored") if verdict.starts_with(MEASUREMENT) => &mut self.measurements,
                Some("ignored") if verdict.starts_with(IN_A_GUEST) => &mut self.in_a_guest,
                Some("FAILED") => &mut self.failures,
                Some("ignored") => &mut self.ignored,
                _ => return false,
            };
            list.push(format!("{suite}: {test}"));
        }
        false
    }
}

enum Message {
    Line(String),
    Ended(std::io::Result<ExitStatus>),
}

/// How long output may still come in after the harness itself has ended: a
/// process that a test left behind can hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs a harness to its end or to the limit.
///
/// A harness that ends badly without naming a failed test (a crash, a signal, the
/// limit) counts as one failed test. One that prints no result line at all, a
/// harness of its own making, counts as one test.
///
/// # Errors
///
/// When the harness cannot be started.
pub(crate) fn run(name: &str, mut command: Command, show: Show, limit: Duration) -> Result<Outcome> {
    let started = Instant::now();
    if show == Show::Live {
        println!("---- {name}");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{}` for {name}", shown(&command)))?;
    let pid = child.id();
    let (sender, messages) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        forward(stdout, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        forward(stderr, sender.clone());
    }
    thread::spawn(move || sender.send(Message::Ended(child.wait())));

    let mut outcome = Outcome::default();
    let mut lines = Vec::new();
    let mut ended = None;
    let mut results = 0;
    let mut late = false;
    let mut deadline = started + limit;
    loop {
        let wait = deadline.saturating_duration_since(Instant::now());
        match messages.recv_timeout(wait) {
            Ok(Message::Line(line)) => {
                results += usize::from(outcome.read(name, &line));
                if show == Show::Live {
                    println!("{line}");
                } else {
                    lines.push(line);
                }
            }
            Ok(Message::Ended(status)) => {
                ended = Some(status.context("waiting for the harness")?);
                deadline = Instant::now() + DRAIN;
            }
            Err(RecvTimeoutError::Timeout) if ended.is_none() && !late => {
                late = true;
                deadline = Instant::now() + DRAIN;
                // Nobody has reaped it (no Ended message), so the number is still its own.
                let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            }
            // Disconnected: both pipes are closed and the end was seen.
            Err(_) => break,
        }
    }
    let success = ended.is_some_and(|status| status.success());
    if results == 0 && success {
        outcome.passed += 1;
    }
    if !success && outcome.failed == 0 {
        outcome.failed += 1;
        let how = if late { format!("not done after {} s", limit.as_secs()) } else { ending(ended) };
        outcome.failures.push(format!("{name}: {how}"));
    }
    let verdict = if outcome.failed > 0 { "FAILED" } else { "ok" };
    if outcome.failed > 0 && show == Show::Failures {
        println!("---- {name}\n{}", lines.join("\n"));
    }
    let Outcome { passed, failed, .. } = &outcome;
    println!(
        "{verdict:6} {name}: {passed} passed, {failed} failed in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    // A pipe that nobody reads any more does not make the tests fail.
    let _ = std::io::stdout().flush();
    Ok(outcome)
}

fn ending(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "ended unseen".into(), |status| format!("ended with {status}"))
}

fn forward(pipe: impl Read + Send + 'static, to: Sender<Message>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if to.send(Message::Line(line)).is_err() {
                return;
            }
        }
    });
}

/// `test result: ok. 12 passed; 0 failed; 1 ignored; …` → passed and failed.
fn result_line(line: &str) -> Option<(usize, usize)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| {
        let part = counts.split(';').find(|part| part.trim().ends_with(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    Some((count("passed")?, count("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn counts_and_names_come_from_the_harness() {
        let script = "echo 'test a::b ... ok'; echo 'test a::c ... FAILED'; echo 'test d ... ignored, why';
            echo 'test e ... ignored, a measurement: run it alone'; echo 'test f ... ignored, in a guest: why';
            echo 'test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out'; exit 101";
        let outcome = run("s", shell(script), Show::Failures, LIMIT).unwrap();
        assert_eq!((outcome.passed, outcome.failed), (1, 1));
        assert_eq!(outcome.failures, ["s: a::c"]);
        assert_eq!(outcome.ignored, ["s: d"]);
        assert_eq!(outcome.measurements, ["s: e"]);
        assert_eq!(outcome.in_a_guest, ["s: f"]);
    }

    #[test]
    fn a_crash_after_a_good_result_is_a_failure() {
        let script = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; kill -9 $$";
        let outcome = run("s", shell(script), Show::Failures, LIMIT).unwrap();
        assert_eq!((outcome.passed, outcome.failed), (3, 1));
    }

    #[test]
    fn a_harness_that_hangs_is_ended_and_fails() {
        let outcome = run("s", shell("exec sleep 60"), Show::Failures, Duration::from_millis(100)).unwrap();
        assert_eq!((outcome.passed, outcome.failed), (0, 1));
    }

    #[test]
    fn a_process_that_a_test_left_behind_does_not_hold_the_run() {
        let started = Instant::now();
        let script = "sleep 15 & echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";
        let outcome = run("s", shell(script), Show::Failures, LIMIT).unwrap();
        assert_eq!((outcome.passed, outcome.failed), (1, 0));
        assert!(started.elapsed() < Duration::from_secs(10), "waited for the leftover process");
    }

    #[test]
    fn a_harness_without_a_result_line_is_one_test() {
        assert_eq!(run("s", shell("true"), Show::Failures, LIMIT).unwrap().passed, 1);
        assert_eq!(run("s", shell("false"), Show::Failures, LIMIT).unwrap().failed, 1);
    }
}
