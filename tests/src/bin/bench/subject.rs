//! Who is measured: portguard in each tier, and every peer that is there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use guard_tests::child::Child;
use guard_tests::events::{Event, Verdict};
use guard_tests::portguard::binary;
use guard_tests::spin::now_ns;
use guard_tests::{DEADLINE, Sidecar, Tier};

use crate::cell::Cell;
use crate::holder::TAG;
use crate::peers::{PEERS, Peer, Role};
use crate::sample::Samples;

/// How long anybody gets to finish.
const LIMIT: Duration = Duration::from_secs(30);

/// The patience that a portguard is given which is compared with an algorithm that kills after 600 ms.
pub(crate) const DRAIN: &str = "600ms";

/// One of those that are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    /// `portguard gate`
    Gate(Tier),
    /// `portguard gate` through a sidecar in this tier.
    Client(Tier),
    /// `portguard free`; `None` is `--tier auto`.
    Free(Option<Tier>),
    /// `portguard free --port-only`: does not wait until the ended process is gone.
    FreePortOnly,
    /// `portguard free` through a sidecar in this tier.
    FreeClient(Tier),
    /// `portguard restart`
    Restart(Option<Tier>),
    /// `portguard restart` through a sidecar in this tier, which starts the successor.
    RestartClient(Tier),
    /// Something else.
    Peer(&'static Peer, &'a Path),
}

/// A subject at work.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) child: Child,
    began_ns: u64,
    /// The sidecar that it goes through.
    _sidecar: Option<Sidecar>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Done {
    /// When it was started.
    pub(crate) began_ns: u64,
    /// When its end was seen.
    pub(crate) ended_ns: u64,
    /// When its gate opened, by its own event: portguard only.
    pub(crate) opened_ns: Option<u64>,
    /// It exited with 0.
    pub(crate) success: bool,
}

/// The peers of this role that are installed; says who is missing.
pub(crate) fn peers(role: Role, installed: &Path, samples: Samples) -> Result<Vec<(&'static Peer, PathBuf)>> {
    let mut found = Vec::new();
    for peer in PEERS.iter().filter(|peer| peer.role == role) {
        match peer.found(installed) {
            Some(program) => found.push((peer, program)),
            None => samples.absent(peer.name, &format!("`{}` is not installed here", peer.program()))?,
        }
    }
    Ok(found)
}

/// The tiers that work here; says which do not.
pub(crate) fn tiers(samples: Samples) -> Result<Vec<Tier>> {
    let mut tiers = Vec::new();
    for tier in Tier::ALL {
        match tier.missing() {
            None => tiers.push(tier),
            Some(why) => samples.absent(&format!("portguard, {tier}"), why)?,
        }
    }
    Ok(tiers)
}

fn tier_name(tier: Option<Tier>) -> &'static str {
    tier.map_or("auto", Tier::name)
}

impl Subject<'_> {
    /// It waits for somebody else to end the holder.
    pub(crate) fn waits(self) -> bool {
        match self {
            Self::Gate(_) | Self::Client(_) => true,
            Self::Free(_)
            | Self::FreePortOnly
            | Self::FreeClient(_)
            | Self::Restart(_)
            | Self::RestartClient(_) => false,
            Self::Peer(peer, _) => peer.role == Role::Waits,
        }
    }

    /// Its name in the tables.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Gate(tier) => format!("portguard gate, {tier}"),
            Self::Client(tier) => format!("portguard gate, client of the sidecar, {tier}"),
            Self::RestartClient(tier) => format!("portguard restart, client of the sidecar, {tier}"),
            Self::FreeClient(tier) => format!("portguard free, client of the sidecar, {tier}"),
            Self::Free(tier) => format!("portguard free, {}", tier_name(tier)),
            Self::FreePortOnly => "portguard free --port-only, auto".to_owned(),
            Self::Restart(tier) => format!("portguard restart, {}", tier_name(tier)),
            Self::Peer(peer, _) => peer.name.to_owned(),
        }
    }

    /// Starts it for `port`. `then` is what a restart starts.
    pub(crate) fn start(self, cell: &Cell, port: u16, then: &[String]) -> Work {
        let ending = ["--drain", DRAIN, "--match", TAG];
        let sidecar = match self {
            Self::Client(tier) | Self::FreeClient(tier) => Some(sidecar(tier, port, &[])),
            Self::RestartClient(tier) => Some(sidecar(tier, port, then)),
            _ => None,
        };
        let socket = sidecar.as_ref().map(|sidecar| sidecar.socket.as_path()).unwrap_or(Path::new(""));
        let (mut command, outside) = match self {
            Self::Client(_) => (client("gate", socket, &["--timeout", "30s"], Some(port)), true),
            Self::FreeClient(_) => (client("free", socket, &[SERVICE], None), true),
            Self::RestartClient(_) => (client("restart", socket, &[SERVICE], None), true),
            Self::Gate(tier) => (portguard("gate", Some(tier), port, &["--timeout", "30s"]), true),
            Self::Free(tier) => (portguard("free", tier, port, &ending), true),
            Self::Restart(tier) => (portguard("restart", tier, port, &ending), true),
            Self::FreePortOnly => {
                let mut command = portguard("free", None, port, &ending);
                command.arg("--port-only");
                (command, true)
            }
            Self::Peer(peer, program) => (peer.command(program, port), false),
        };
        if !then.is_empty() && sidecar.is_none() {
            command.arg("--").args(then);
        }
        let began_ns = now_ns();
        // portguard needs to see every process there is, and must be trusted with them anyway.
        let child =
            if outside { Child::start(command, &self.name()) } else { cell.start(command, &self.name()) };
        Work { child, began_ns, _sidecar: sidecar }
    }
}

