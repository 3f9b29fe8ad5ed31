//! `portguard status`

use std::time::Duration;

use clap::Args;

use super::exit::Exit;
use super::options::{self, OutputOptions, RuleOptions, ServiceOptions, TierOptions, parse_duration};
use super::output::Output;
use super::through::{self, Given, SidecarOptions};
use super::units;
use crate::report::Context;

/// Says whether the port is bindable, who holds it, and who would be ended and why.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    pub(super) service: ServiceOptions,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    tier: TierOptions,
    /// The drain budget that `free` would give [default: as `free` has it]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    drain: Option<Duration>,
    #[command(flatten)]
    rules: RuleOptions,
    #[command(flatten)]
    sidecar: SidecarOptions,
}

impl Status {
    /// What a sidecar is asked for too.
    const ASKED: &[&str] = &["port", "address", "v6only", "strict_bind", "json"];

    pub(super) async fn run(mut self, verbose: bool, given: &Given) -> anyhow::Result<Exit> {
        self.rules = self.rules.with_preset(self.service.preset.preset());
        let endpoints = self.service.endpoints()?;
        let drain = self.drain.unwrap_or(options::DRAIN);
        let context = Context { service: self.service.name(), command: "status", dry_run: false, drain };
        let mut output = Output::new(context, self.output.json, verbose, Box::new(std::io::stdout()));
        if let Some(served) = self.sidecar.serving(&endpoints, given.only(Self::ASKED), verbose).await
            && let Some(exit) = through::status(&served, &endpoints, verbose, &mut output).await
        {
            return Ok(exit);
        }
        let mut session = self.tier.open(&endpoints).await?;
        session.only_show();
        let mut plan = options::plan_to_look(endpoints, &self.rules, drain, &session)?;
        units::ask(&mut plan).await;
        if self.drain.is_none() {
            plan.budgets.drain = units::longest_stop_budget(&plan).unwrap_or(drain);
        }
        if verbose
            && let Output::Human(human) = &mut output
            && let Some(flags) = self.service.preset_in_flags()
        {
            human.line(&flags);
        }
        let gate = session.run(plan, &mut output).await?;
        let exit = Exit::of_verdicts(&gate.verdicts());
        output.looked(&gate, &session, exit);
        Ok(exit)
    }
}
