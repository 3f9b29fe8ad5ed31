//! How long after the port became bindable does the gate open? Measured against a
//! thread that does nothing but `bind()`, once per round.
//!
//! A benchmark: it prints, it does not judge. A negative time means that the gate
//! was ahead of the spinning thread. A round in which the spinning thread was off its
//! processor at the moment that counts measures the scheduler, not the gate: it is
//! repeated, and counted as blind.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use guard_tests::netns::Netns;
use guard_tests::portguard::{Portguard, Run};
use guard_tests::spin::{Processor, Spinner};
use guard_tests::standin::{Plan, Standin};
use guard_tests::{Tier, wait_until};
use nix::sys::signal::Signal;

/// Measures how long after the port became bindable the gate opens.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds per tier.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// How the port is given back.
    #[arg(long, value_enum, default_value_t = Release::Close)]
    release: Release,
    /// With --release kill: memory of the killed process.
    #[arg(long, default_value = "1M")]
    rss: String,
    /// Only this tier: ebpf or poll.
    #[arg(long)]
    tier: Option<String>,
    /// Print every round, in nanoseconds.
    #[arg(long)]
    all: bool,
}

/// How the port is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Release {
    /// The listener is closed.
    Close,
    /// Its process is killed.
    Kill,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // A namespace belongs to a thread; this program needs no other.
    let netns = Netns::enter()?;
    let processor = Processor::set_aside().context("set a processor aside for the spinning thread")?;
    if processor.is_none() {
        println!("only one processor: the spinning thread and the gate take turns");
    }
    println!(
        "{:<6} {:>7} {:>6} {:>12} {:>12} {:>12} {:>12}",
        "tier", "rounds", "blind", "median µs", "p99 µs", "least µs", "most µs"
    );
    for tier in Tier::ALL {
        if options.tier.as_deref().is_some_and(|only| only != tier.name()) {
            continue;
        }
        let mut delays = Vec::with_capacity(options.rounds);
        let mut blind = 0;
        while delays.len() < options.rounds {
            let round = measure(&netns, processor, tier, &options)
                .with_context(|| format!("round {} in tier {tier}", delays.len() + blind))?;
            if round.blind_ns > SHARP_NS {
                blind += 1;
                ensure!(blind <= 20 * options.rounds, "the machine is too busy for a spinning thread");
                continue;
            }
            if options.all {
                println!("{tier} {}", round.delay_ns);
            }
            delays.push(round.delay_ns);
        }
        report(tier, blind, delays)?;
    }
    Ok(())
}

/// How far apart a wakeful thread's last failure and first success may be.
const SHARP_NS: u64 = 20_000;

struct Round {
    /// From the spinning thread's first success to the gate's opening.
    delay_ns: i64,
    /// From the spinning thread's last failure to its first success.
    blind_ns: u64,
}

fn measure(netns: &Netns, processor: Option<Processor>, tier: Tier, options: &Options) -> Result<Round> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, netns.free_port()));
    let holder = Holder::take(address, options)?;
    let gate = Gate::arm(address, tier);
    let spinner = Spinner::start(address, processor);
    ensure!(wait_until(Duration::from_secs(5), || spinner.spins()), "the spinning thread never lost");
    holder.let_go();
    let bound = spinner.first_success().context("the spinning thread never won")?;
    let delay_ns = gate.opened_at()?.cast_signed() - bound.at_ns.cast_signed();
    Ok(Round { delay_ns, blind_ns: bound.blind_ns })
}

/// Who has the port.
enum Holder {
    Own(TcpListener),
    Process(Box<Standin>),
}

impl Holder {
    fn take(address: SocketAddr, options: &Options) -> Result<Self> {
        match options.release {
            // std sets SO_REUSEADDR, as every server here does.
            Release::Close => Ok(Self::Own(TcpListener::bind(address).context("listen")?)),
            Release::Kill => {
                let plan =
                    Plan::new(["--rss", &options.rss]).listen(&address.ip().to_string(), address.port());
                Ok(Self::Process(Box::new(plan.start())))
            }
        }
    }

    fn let_go(self) {
        match self {
            Self::Own(listener) => drop(listener),
            Self::Process(standin) => standin.child.signal(Signal::SIGKILL),
        }
    }
}

/// A gate that waits for the port.
struct Gate(Run);

impl Gate {
    /// Starts it and returns once it has seen that the port is taken.
    fn arm(address: SocketAddr, tier: Tier) -> Self {
        let run = Portguard::new("gate", tier)
            .arg("--port")
            .arg(&address.port().to_string())
            .address(&address.ip().to_string())
            .timeout("30s")
            .start();
        run.waits();
        Self(run)
    }

    /// The moment it opened, on the spinning thread's clock.
    fn opened_at(self) -> Result<u64> {
        let finished = self.0.finish();
        let opened = finished.of("gate_opened").first().map(|event| event.mono_ns());
        match opened {
            Some(at) => Ok(at),
            None => bail!("the gate never opened\n{finished}"),
        }
    }
}

fn report(tier: Tier, blind: usize, mut delays: Vec<i64>) -> Result<()> {
    delays.sort_unstable();
    let (Some(least), Some(most)) = (delays.first(), delays.last()) else { bail!("no round was asked for") };
    // The nearest-rank percentile: the smallest value that `share` of all do not exceed.
    let rank = |share: usize| delays[(delays.len() * share).div_ceil(100).max(1) - 1];
    println!(
        "{:<6} {:>7} {:>6} {:>12.1} {:>12.1} {:>12.1} {:>12.1}",
        tier.name(),
        delays.len(),
        blind,
        micros(rank(50)),
        micros(rank(99)),
        micros(*least),
        micros(*most)
    );
    Ok(())
}

fn micros(nanos: i64) -> f64 {
    nanos as f64 / 1000.0
}
