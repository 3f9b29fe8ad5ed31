//! What watching costs the host: connections per second, and nanoseconds per run of a BPF program.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guard_tests::child::Child;
use guard_tests::kernel::{BpfId, bpf_ids};
use guard_tests::{DEADLINE, Sidecar, Tier, wait_until};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::Bench;
use crate::process::cpu_ns;
use crate::programs::{Empty, Statistics, runs};
use crate::sample::{Samples, Unit};
use crate::served;
use crate::subject::{Subject, tiers};

const SAMPLES: Samples = Samples::of("host");

/// Connections that are timed together.
const BATCH: u32 = 250;

/// Long enough for a sidecar to come to rest.
const REST: Duration = Duration::from_secs(5);

/// Who watches while connections come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watcher<'a> {
    /// Nobody: what the others are compared with, compared with itself.
    Nobody,
    /// Programs that do nothing, on the tracepoints that portguard's are on: no program there can cost less.
    Empty,
    /// A gate that waits for the very port.
    SamePort(Tier),
    /// A gate that waits for another port.
    OtherPort(Tier),
    /// A sidecar that guards the very port.
    ServesPort(Tier),
    /// A sidecar that guards another port.
    ServesOther(Tier),
    /// A sidecar that guards another port, on which nobody listens: somebody may begin to.
    ServesFree(Tier),
    /// `tcpstates` of libbpf-tools.
    TcpStates(&'a Path),
}

impl Watcher<'_> {
    const fn is_expensive(self) -> bool {
        match self {
            Self::SamePort(tier)
            | Self::OtherPort(tier)
            | Self::ServesPort(tier)
            | Self::ServesOther(tier) => {
                matches!(tier, Tier::Netlink)
            }
            Self::TcpStates(_) => true,
            Self::Nobody | Self::Empty | Self::ServesFree(_) => false,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Nobody => "nothing (control)".to_owned(),
            Self::Empty => "empty programs on the same tracepoints (control)".to_owned(),
            Self::SamePort(tier) => format!("portguard gate, {tier}, on that port"),
            Self::OtherPort(tier) => format!("portguard gate, {tier}, on another port"),
            Self::ServesPort(tier) => format!("{}, on that port", served::name(tier)),
            Self::ServesOther(tier) => format!("{}, on another port", served::name(tier)),
            Self::ServesFree(tier) => format!("{}, on another port, free", served::name(tier)),
            Self::TcpStates(_) => "tcpstates (libbpf-tools)".to_owned(),
        }
    }
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    for note in [
        "one thread connects, accepts, closes both ends, and begins again: every connection goes through every state; \
         it keeps to one processor",
        "throughput, of that with nothing attached: the slice right after the watcher's end is the measure of the last one \
         before it, since a shared processor's speed changes within seconds. A slice counts as the fastest tenth of its \
         batches of 250 connections: interruptions, of which a virtual machine has many, are nobody's cost. Nothing \
         (control) has no end that the kernel would have to clear up after",
        "tcpstates prints a line for every change of state, as it does for its users",
        "the empty programs are on inet_sock_set_state and tcp_destroy_sock: less than they cost no program there can. \
         portguard's do more, and may be on other hooks besides: those listed with their runs per connection",
        "a sidecar is measured when it has come to rest: a second after it has seen somebody listen on each of its ports. \
         Where nobody does, it watches for whoever begins to",
        "nanoseconds per run are the kernel's own (BPF_ENABLE_STATS), which include reading the clock twice",
    ] {
        SAMPLES.note(note)?;
    }
    // TIME_WAIT would use up the ports of one address within a second. Of this network namespace only.
    std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0").context("do without TIME_WAIT")?;
    let tcpstates = find_tcpstates();
    let tiers = tiers(SAMPLES)?;
    let mut watchers = vec![Watcher::Nobody];
    if tiers.contains(&Tier::Ebpf) {
        watchers.push(Watcher::Empty);
    }
    for tier in tiers.into_iter().filter(|&tier| tier != Tier::Poll) {
        watchers.extend([Watcher::ServesPort(tier), Watcher::ServesOther(tier)]);
        if tier == Tier::Ebpf {
            watchers.push(Watcher::ServesFree(tier));
        }
        watchers.extend([Watcher::SamePort(tier), Watcher::OtherPort(tier)]);
    }
    match &tcpstates {
        Some(program) => watchers.push(Watcher::TcpStates(program)),
        None => SAMPLES.absent("tcpstates", "libbpf-tools is not installed here")?,
    }
    let connections = match bench {
        Bench { smoke: true, .. } => BATCH,
        Bench { quick: true, .. } => 4_000,
        _ => 15_000,
    };
    let site = Site::open(bench.netns.free_port())?;
    let mut rounds = bench.rounds(80, Duration::from_secs(330), Duration::from_secs(10));
    while let Some(round) = rounds.next_round() {
        SAMPLES.progress(&format!("round {round}"))?;
        for watcher in rounds.shuffled(&watchers) {
            if rounds.late() {
                break;
            }
            // Who costs ten percent and more is told apart by a third of the rounds.
            if !watcher.is_expensive() || round % 3 == 1 {
                compare(bench, &site, watcher, connections)?;
            }
        }
    }
    for watcher in watchers {
        programs(bench, &site, watcher, connections)?;
    }
    Ok(())
}

