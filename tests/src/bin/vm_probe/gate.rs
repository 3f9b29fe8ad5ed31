//! A gate in whatever tier there is: the same verdict everywhere, and no silence about what is missing.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use guard_tests::portguard::binary;
use serde_json::Value;

use crate::{answer, answer_by};

/// Prints whether a gate opened that had to wait, and what portguard says when it must be `ebpf`.
///
/// # Errors
///
/// When portguard cannot be run.
pub(crate) fn open() -> Result<()> {
    answer_by("a gate opens", &opened()?);
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let output = gate(free).args(["--require-tier", "ebpf"]).output().context("run portguard")?;
    let why = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().map_or_else(|| output.status.to_string(), |code| code.to_string());
    // A refusal without a reason would be a silent one.
    let silent = if !output.status.success() && why.trim().is_empty() { ", silently" } else { "" };
    // Under lockdown much else is missing, which nobody can mend there.
    let locked = if why.contains("locked down") { ", lockdown" } else { "" };
    answer("exit code of --require-tier ebpf", &format!("{code}{silent}{locked}"), why.trim());
    Ok(())
}

fn gate(port: u16) -> Command {
    let mut command = Command::new(binary());
    command.args([
        "gate",
        "--json",
        "--address",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--timeout",
        "30s",
    ]);
    command
}

/// Whether it opens when the listener that it waits for is closed, and not before.
fn opened() -> Result<std::result::Result<(), String>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut command = gate(listener.local_addr()?.port());
    let mut gate = command.stdout(Stdio::piped()).spawn().context("run portguard")?;
    let output = gate.stdout.take().context("a pipe from portguard")?;
    let mut held = Some(listener);
    let mut outcome = Err("it never opened".to_owned());
    for line in BufReader::new(output).lines() {
        let line = line.context("read what portguard prints")?;
        let event: Value = serde_json::from_str(&line).with_context(|| format!("an event: {line}"))?;
        match event["type"].as_str() {
            // It has looked, and waits now.
            Some("snapshot") => held = None,
            Some("gate_opened") if held.is_some() => outcome = Err(format!("it was open before: {line}")),
            Some("gate_opened") => outcome = Ok(()),
            _ => {}
        }
    }
    gate.wait().context("wait for portguard")?;
    Ok(outcome)
}
