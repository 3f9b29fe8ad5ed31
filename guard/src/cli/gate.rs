//! `portguard gate`

use std::time::Duration;

use clap::Args;

use super::exit::Exit;
use super::options::{self, OutputOptions, ServiceOptions, TierOptions, parse_duration};
use super::output::Output;
use super::through::{self, Gated, Given, SidecarOptions};
use crate::report::Context;

/// Waits until the port is bindable; never signals anyone.
#[derive(Debug, Args)]
pub(super) struct Gate {
    #[command(flatten)]
    pub(super) service: ServiceOptions,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    tier: TierOptions,
    /// Give up after this long; keep it below the unit's TimeoutStartSec
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    sidecar: SidecarOptions,
}

impl Gate {
    /// What a sidecar is asked for too.
    const ASKED: &[&str] =
        &["port", "preset", "profile", "address", "v6only", "strict_bind", "json", "timeout"];

    pub(super) async fn run(self, verbose: bool, given: &Given) -> anyhow::Result<Exit> {
        let endpoints = self.service.endpoints()?;
        let context =
            Context { service: self.service.name(), command: "gate", dry_run: false, drain: Duration::ZERO };
        let mut output = Output::new(context, self.output.json, verbose, Box::new(std::io::stdout()));
        let mut left = self.timeout;
        if let Some(served) = self.sidecar.serving(&endpoints, given.only(Self::ASKED), verbose).await {
            match through::gate(served, &endpoints, self.timeout, &mut output).await {
                Gated::Ended(exit) => return Ok(exit),
                Gated::Left(time) => left = time,
            }
        }
        let mut session = self.tier.open(&endpoints).await?;
        let plan = options::plan_to_wait(endpoints, left, &session);
        let gate = session.run(plan, &mut output).await?;
        let Some(outcome) = gate.outcome() else { return Ok(Exit::Unknown) };
        output.ended(&gate, &session, outcome);
        Ok(Exit::of_outcome(outcome))
    }
}
