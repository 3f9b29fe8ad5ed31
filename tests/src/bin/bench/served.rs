//! A sidecar that guards many services.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guard_tests::sidecar::event;
use guard_tests::spin::now_ns;
use guard_tests::{Sidecar, Tier, wait_until};
use serde_json::Value;

use crate::Bench;
use crate::holder::{Holder, Size, TAG};
use crate::process::cpu_ns;
use crate::sample::{Samples, Unit};

const PATIENCE: Duration = Duration::from_secs(120);

/// Processor time within a tenth of a second that only a sidecar needs that is still starting.
const BUSY_NS: u64 = 20_000_000;

/// What the rows of a sidecar are called.
pub(crate) fn name(tier: Tier) -> String {
    format!("portguard run, {tier}")
}

/// A sidecar that has looked at `ports`, whose services are started by commands where `start` is set.
pub(crate) fn watching(tier: Tier, ports: &[u16], start: bool) -> Result<Sidecar> {
    let services: String = ports.iter().map(|&port| service(port, start)).collect();
    let sidecar = Sidecar::in_tier(tier, "", &services);
    let looked = || {
        let document = sidecar.get("/v1/services").json();
        let all = |services: &Vec<Value>| services.iter().all(|service| service["looked_mono_ns"].is_u64());
        document["services"].as_array().is_some_and(all)
    };
    ensure!(wait_until(PATIENCE, looked), "the first look does not end\n{}", sidecar.child.said());
    // Its start is over when it hardly computes any more; in the lowest tier it always does a little.
    let works = || {
        let before = cpu_ns(sidecar.child.id.pid);
        std::thread::sleep(Duration::from_millis(100));
        cpu_ns(sidecar.child.id.pid).saturating_sub(before) > BUSY_NS
    };
    ensure!(wait_until(PATIENCE, || !works()), "its start does not end\n{}", sidecar.child.said());
    Ok(sidecar)
}

fn service(port: u16, start: bool) -> String {
    let restart = if start {
        let successor = Holder::plan(port, Size { rss: "0", queue: 0 }, "exit").command_line();
        format!("restart = {{ command = {successor:?} }}\n")
    } else {
        String::new()
    };
    format!(
        "[service.s{port}]\nendpoints = [\"127.0.0.1:{port}\"]\nrecognise = {{ match = [{TAG:?}] }}\n{restart}"
    )
}

/// So many ports, below those that the kernel chooses: nobody else uses any of them in the benchmark's own namespace.
pub(crate) fn ports(count: usize) -> Vec<u16> {
    (10_000..).take(count).collect()
}

/// From the start of a sidecar until it has looked at all of its services, and the memory that it has then.
pub(crate) fn grow(samples: Samples, tier: Tier, size: usize) -> Result<()> {
    const SCENARIO: &str = "one sidecar for N services";
    let ports = ports(size);
    let began_ns = now_ns();
    let sidecar = watching(tier, &ports, false)?;
    samples.growth(SCENARIO, size, &name(tier), "fork → all looked at", (began_ns, now_ns()))?;
    let (resident, _) = crate::process::memory(sidecar.child.id.pid).context("read its memory")?;
    samples.growing(SCENARIO, size, &name(tier), "resident memory", Unit::Bytes, resident as f64)
}

/// `size` services are restarted at once: from the first request until the last one's successor listens.
pub(crate) fn restart_all(bench: &Bench, samples: Samples, tier: Tier, size: usize) -> Result<()> {
    const SCENARIO: &str = "N services restarted at once";
    // Of their own: what another sidecar started may live for a moment longer.
    let ports: Vec<u16> = (0..size).map(|_| bench.netns.free_port()).collect();
    let holders: Vec<Holder> = ports
        .iter()
        .map(|&port| Holder::start(&bench.cell, port, Size { rss: "1M", queue: 0 }, "exit"))
        .collect::<Result<_>>()?;
    let sidecar = watching(tier, &ports, true)?;
    let follower = sidecar.follow(&[]);
    let began_ns = now_ns();
    for port in &ports {
        let answer = post(&sidecar, &format!("/v1/services/s{port}/restart"))?;
        ensure!(answer.starts_with("HTTP/1.1 202"), "a restart was refused: {answer}");
    }
    let asked_ns = now_ns();
    let mut ended_ns = 0;
    for port in &ports {
        let service = format!("s{port}");
        let finished = event(&follower, "a run's end", |event| {
            event["type"] == "run_finished" && event["service"] == service.as_str()
        });
        ensure!(finished["exit_code"] == 0, "a restart failed: {finished}");
        ended_ns = ended_ns.max(finished["mono_ns"].as_u64().context("no moment")?);
    }
    samples.growth(SCENARIO, size, &name(tier), "first request → all listen", (began_ns, ended_ns))?;
    samples.growth(SCENARIO, size, &name(tier), "all requests answered", (began_ns, asked_ns))?;
    drop((sidecar, holders));
    Ok(())
}

/// A request without a program of its own.
fn post(sidecar: &Sidecar, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(&sidecar.socket).context("connect to the sidecar")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: portguard\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the sidecar's answer")?;
    let _closed_already = stream.shutdown(Shutdown::Both);
    Ok(answer)
}
