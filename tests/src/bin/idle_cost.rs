//! How often an idle sidecar wakes up and how much memory it takes, with 1 and with 1,000 watched
//! ports, in each tier. Prints numbers and judges nothing. Run as root:
//! `cargo run --release -p guard-tests --bin idle_cost [SECONDS]`

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use guard_tests::netns::Netns;
use guard_tests::sidecar::service;
use guard_tests::{Sidecar, Tier, World};

const PORTS: [u16; 2] = [1, 1000];

/// The first port; nobody uses any in a new namespace.
const FIRST: u16 = 20_000;

fn main() -> Result<()> {
    let seconds: u64 = std::env::args().nth(1).map_or(Ok(10), |text| text.parse()).context("SECONDS")?;
    println!("{:8} {:>6} {:>12} {:>10} {:>10}", "tier", "ports", "wake-ups/s", "RSS KiB", "peak KiB");
    for tier in Tier::ALL {
        if let Some(reason) = tier.missing() {
            println!("{tier:8} not here: {reason}");
            continue;
        }
        for count in PORTS {
            measure(tier, count, seconds)?;
        }
    }
    Ok(())
}

fn measure(tier: Tier, count: u16, seconds: u64) -> Result<()> {
    let netns = Netns::enter().context("a network namespace")?;
    let world = World { netns, tier, test: "idle_cost".to_owned() };
    let services: String =
        (FIRST..FIRST + count).map(|port| service(&format!("s{port}"), port, None, "")).collect();
    let sidecar = Sidecar::start(&world, "", &services);
    let looked = || {
        sidecar.get("/v1/services").json()["services"]
            .as_array()
            .is_some_and(|services| services.iter().all(|service| service["looked_mono_ns"].is_u64()))
    };
    anyhow::ensure!(guard_tests::wait_until(Duration::from_secs(60), looked), "the first look does not end");
    // Connections that are kept alive and the settling after the first look are over by then.
    std::thread::sleep(Duration::from_secs(1));
    let pid = sidecar.child.id.pid;
    let before = switches(pid)?;
    std::thread::sleep(Duration::from_secs(seconds));
    let wakeups = switches(pid)? - before;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| field(&status, name).unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds are small")]
    let rate = wakeups as f64 / seconds as f64;
    println!("{tier:8} {count:>6} {rate:>12.2} {:>10} {:>10}", kib("VmRSS:"), kib("VmHWM:"));
    Ok(())
}

/// Voluntary context switches of all threads: each is a wake-up that was slept for.
fn switches(pid: i32) -> Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        total += field(&status, "voluntary_ctxt_switches:").context("no count of context switches")?;
    }
    Ok(total)
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}
