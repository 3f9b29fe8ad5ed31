//! A whole restart: from "go" to the tool's return, and to the successor's listening.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guard_tests::child::Child;
use guard_tests::lines::Lines;
use guard_tests::spin::{Processor, now_ns};
use guard_tests::standin::said;
use guard_tests::{DEADLINE, Tier};

use crate::Bench;
use crate::holder::{Holder, Size};
use crate::peers::Role;
use crate::sample::Samples;
use crate::subject::{self, Subject, opened};
use crate::truth::{REPEATS, Release, Truth};

const SAMPLES: Samples = Samples::of("restart");

/// A small server.
const SIZE: Size = Size { rss: "50M", queue: 0 };

/// A listener's manners, and its stand-in's reaction to SIGTERM.
const KINDS: [(&str, &str); 3] =
    [("polite", "exit"), ("slow (300 ms)", "delay=300ms"), ("stubborn", "ignore")];

/// Nobody spins, and the holder is no larger than it must be: the tool's own time, on all processors.
const UNDISTURBED: &str = "polite, 1 MB, nobody spins";

pub(crate) fn run(bench: &Bench) -> Result<()> {
    SAMPLES
        .note("the holder has 50 MB; portguard drains for as long as the algorithm with SIGKILL at 600 ms")?;
    SAMPLES.note("dead time: from bindable to the tool's return (restart: to its gate); below zero the tool returned too early")?;
    SAMPLES.note(
        "up: from the start of the tool until a successor listens that is started when the tool returns",
    )?;
    SAMPLES.note(
        "a client of the sidecar: a sidecar watched the port before, and for restart starts the successor itself; \
         total and up of that: the command has ended, because the successor listens",
    )?;
    SAMPLES.note(
        "blind: the thread that spins on bind() was off its processor while the port was free, three times over",
    )?;
    SAMPLES.note("successor lost: that successor died with EADDRINUSE")?;
    SAMPLES.note("portguard looks through every process of the machine, the others through those of their PID namespace")?;
    let ending = subject::peers(Role::Ends, &bench.peers, SAMPLES)?;
    for (peer, _) in &ending {
        SAMPLES.note(&format!("{}: {}", peer.name, peer.manners))?;
    }
    let tiers = subject::tiers(SAMPLES)?;
    let served = if bench.quick || bench.smoke { tiers.get(..1) } else { tiers.get(..) };
    let served = served.unwrap_or_default();
    let clients: Vec<Subject<'_>> =
        served.iter().flat_map(|&tier| [Subject::FreeClient(tier), Subject::RestartClient(tier)]).collect();
    let tiers = tiers.into_iter().map(Some).filter(|_| !bench.quick);
    let tiers: Vec<Option<Tier>> = std::iter::once(None).chain(tiers).collect();
    let mut subjects: Vec<Subject<'_>> = tiers.iter().map(|&tier| Subject::Free(tier)).collect();
    subjects.push(Subject::FreePortOnly);
    subjects.extend(&clients);
    subjects.extend(tiers.iter().map(|&tier| Subject::Restart(tier)));
    subjects.extend(ending.iter().map(|(peer, program)| Subject::Peer(peer, program)));
    if bench.smoke {
        subjects.truncate(1);
        subjects.extend(&clients);
    }
    bench.processor.map_or(Ok(()), Processor::take_back)?;
    let undisturbed = undisturbed(bench, &subjects);
    let _the_same = Processor::set_aside()?;
    undisturbed?;
    let mut rounds = bench.rounds(50, Duration::from_secs(210), Duration::from_secs(14));
    while let Some(round) = rounds.next_round() {
        SAMPLES.progress(&format!("round {round}"))?;
        for (kind, on_term) in KINDS.iter().take(if bench.smoke { 1 } else { KINDS.len() }) {
            for subject in rounds.shuffled(&subjects) {
                if rounds.late() {
                    return Ok(());
                }
                measure(bench, kind, on_term, subject)?;
            }
        }
    }
    Ok(())
}