/// The name of the service in the sidecar's configuration.
const SERVICE: &str = "measured";

/// A sidecar that guards `port`, with everything loaded and attached. `then` starts the service.
fn sidecar(tier: Tier, port: u16, then: &[String]) -> Sidecar {
    let restart =
        if then.is_empty() { String::new() } else { format!("restart = {{ command = {then:?} }}\n") };
    Sidecar::in_tier(
        tier,
        "",
        &format!(
            "[service.{SERVICE}]\nendpoints = [\"127.0.0.1:{port}\"]\nrecognise = {{ match = [{TAG:?}] }}\n\
             budget = {{ drain = {DRAIN:?} }}\n{restart}"
        ),
    )
}

fn client(subcommand: &str, socket: &Path, more: &[&str], port: Option<u16>) -> Command {
    let mut command = Command::new(binary());
    command.args([subcommand, "--json", "--socket"]).arg(socket).args(more);
    if let Some(port) = port {
        command.args(["--address", "127.0.0.1", "--port", &port.to_string()]);
    }
    command
}

fn portguard(subcommand: &str, tier: Option<Tier>, port: u16, more: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args([subcommand, "--json", "--address", "127.0.0.1", "--tier", tier_name(tier)]);
    command.arg("--port").arg(port.to_string()).args(more);
    command
}

impl Work {
    /// Somebody who was started by hand.
    pub(crate) fn of(child: Child, began_ns: u64) -> Self {
        Self { child, began_ns, _sidecar: None }
    }

    /// When it was started.
    pub(crate) fn began_ns(&self) -> u64 {
        self.began_ns
    }

    /// Waits until it has seen that the port is taken.
    pub(crate) fn armed(&self) -> Result<()> {
        let busy = |line: &str| {
            let seen = Event::parse(line).map_or(line == "busy", |event| {
                event.kind() == "snapshot" && event.verdict() != Verdict::Free
            });
            seen.then_some(())
        };
        self.child
            .stdout
            .wait_for(DEADLINE, busy)
            .with_context(|| format!("it never saw that the port is taken\n{}", self.child.said()))
    }

    /// Waits for its end; `None` when it does not end.
    pub(crate) fn end(mut self) -> Option<Done> {
        let ended = self.child.ends_within(LIMIT);
        let ended_ns = now_ns();
        if !ended {
            return None;
        }
        let success = self.child.wait(LIMIT).success();
        self.child.stdout.ended_within(Duration::from_secs(2));
        // A restart tells it on stderr.
        let said = [self.child.stdout.so_far(), self.child.stderr.so_far()].concat();
        let opened_ns = said.iter().find_map(|line| opened(line));
        Some(Done { began_ns: self.began_ns, ended_ns, opened_ns, success })
    }
}

/// The moment that a `gate_opened` line tells.
pub(crate) fn opened(line: &str) -> Option<u64> {
    Event::parse(line).filter(|event| event.kind() == "gate_opened").map(|event| event.mono_ns())
}
