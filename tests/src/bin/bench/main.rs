//! The measuring program of `cargo xtask bench`: it measures, writes samples, and judges nothing.
//!
//! Everything happens in a network namespace of its own, the tools that portguard is compared
//! with in a PID namespace of their own besides.

mod cell;
mod crowd;
mod holder;
mod host;
mod idle;
mod load;
mod peers;
mod process;
mod programs;
mod release;
mod restart;
mod rounds;
mod sample;
mod scale;
mod served;
mod subject;
mod truth;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use guard_tests::netns::Netns;
use guard_tests::spin::Processor;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::cell::Cell;
use crate::rounds::Rounds;

/// Measures one section and writes JSON lines.
#[derive(Debug, Parser)]
struct Options {
    section: Section,
    /// Fewer rounds, within the time of a short break
    #[arg(long)]
    quick: bool,
    /// The smallest run that uses every part of this program
    #[arg(long)]
    smoke: bool,
    /// This many rounds, however long they take
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the tools to compare with are installed
    #[arg(long, default_value = "target/bench/peers")]
    peers: PathBuf,
    /// Makes the order of a run repeatable
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// From bindable to "free"
    Release,
    /// From "go" to a successor that listens
    Restart,
    /// What watching costs everybody else
    Host,
    /// What waiting costs
    Idle,
    /// How it grows
    Scale,
}

/// What every section needs.
#[derive(Debug)]
pub(crate) struct Bench {
    cell: Cell,
    netns: Netns,
    processor: Option<Processor>,
    peers: PathBuf,
    quick: bool,
    smoke: bool,
    rounds: Option<usize>,
    seed: u64,
}

impl Bench {
    /// So many rounds, but no longer than this; how long a quick run may take.
    fn rounds(&self, most: usize, budget: Duration, quick: Duration) -> Rounds {
        let (most, budget) = match self.rounds {
            _ if self.smoke => (1, Duration::MAX),
            Some(rounds) => (rounds, Duration::MAX),
            None => (most, if self.quick { quick } else { budget }),
        };
        Rounds::new(most, budget, self.seed)
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(cell::INIT) => return cell::init(),
        Some(crowd::CROWD) => return crowd::gather(arguments.next().context("how many?")?.parse()?),
        _ => {}
    }
    let options = Options::parse();
    mount_tracefs().context("mount tracefs in a mount namespace of its own")?;
    let netns = Netns::enter()?;
    holder::allow_queues()?;
    let cell = Cell::new()?;
    // Where nobody spins, whoever is measured may have all processors.
    let processor = match options.section {
        Section::Release | Section::Restart | Section::Scale => {
            Processor::set_aside().context("set a processor aside for the spinning thread")?
        }
        Section::Host | Section::Idle => None,
    };
    let peers = std::path::absolute(&options.peers).context("find the peers")?;
    let Options { quick, smoke, rounds, seed, .. } = options;
    let bench = Bench { cell, netns, processor, peers, quick, smoke, rounds, seed };
    match options.section {
        Section::Release => release::run(&bench),
        Section::Restart => restart::run(&bench),
        Section::Host => host::run(&bench),
        Section::Idle => idle::run(&bench),
        Section::Scale => scale::run(&bench),
    }
}

/// libbpf's tools look for their tracepoints there, and not every machine has it mounted.
fn mount_tracefs() -> Result<()> {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)
        .context("make mounts private")?;
    if !std::path::Path::new("/sys/kernel/tracing/events").exists() {
        // Without it those tools are reported as absent.
        let _without = mount(NOTHING, "/sys/kernel/tracing", Some("tracefs"), MsFlags::empty(), NOTHING);
    }
    Ok(())
}