/// A watcher at work.
enum Watching {
    Alone(Child),
    Sidecar(Sidecar),
    Empty { _programs: Empty },
}

impl Watching {
    /// Who has the programs' descriptors.
    fn pid(&self) -> i32 {
        match self {
            Self::Alone(child) => child.id.pid,
            Self::Sidecar(sidecar) => sidecar.child.id.pid,
            Self::Empty { .. } => Pid::this().as_raw(),
        }
    }

    /// CPU time of a process that watches and does nothing else.
    fn cpu_ns(&self) -> u64 {
        match self {
            Self::Alone(_) | Self::Sidecar(_) => cpu_ns(self.pid()),
            Self::Empty { .. } => 0,
        }
    }
}

/// A sidecar as it is most of its life.
fn serve(listener: &TcpListener, tier: Tier) -> Result<Watching> {
    let sidecar = served::watching(tier, &[listener.local_addr()?.port()], false)?;
    if tier == Tier::Ebpf {
        // Where it never does, it is measured as it is: the programs that ran are listed.
        let _rests = wait_until(REST, || sidecar.rests());
    }
    Ok(Watching::Sidecar(sidecar))
}

/// The two ports.
struct Site {
    busy: TcpListener,
    other: TcpListener,
    free: u16,
}

impl Site {
    fn open(free: u16) -> Result<Self> {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen");
        Ok(Self { busy: listen()?, other: listen()?, free })
    }

    /// So many connections in batches; how long one took, as the fastest tenth of them. Where a host's processors are
    /// shared, the ratios of two slices of nothing spread less by it than by the median.
    fn churn(&self, connections: u32) -> Result<Duration> {
        let churn = || {
            keep_to_one_processor()?;
            self.churn_here(connections)
        };
        std::thread::scope(|scope| scope.spawn(churn).join()).expect("a thread that only returns errors")
    }

    fn churn_here(&self, connections: u32) -> Result<Duration> {
        let address: SocketAddr = self.busy.local_addr()?;
        let mut batches = Vec::new();
        for _ in 0..connections.div_ceil(BATCH) {
            let began = Instant::now();
            for _ in 0..BATCH {
                let client = TcpStream::connect(address).context("connect")?;
                let (server, _) = self.busy.accept().context("accept")?;
                drop(server);
                drop(client);
            }
            batches.push(began.elapsed() / BATCH);
        }
        batches.sort_unstable();
        Ok(batches[batches.len() / 10])
    }

