//! How it grows: with watched endpoints, services, processes, and TIME_WAIT sockets.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guard_tests::child::Child;
use guard_tests::portguard::binary;
use guard_tests::spin::now_ns;
use guard_tests::{DEADLINE, Tier};

use crate::Bench;
use crate::crowd;
use crate::holder::{Holder, Size, TAG};
use crate::peers::is_installed;
use crate::sample::Samples;
use crate::served;
use crate::subject::{Work, tiers};
use crate::truth::Truth;

const SAMPLES: Samples = Samples::of("scale");

/// How long any one command gets.
const LIMIT: Duration = Duration::from_secs(60);

/// A command that looks at a port.
struct Look {
    name: &'static str,
    /// Arguments; `PORT`, `TAG` and `SOCKET` (a sidecar's) are replaced, `portguard` is the one that is measured.
    line: &'static str,
    /// It runs outside of the cell.
    outside: bool,
    /// What it exits with when it found what it looked for.
    code: i32,
}

/// Who owns the listener on a port?
const OWNERS: [Look; 6] = [
    Look {
        name: "portguard status",
        line: "portguard status --json --address 127.0.0.1 --port PORT --match TAG",
        outside: true,
        code: 1,
    },
    Look {
        name: "portguard status, ebpf",
        line: "portguard status --json --tier ebpf --address 127.0.0.1 --port PORT --match TAG",
        outside: true,
        code: 1,
    },
    Look {
        name: "portguard status, client of the sidecar, ebpf",
        line: "portguard status --json --socket SOCKET --address 127.0.0.1 --port PORT",
        outside: true,
        code: 1,
    },
    Look { name: "lsof", line: "lsof -nP -iTCP:PORT -sTCP:LISTEN -t", outside: false, code: 0 },
    Look { name: "fuser", line: "fuser PORT/tcp", outside: false, code: 0 },
    Look { name: "ss -p", line: "ss -Hltnp sport = :PORT", outside: false, code: 0 },
];

/// What is left on a port that nobody listens on?
const LEFTOVERS: [Look; 4] = [
    Look {
        name: "portguard gate",
        line: "portguard gate --json --address 127.0.0.1 --port PORT",
        outside: true,
        code: 0,
    },
    Look {
        name: "portguard status",
        line: "portguard status --json --address 127.0.0.1 --port PORT",
        outside: true,
        code: 0,
    },
    Look { name: "lsof", line: "lsof -nP -iTCP:PORT", outside: false, code: 1 },
    Look { name: "ss", line: "ss -Htan sport = :PORT", outside: false, code: 0 },
];

pub(crate) fn run(bench: &Bench) -> Result<()> {
    SAMPLES
        .note("every time is that of a whole command, from fork to exit, but \"bindable → gate opens\"")?;
    SAMPLES.note(
        "portguard looks through every process of the machine, the others through those of their namespace",
    )?;
    owners(bench)?;
    time_wait(bench)?;
    endpoints(bench)?;
    services(bench)
}

/// The sizes of a curve: all of them, fewer in a quick run, two in the smallest.
fn sizes(bench: &Bench, all: &[usize], quick: usize) -> Vec<usize> {
    let most = if bench.smoke {
        2
    } else if bench.quick {
        quick
    } else {
        all.len()
    };
    all[..most.min(all.len())].to_vec()
}

fn owners(bench: &Bench) -> Result<()> {
    let mut rounds = bench.rounds(10, Duration::from_secs(120), Duration::from_secs(8));
    while let Some(round) = rounds.next_round() {
        for size in sizes(bench, &[10, 100, 500, 1_000, 2_000], 3) {
            if rounds.late() {
                return Ok(());
            }
            SAMPLES.progress(&format!("round {round}: {size} processes"))?;
            let crowd = match crowd::start(&bench.cell, size) {
                Ok(crowd) => crowd,
                Err(error) => {
                    SAMPLES.absent(&format!("{size} processes"), &format!("{error:#}"))?;
                    continue;
                }
            };
            let port = bench.netns.free_port();
            let holder = Holder::start(&bench.cell, port, Size { rss: "1M", queue: 0 }, "exit")?;
            let sidecar =
                Tier::Ebpf.missing().is_none().then(|| served::watching(Tier::Ebpf, &[port], false));
            let sidecar = sidecar.transpose()?;
            let socket = sidecar.as_ref().and_then(|sidecar| sidecar.socket.to_str());
            for look in rounds.shuffled(&[0, 1, 2, 3, 4, 5]) {
                let look = &OWNERS[look];
                // A tier that is not here was named as absent already.
                if socket.is_some() || !look.name.contains("ebpf") {
                    let at = Site { size, port, socket: socket.unwrap_or_default() };
                    time(bench, "owner of a listener among N processes × 60 descriptors", &at, look)?;
                }
            }
            drop((sidecar, holder, crowd));
        }
    }
    Ok(())
}

fn time_wait(bench: &Bench) -> Result<()> {
    // Of this network namespace only.
    std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "400000")
        .context("allow many TIME_WAIT sockets")?;
    let mut rounds = bench.rounds(10, Duration::from_secs(300), Duration::from_secs(8));
    let mut last = None;
    for size in sizes(bench, &[0, 100, 1_000, 10_000, 100_000], 4) {
        SAMPLES.progress(&format!("{size} TIME_WAIT sockets"))?;
        let port = bench.netns.free_port();
        ensure!(last != Some(port), "the kernel chose a port twice");
        last = Some(port);
        leave_time_wait(port, size)?;
        // They last for a minute.
        for _ in 0..if bench.smoke { 1 } else { 5 } {
            for look in rounds.shuffled(&[0, 1, 2, 3]) {
                let at = Site { size, port, socket: "" };
                time(bench, "port with N TIME_WAIT sockets", &at, &LEFTOVERS[look])?;
            }
        }
    }
    Ok(())
}