/// From the start of the tool to its return, as its user has it who measures nothing else.
fn undisturbed(bench: &Bench, subjects: &[Subject<'_>]) -> Result<()> {
    SAMPLES.note(&format!("{UNDISTURBED}: from the start of the tool until it has ended; else as above"))?;
    let subjects: Vec<_> = subjects
        .iter()
        .copied()
        .filter(|subject| !matches!(subject, Subject::Restart(_) | Subject::RestartClient(_)))
        .collect();
    let mut rounds = bench.rounds(50, Duration::from_secs(75), Duration::from_secs(6));
    while let Some(round) = rounds.next_round() {
        SAMPLES.progress(&format!("nobody spins, round {round}"))?;
        for subject in rounds.shuffled(&subjects) {
            if rounds.late() {
                return Ok(());
            }
            let port = bench.netns.free_port();
            let done = Holder::start(&bench.cell, port, Size { rss: "1M", queue: 0 }, "exit")
                .and_then(|_holder| subject.start(&bench.cell, port, &[]).end().context("it did not end"));
            match done {
                Ok(done) if done.success => {
                    SAMPLES.span(UNDISTURBED, &subject.name(), "total", done.began_ns, done.ended_ns)?;
                }
                failed => {
                    if let Err(error) = failed {
                        SAMPLES.progress(&format!("{UNDISTURBED}, {}: {error:#}", subject.name()))?;
                    }
                    SAMPLES.yes(UNDISTURBED, &subject.name(), "failed", true)?;
                }
            }
        }
    }
    Ok(())
}

fn measure(bench: &Bench, kind: &str, on_term: &str, subject: Subject<'_>) -> Result<()> {
    let name = subject.name();
    let rounds = (0..REPEATS).map(|_| once(bench, on_term, subject));
    match rounds.filter_map(Result::transpose).next().transpose() {
        Err(error) => {
            SAMPLES.progress(&format!("{kind}, {name}: {error:#}"))?;
            SAMPLES.yes(kind, &name, "failed", true)
        }
        Ok(None) => SAMPLES.yes(kind, &name, "blind", true),
        Ok(Some(round)) => {
            SAMPLES.span(kind, &name, "dead time", round.release.at_ns, round.said_ns)?;
            SAMPLES.span(kind, &name, "bindable", round.began_ns, round.release.at_ns)?;
            if let Some(returned_ns) = round.returned_ns {
                SAMPLES.span(kind, &name, "total", round.began_ns, returned_ns)?;
            }
            SAMPLES.yes(kind, &name, "free too early", round.release.proves_wrong(round.said_ns))?;
            SAMPLES.yes(kind, &name, "successor lost", round.up_ns.is_none())?;
            match round.up_ns {
                Some(up_ns) => SAMPLES.span(kind, &name, "up", round.began_ns, up_ns),
                None => Ok(()),
            }
        }
    }
}

struct Round {
    began_ns: u64,
    release: Release,
    /// When it said that the port is free: its gate, or its return.
    said_ns: u64,
    /// `None` of a restart, which returns when the successor ends.
    returned_ns: Option<u64>,
    /// When the successor listened; `None` when it lost.
    up_ns: Option<u64>,
}

/// `None` where the successor has the port, and the thread that knows the truth was off its processor meanwhile.
fn once(bench: &Bench, on_term: &str, subject: Subject<'_>) -> Result<Option<Round>> {
    let port = bench.netns.free_port();
    let _holder = Holder::start(&bench.cell, port, SIZE, on_term)?;
    // Its own start is not what is compared: it touches no memory before it says that it listens.
    let successor = Holder::plan(port, Size { rss: "0", queue: 0 }, "exit").command_line();
    let truth = Truth::watch(port, bench.processor)?;
    let (began_ns, said_ns, returned_ns, up_ns, release);
    if let Subject::RestartClient(_) = subject {
        // The sidecar starts the successor, whose words are nobody's: the command returns when it listens.
        let work = subject.start(&bench.cell, port, &successor);
        let done = work.end().context("it did not end")?;
        began_ns = done.began_ns;
        said_ns = done.opened_ns;
        returned_ns = Some(done.ended_ns);
        up_ns = done.success.then_some(done.ended_ns);
        release = truth.release(Duration::from_secs(1));
    } else if let Subject::Restart(_) = subject {
        let work = subject.start(&bench.cell, port, &successor);
        began_ns = work.began_ns();
        up_ns = listens(&work.child.stdout);
        // Its events are on stderr: stdout belongs to the successor.
        said_ns = work.child.stderr.so_far().iter().find_map(|line| opened(line));
        release = truth.release(Duration::from_secs(1));
        returned_ns = None;
    } else {
        let done = subject.start(&bench.cell, port, &[]).end().context("it did not end")?;
        ensure!(done.success, "it gave up");
        let mut command = Command::new(&successor[0]);
        command.args(&successor[1..]);
        let successor = Child::start(command, "the successor");
        up_ns = listens(&successor.stdout);
        release = truth.release(Duration::from_secs(5));
        began_ns = done.began_ns;
        returned_ns = Some(done.ended_ns);
        said_ns = returned_ns;
    }
    let said_ns = said_ns.context("its gate never opened")?;
    let Some(release) = release else {
        ensure!(up_ns.is_some(), "the port was never free");
        return Ok(None);
    };
    Ok(Some(Round { began_ns, release, said_ns, returned_ns, up_ns }))
}

/// The moment at which a stand-in's `ready` line was read; `None` when it lost, or ended.
fn listens(stdout: &Lines) -> Option<u64> {
    stdout
        .wait_for(DEADLINE, |line| {
            let at_ns = now_ns();
            let ready = said(line, "ready").map(|_| Some(at_ns));
            ready.or_else(|| said(line, "bind_failed").map(|_| None))
        })
        .flatten()
}
