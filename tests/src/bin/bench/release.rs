//! How long after the port became bindable does somebody know it? And who says so before it is true?

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Bench;
use crate::holder::{self, Holder, LetGo, Size};
use crate::load::Load;
use crate::peers::Role;
use crate::rounds::Rounds;
use crate::sample::Samples;
use crate::subject::{self, Subject};
use crate::truth::{REPEATS, Release, Truth};

const SAMPLES: Samples = Samples::of("release");

/// The longest interval that anybody here polls at, and the time a poll takes.
const PHASE: Duration = Duration::from_millis(70);

struct Scenario {
    name: &'static str,
    size: Size,
    let_go: LetGo,
    busy: bool,
    /// Bytes of memory that it needs.
    memory: u64,
    /// In every so many rounds: what takes long to set up is measured less often.
    every: usize,
    /// The tools that end the holder are measured too in a quick run.
    quick: bool,
}

const SMALL: Scenario = Scenario {
    name: "killed, 1 MB, queue 0, idle",
    size: Size { rss: "1M", queue: 0 },
    let_go: LetGo::Killed,
    busy: false,
    memory: 0,
    every: 1,
    quick: true,
};

/// One thing is varied at a time.
const SCENARIOS: &[Scenario] = &[
    SMALL,
    Scenario { name: "closed, 1 MB, queue 0, idle", let_go: LetGo::Closes, quick: false, ..SMALL },
    Scenario {
        name: "killed, 500 MB, queue 0, idle",
        size: Size { rss: "500M", queue: 0 },
        memory: 1 << 30,
        every: 5,
        ..SMALL
    },
    Scenario {
        name: "killed, 2 GB, queue 0, idle",
        size: Size { rss: "2G", queue: 0 },
        memory: 3 << 30,
        every: 10,
        quick: false,
        ..SMALL
    },
    Scenario {
        name: "killed, 1 MB, queue 100, idle",
        size: Size { rss: "1M", queue: 100 },
        quick: false,
        ..SMALL
    },
    Scenario {
        name: "killed, 1 MB, queue 4096, idle",
        size: Size { rss: "1M", queue: 4096 },
        every: 2,
        quick: false,
        ..SMALL
    },
    Scenario { name: "killed, 1 MB, queue 0, both cores busy", busy: true, quick: false, ..SMALL },
    Scenario {
        name: "killed, 500 MB, queue 0, both cores busy",
        size: Size { rss: "500M", queue: 0 },
        busy: true,
        memory: 1 << 30,
        every: 5,
        quick: false,
        ..SMALL
    },
];

pub(crate) fn run(bench: &Bench) -> Result<()> {
    for note in [
        "0 is the first success of a thread that spins on bind(); a round in which that thread was put off its \
         processor when it counted is repeated, and blind after three times",
        "those that wait: somebody else makes the holder let go, at a random moment. The others end it themselves",
        "free too early: a bind() failed that began after \"free\" was said (gate_opened, or exit 0)",
        "a client of the sidecar: a sidecar watched the port before; in process: when the client has read that the \
         gate is open",
        "portguard free also waits until the ended process is gone, for its successor's sake; --port-only does not",
    ] {
        SAMPLES.note(note)?;
    }
    let tiers = subject::tiers(SAMPLES)?;
    let waiting = subject::peers(Role::Waits, &bench.peers, SAMPLES)?;
    let mut subjects: Vec<Subject<'_>> = tiers.iter().map(|&tier| Subject::Gate(tier)).collect();
    subjects.extend(tiers.iter().map(|&tier| Subject::Client(tier)));
    let scenarios = possible(bench)?;
    if !bench.quick && !bench.smoke {
        // Enough for a p99. What the others miss by is not a matter of the hundredth round.
        rounds(bench, bench.rounds(100, minutes(4), Duration::ZERO), &scenarios[..1], &subjects)?;
    }
    subjects.extend(waiting.iter().map(|(peer, program)| Subject::Peer(peer, program)));
    rounds(bench, bench.rounds(200, minutes(5), Duration::from_secs(12)), &scenarios, &subjects)?;
    if bench.smoke {
        return Ok(());
    }
    let ending = subject::peers(Role::Ends, &bench.peers, SAMPLES)?;
    let mut subjects = vec![Subject::Free(None), Subject::FreePortOnly];
    subjects.extend(ending.iter().map(|(peer, program)| Subject::Peer(peer, program)));
    let killed = |scenario: &&Scenario| scenario.let_go == LetGo::Killed && (scenario.quick || !bench.quick);
    let scenarios: Vec<&Scenario> = scenarios.into_iter().filter(killed).collect();
    rounds(bench, bench.rounds(30, minutes(3), Duration::from_secs(6)), &scenarios, &subjects)
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// Those for which there is enough memory.
fn possible(bench: &Bench) -> Result<Vec<&'static Scenario>> {
    let mut scenarios = Vec::new();
    for scenario in SCENARIOS.iter().take(if bench.smoke { 1 } else { SCENARIOS.len() }) {
        if scenario.memory >= holder::available_memory()? {
            SAMPLES.absent(scenario.name, "not enough memory is available")?;
        } else if bench.quick && scenario.every >= 10 {
            SAMPLES.absent(scenario.name, "left out of a quick run")?;
        } else {
            scenarios.push(scenario);
        }
    }
    Ok(scenarios)
}

