//! What waiting costs: wake-ups, processor time and memory of a gate, and of a sidecar to which nothing happens; and how
//! soon a gate watches.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guard_tests::Tier;
use guard_tests::portguard::binary;
use guard_tests::spin::now_ns;

use crate::Bench;
use crate::holder::{Holder, Size};
use crate::peers::Role;
use crate::process::{cpu_ns, memory, wakeups};
use crate::sample::{Samples, Unit};
use crate::served;
use crate::subject::{self, Subject};

const SAMPLES: Samples = Samples::of("idle");

const SMALL: Size = Size { rss: "1M", queue: 0 };

/// Everybody waits for a port that stays taken.
const SCENARIO: &str = "waiting for a port that stays taken";

/// Nothing happens on any port.
const SIDECAR: &str = "a sidecar to which nothing happens";

pub(crate) fn run(bench: &Bench) -> Result<()> {
    SAMPLES.note("processor time of a script counts that of the commands it ran; its wake-ups and memory are its shell's only and left out")?;
    SAMPLES.note("start-up: from fork to the first snapshot of a taken port, with everything attached")?;
    let size = binary().metadata().context("look at portguard")?.len();
    SAMPLES.sample("the program", "portguard", "size", Unit::Bytes, size as f64)?;
    let waiting = subject::peers(Role::Waits, &bench.peers, SAMPLES)?;
    let tiers = subject::tiers(SAMPLES)?;
    let gates: Vec<Subject<'_>> = tiers.iter().map(|&tier| Subject::Gate(tier)).collect();
    let mut subjects = gates.clone();
    subjects.extend(waiting.iter().map(|(peer, program)| Subject::Peer(peer, program)));
    let port = bench.netns.free_port();
    let _holder = Holder::start(&bench.cell, port, SMALL, "exit")?;
    let span = match bench {
        Bench { smoke: true, .. } => Duration::from_millis(200),
        Bench { quick: true, .. } => Duration::from_millis(1500),
        _ => Duration::from_secs(10),
    };
    for &subject in &subjects {
        SAMPLES.progress(&subject.name())?;
        if let Err(error) = wait(bench, port, span, subject) {
            SAMPLES.absent(&subject.name(), &format!("{error:#}"))?;
        }
    }
    for &tier in &tiers {
        for count in [1, if bench.smoke { 10 } else { 1_000 }] {
            let plural = if count == 1 { "" } else { "s" };
            let name = format!("{}, {count} service{plural}", served::name(tier));
            if bench.quick && count > 1 {
                SAMPLES.absent(&name, "left out of a quick run")?;
                continue;
            }
            SAMPLES.progress(&name)?;
            // A sidecar gives back what its start needed two seconds after it.
            let calm = Duration::from_secs(if bench.smoke { 1 } else { 3 });
            if let Err(error) = serve(calm, span, tier, count, &name) {
                SAMPLES.absent(&name, &format!("{error:#}"))?;
            }
        }
    }
    let mut rounds = bench.rounds(100, Duration::from_secs(45), Duration::from_secs(4));
    while rounds.next_round().is_some() {
        for subject in rounds.shuffled(&gates) {
            if rounds.late() {
                break;
            }
            let work = subject.start(&bench.cell, port, &[]);
            work.armed()?;
            let armed_ns = now_ns();
            SAMPLES.span("start-up", &subject.name(), "fork → watching", work.began_ns(), armed_ns)?;
        }
    }
    Ok(())
}

fn wait(bench: &Bench, port: u16, span: Duration, subject: Subject<'_>) -> Result<()> {
    let work = subject.start(&bench.cell, port, &[]);
    work.armed()?;
    // What belongs to its start is not what waiting costs.
    std::thread::sleep(Duration::from_millis(100));
    cost(SCENARIO, &subject.name(), work.child.id.pid, span, !matches!(subject, Subject::Peer(..)))
}

fn serve(calm: Duration, span: Duration, tier: Tier, count: usize, name: &str) -> Result<()> {
    let ports = served::ports(count);
    let sidecar = served::watching(tier, &ports, false)?;
    // The connections that asked it are closed by then.
    std::thread::sleep(calm);
    cost(SIDECAR, name, sidecar.child.id.pid, span, true)
}

/// What a process costs in this span, while nothing happens.
fn cost(scenario: &str, name: &str, pid: i32, span: Duration, whole: bool) -> Result<()> {
    let began = Instant::now();
    let (cpu, woken) = (cpu_ns(pid), wakeups(pid));
    // A sleep is what is measured here: nothing happens.
    std::thread::sleep(span);
    let seconds = began.elapsed().as_secs_f64();
    let (cpu, woken) = (cpu_ns(pid).saturating_sub(cpu), wakeups(pid).saturating_sub(woken));
    let tell = |measure: &str, unit: Unit, value: f64| SAMPLES.sample(scenario, name, measure, unit, value);
    tell("processor time per hour", Unit::Seconds, cpu as f64 / 1e9 / seconds * 3600.0)?;
    if !whole {
        return Ok(());
    }
    tell("wake-ups per second", Unit::PerSecond, woken as f64 / seconds)?;
    let (resident, private) = memory(pid).context("read its memory")?;
    tell("resident memory", Unit::Bytes, resident as f64)?;
    tell("private memory", Unit::Bytes, private as f64)
}
