//! `portguard demo`: a guarded restart of a stubborn stand-in gateway.

mod gateway;
mod show;

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use guard_core::gate::{Budgets, Goal, Outcome};
use guard_core::model::{BindOutcome, BindSpec, Port};
use guard_core::policy::Rules;

use super::exit::Exit;
use super::options::{self, OutputOptions, TierOptions, literal, parse_duration};
use super::output::Output;
use crate::report::Context;
use crate::runtime::{now, probe};

pub(super) use gateway::{Gateway, NAME as GATEWAY};

/// The port that the stand-in prefers: the one of the first gateway guarded.
const PREFERRED_PORT: u16 = 18789;

/// Starts a stubborn gateway (it ignores SIGTERM, shares its listener with a
/// forked child and keeps connections open), restarts it under guard and
/// prints what happened when.
#[derive(Debug, Args)]
pub(super) struct Demo {
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    tier: TierOptions,
    /// From SIGTERM to SIGKILL
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_duration)]
    drain: Duration,
}

impl Demo {
    pub(super) async fn run(self, verbose: bool) -> anyhow::Result<Exit> {
        let old = StandIn::start(free_port()?, true)?;
        let spec = BindSpec::reusable(gateway::ADDRESS.into(), old.port);
        let mut session = self.tier.open(&[spec]).await?;
        session.settle().await;

        let context = Context {
            service: format!("port-{}", old.port),
            command: "demo",
            dry_run: false,
            drain: self.drain,
        };
        if !self.output.json {
            show::opening(&old, &session);
        }
        let rules = Rules { patterns: vec![literal(GATEWAY)], ..Rules::default() };
        let budgets = Budgets {
            total: Some(self.drain.saturating_add(Duration::from_secs(20))),
            drain: self.drain,
            confirm: Duration::from_secs(5),
        };
        let plan = options::plan(vec![spec], Goal::Free, rules, budgets, &session)?;

        let mut quiet = Output::new(context.clone(), false, verbose, Box::new(std::io::sink()));
        let mut json = Output::new(context.clone(), true, verbose, Box::new(std::io::stdout()));
        let sink = if self.output.json { &mut json } else { &mut quiet };
        let gate = session.run(plan, sink).await?;
        let Some(outcome) = gate.outcome() else { bail!("the run ended without an outcome") };
        if !matches!(outcome, Outcome::Opened(_)) {
            let mut output = Output::new(context, self.output.json, verbose, Box::new(std::io::stdout()));
            output.ended(&gate, &session, outcome);
            return Ok(Exit::of_outcome(outcome));
        }

        let began = now();
        let new = StandIn::start(old.port, false)?;
        let listening = now();
        if new.port != old.port {
            bail!("the successor could not bind port {} at its first attempt", old.port);
        }
        if self.output.json {
            json.step(began, "command_started", Some(new.pid()), "the successor starts");
            json.step(listening, "listening", Some(new.pid()), "the successor listens, at its first attempt");
            json.ended(&gate, &session, outcome);
        } else {
            show::timeline(&gate, &context, &session, &new, began, listening);
            show::fixed_sleeps(&gate, began);
            show::closing(&gate, &session);
        }
        Ok(Exit::Done)
    }
}

/// The preferred port, or 0 (the kernel chooses) when it is taken.
fn free_port() -> anyhow::Result<Port> {
    let preferred = Port::new(PREFERRED_PORT).context("the preferred port is 0")?;
    let spec = BindSpec::reusable(gateway::ADDRESS.into(), preferred);
    if probe(&[spec]) == [BindOutcome::Bindable] {
        return Ok(preferred);
    }
    let chosen = std::net::TcpListener::bind((gateway::ADDRESS, 0))
        .and_then(|listener| listener.local_addr())
        .context("cannot find a free port on 127.0.0.1")?;
    Port::new(chosen.port()).context("the kernel chose port 0")
}

/// A running stand-in gateway. It ends when its standard input does.
pub(super) struct StandIn {
    child: Child,
    port: Port,
    sharer: Option<u32>,
    _lifeline: Option<ChildStdin>,
}

impl StandIn {
    fn start(port: Port, stubborn: bool) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot find portguard's own executable")?;
        let mut command = Command::new(own);
        command.arg(GATEWAY).args(["--port", &port.to_string()]);
        if stubborn {
            command.arg("--stubborn");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the stand-in gateway")?;
        let lifeline = child.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).context("cannot read from the stand-in gateway")?;
        }
        let mut words = line.split_whitespace();
        let (Some("listening"), Some(port)) = (words.next(), words.next()) else {
            bail!("the stand-in gateway did not start on port {port}: {}", line.trim());
        };
        let port = port.parse().ok().and_then(Port::new).context("the stand-in gateway named no port")?;
        let sharer = words.next().and_then(|pid| pid.parse().ok());
        Ok(Self { child, port, sharer, _lifeline: lifeline })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Its end of the lifeline goes first, then it is waited for.
        self._lifeline = None;
        let _already_waited = self.child.wait();
    }
}