/// Connections to `port` that the server's side closes first. A client port is used once for
/// each address, of which 127.0.0.0/8 has enough.
fn leave_time_wait(port: u16, count: usize) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listen")?;
    for number in 0..count {
        let address = Ipv4Addr::new(127, 0, 0, 1 + (number / 20_000) as u8);
        let mut client =
            TcpStream::connect((address, port)).with_context(|| format!("connection {number}"))?;
        drop(listener.accept().context("accept")?);
        // The server's FIN is here; this side's makes its socket a TIME_WAIT one.
        ensure!(client.read(&mut [0]).context("read")? == 0, "nobody sent anything");
    }
    Ok(())
}

fn endpoints(bench: &Bench) -> Result<()> {
    let tiers = tiers(SAMPLES)?;
    let mut rounds = bench.rounds(10, Duration::from_secs(40), Duration::from_secs(5));
    while let Some(round) = rounds.next_round() {
        for size in sizes(bench, &[1, 10, 100, 1_000], 3) {
            SAMPLES.progress(&format!("round {round}: {size} endpoints"))?;
            for tier in rounds.shuffled(&tiers) {
                if rounds.late() {
                    return Ok(());
                }
                endpoint(bench, tier, size)?;
            }
        }
    }
    Ok(())
}

/// One sidecar for many services, and all of them restarted at once.
fn services(bench: &Bench) -> Result<()> {
    let tiers = tiers(SAMPLES)?;
    let mut rounds = bench.rounds(5, Duration::from_secs(45), Duration::from_secs(5));
    while let Some(round) = rounds.next_round() {
        for size in sizes(bench, &[1, 10, 100, 1_000], 3) {
            SAMPLES.progress(&format!("round {round}: {size} services"))?;
            for tier in rounds.shuffled(&tiers) {
                if rounds.late() {
                    break;
                }
                if let Err(error) = served::grow(SAMPLES, tier, size) {
                    SAMPLES
                        .absent(&format!("{}, {size} services", served::name(tier)), &format!("{error:#}"))?;
                }
            }
        }
    }
    let mut rounds = bench.rounds(5, Duration::from_secs(60), Duration::from_secs(5));
    while let Some(round) = rounds.next_round() {
        for size in sizes(bench, &[1, 10, 50, 200], 2) {
            SAMPLES.progress(&format!("round {round}: {size} restarts at once"))?;
            for tier in rounds.shuffled(&tiers) {
                if rounds.late() {
                    return Ok(());
                }
                if let Err(error) = served::restart_all(bench, SAMPLES, tier, size) {
                    SAMPLES
                        .absent(&format!("{}, {size} restarts", served::name(tier)), &format!("{error:#}"))?;
                }
            }
        }
    }
    Ok(())
}

/// One gate for `size` endpoints, of which one is taken and let go.
fn endpoint(bench: &Bench, tier: Tier, size: usize) -> Result<()> {
    let port = bench.netns.free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("listen")?;
    let mut command = Command::new(binary());
    command
        .args(["gate", "--json", "--timeout", "60s", "--tier", tier.name(), "--port"])
        .arg(port.to_string());
    for number in 0..size {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + number as u32);
        command.arg("--address").arg(address.to_string());
    }
    let name = format!("portguard gate, {tier}");
    let began_ns = now_ns();
    let work = Work::of(Child::start(command, &name), began_ns);
    work.armed()?;
    let scenario = "one gate for N addresses of a port";
    SAMPLES.growth(scenario, size, &name, "fork → watching", (began_ns, now_ns()))?;
    let truth = Truth::watch(port, bench.processor)?;
    drop(listener);
    let done = work.end();
    let release = truth.release(Duration::from_secs(5)).context("the port was never free")?;
    match done.and_then(|done| done.opened_ns) {
        Some(opened_ns) if release.is_sharp_for(opened_ns) => {
            SAMPLES.growth(scenario, size, &name, "bindable → gate opens", (release.at_ns, opened_ns))
        }
        // Blind: the next round measures it again.
        Some(_) => Ok(()),
        None => SAMPLES.absent(&format!("{name}, {size} addresses"), "the gate never opened"),
    }
}

/// What a command is to look at.
struct Site<'a> {
    size: usize,
    port: u16,
    /// A sidecar's.
    socket: &'a str,
}

/// Runs one command to its end.
fn time(bench: &Bench, scenario: &str, at: &Site<'_>, look: &Look) -> Result<()> {
    let size = at.size;
    let word = |word: &str| match word {
        "SOCKET" => at.socket.to_owned(),
        word => word.replace("PORT", &at.port.to_string()).replace("TAG", TAG),
    };
    let line: Vec<String> = look.line.split_whitespace().map(word).collect();
    let mut command = if line[0] == "portguard" { Command::new(binary()) } else { Command::new(&line[0]) };
    command.args(&line[1..]);
    if !look.outside && !is_installed(&line[0]) {
        return SAMPLES.absent(look.name, "it is not installed here");
    }
    let began_ns = now_ns();
    let mut child =
        if look.outside { Child::start(command, look.name) } else { bench.cell.start(command, look.name) };
    let ended = child.ends_within(LIMIT);
    let ended_ns = now_ns();
    let code = ended.then(|| child.wait(DEADLINE).code()).flatten();
    if code != Some(look.code) {
        return SAMPLES.absent(
            &format!("{}, N = {size}", look.name),
            &format!("it ended with {code:?}\n{}", child.said()),
        );
    }
    SAMPLES.growth(scenario, size, look.name, "time", (began_ns, ended_ns))
}