    /// Starts a watcher and waits until it watches.
    fn watch(&self, bench: &Bench, watcher: Watcher<'_>) -> Result<Option<Watching>> {
        let (port, tier) = match watcher {
            Watcher::Nobody => return Ok(None),
            Watcher::Empty => return Ok(Some(Watching::Empty { _programs: Empty::attach()? })),
            Watcher::SamePort(tier) => (self.busy.local_addr()?.port(), tier),
            Watcher::OtherPort(tier) => (self.other.local_addr()?.port(), tier),
            Watcher::ServesPort(tier) => return serve(&self.busy, tier).map(Some),
            Watcher::ServesOther(tier) => return serve(&self.other, tier).map(Some),
            Watcher::ServesFree(tier) => {
                return served::watching(tier, &[self.free], false)
                    .map(|sidecar| Some(Watching::Sidecar(sidecar)));
            }
            Watcher::TcpStates(program) => {
                let child = Child::start(Command::new(program), "tcpstates");
                let attached = || bpf_ids(child.id.pid).iter().any(|object| matches!(object, BpfId::Link(_)));
                ensure!(
                    wait_until(DEADLINE, || attached() || !child.alive()) && child.alive(),
                    "tcpstates ended: {}",
                    child.said()
                );
                return Ok(Some(Watching::Alone(child)));
            }
        };
        let work = Subject::Gate(tier).start(&bench.cell, port, &[]);
        work.armed()?;
        Ok(Some(Watching::Alone(work.child)))
    }
}

fn compare(bench: &Bench, site: &Site, watcher: Watcher<'_>, connections: u32) -> Result<()> {
    let scenario = "connections";
    let name = watcher.name();
    let child = match site.watch(bench, watcher) {
        Ok(child) => child,
        Err(error) => return SAMPLES.absent(&name, &format!("{error:#}")),
    };
    site.churn(connections / 20)?;
    let used = child.as_ref().map_or(0, Watching::cpu_ns);
    let during = site.churn(connections)?;
    let used = child.as_ref().map_or(0, Watching::cpu_ns).saturating_sub(used);
    drop(child);
    site.churn(connections / 20)?;
    let alone = site.churn(connections)?.as_secs_f64();
    let tell = |measure: &str, unit: Unit, value: f64| SAMPLES.sample(scenario, &name, measure, unit, value);
    tell("throughput, of that with nothing attached", Unit::Ratio, alone / during.as_secs_f64())?;
    tell("a connection takes", Unit::Nanoseconds, during.as_secs_f64() * 1e9)?;
    tell("the watcher's CPU time per connection", Unit::Nanoseconds, used as f64 / f64::from(connections))
}

/// For the calling thread alone: whoever watches may have any processor.
fn keep_to_one_processor() -> Result<()> {
    const MYSELF: Pid = Pid::from_raw(0);
    let allowed = sched_getaffinity(MYSELF).context("sched_getaffinity")?;
    let last = (0..CpuSet::count()).rev().find(|&number| allowed.is_set(number).unwrap_or(false));
    let mut only = CpuSet::new();
    only.set(last.context("no processor is allowed")?)?;
    sched_setaffinity(MYSELF, &only).context("sched_setaffinity")
}

/// The kernel's own account of each program.
fn programs(bench: &Bench, site: &Site, watcher: Watcher<'_>, connections: u32) -> Result<()> {
    let Some(child) = site.watch(bench, watcher).ok().flatten() else { return Ok(()) };
    let statistics = match Statistics::enable() {
        Ok(statistics) => statistics,
        Err(error) => return SAMPLES.absent("nanoseconds per run", &format!("{error:#}")),
    };
    let ids = bpf_ids(child.pid());
    let before = runs(&ids);
    site.churn(connections)?;
    for (after, before) in runs(&ids).into_iter().zip(before) {
        let (count, time) = (after.count - before.count, after.time_ns - before.time_ns);
        if count == 0 {
            continue;
        }
        let subject = format!("{}: {}", watcher.name(), after.name);
        SAMPLES.sample(
            "BPF programs",
            &subject,
            "time per run",
            Unit::NanosecondsEach,
            time as f64 / count as f64,
        )?;
        let per_connection = count as f64 / f64::from(connections);
        SAMPLES.sample("BPF programs", &subject, "runs per connection", Unit::Number, per_connection)?;
    }
    drop(statistics);
    Ok(())
}

/// Debian puts it beside an ordinary user's path.
fn find_tcpstates() -> Option<PathBuf> {
    ["/usr/sbin/tcpstates", "/usr/bin/tcpstates"].map(PathBuf::from).into_iter().find(|path| path.is_file())
}