fn rounds(
    bench: &Bench,
    mut rounds: Rounds,
    scenarios: &[&Scenario],
    subjects: &[Subject<'_>],
) -> Result<()> {
    while let Some(round) = rounds.next_round() {
        SAMPLES.progress(&format!("round {round}"))?;
        for scenario in scenarios.iter().filter(|scenario| round % scenario.every == 1 % scenario.every) {
            for subject in rounds.shuffled(subjects) {
                if rounds.late() {
                    return Ok(());
                }
                measure(bench, &mut rounds, scenario, subject)?;
            }
        }
    }
    Ok(())
}

fn measure(bench: &Bench, rounds: &mut Rounds, scenario: &Scenario, subject: Subject<'_>) -> Result<()> {
    let name = subject.name();
    for _ in 0..REPEATS {
        let round = match once(bench, rounds, scenario, subject) {
            Ok(round) => round,
            Err(error) => {
                SAMPLES.progress(&format!("{}, {name}: {error:#}", scenario.name))?;
                return SAMPLES.yes(scenario.name, &name, "failed", true);
            }
        };
        if !round.release.is_sharp_for(round.said_ns) {
            continue;
        }
        let tell = |name: &str, said_ns: u64| {
            SAMPLES.span(scenario.name, name, "bindable → says so", round.release.at_ns, said_ns)?;
            SAMPLES.yes(scenario.name, name, "free too early", round.release.proves_wrong(said_ns))
        };
        let Some(opened_ns) = round.opened_ns else { return tell(&name, round.said_ns) };
        tell(&format!("{name}: in process"), opened_ns)?;
        return tell(&format!("{name}: exit"), round.said_ns);
    }
    SAMPLES.yes(scenario.name, &name, "blind", true)
}

struct Round {
    release: Release,
    opened_ns: Option<u64>,
    said_ns: u64,
}

fn once(bench: &Bench, rounds: &mut Rounds, scenario: &Scenario, subject: Subject<'_>) -> Result<Round> {
    let port = bench.netns.free_port();
    let on_term = match scenario.let_go {
        LetGo::Closes => "close-hang",
        LetGo::Killed => "exit",
    };
    let holder = Holder::start(&bench.cell, port, scenario.size, on_term)?;
    let load = if scenario.busy { Some(Load::start()?) } else { None };
    let (truth, work) = if subject.waits() {
        let work = subject.start(&bench.cell, port, &[]);
        work.armed()?;
        // A sleep is wanted here: the moment of the release must not follow from that of the last look.
        std::thread::sleep(rounds.phase(PHASE));
        let truth = Truth::watch(port, bench.processor)?;
        holder.let_go(scenario.let_go);
        (truth, work)
    } else {
        let truth = Truth::watch(port, bench.processor)?;
        (truth, subject.start(&bench.cell, port, &[]))
    };
    let done = work.end();
    let release = truth.release(Duration::from_secs(10));
    drop(load);
    let done = done.context("it did not end")?;
    let release = release.context("the port was never free")?;
    ensure!(done.success, "it gave up");
    Ok(Round { release, opened_ns: done.opened_ns, said_ns: done.ended_ns })
}
