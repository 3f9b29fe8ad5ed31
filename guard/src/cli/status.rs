//! `portguard status`

use std::time::Duration;

use clap::Args;

use super::exit::Exit;
use super::options::{self, OutputOptions, RuleOptions, ServiceOptions, TierOptions, parse_duration};
use super::output::Output;
use crate::report::Context;

/// Looks once and reports.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    pub(super) service: ServiceOptions,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    tier: TierOptions,
    /// The drain budget that `free` would give
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    drain: Duration,
    #[command(flatten)]
    rules: RuleOptions,
}

impl Status {
    pub(super) async fn run(mut self, verbose: bool) -> anyhow::Result<Exit> {
        self.rules = self.rules.with_preset(self.service.preset.preset());
        let endpoints = self.service.endpoints()?;
        let mut session = self.tier.open(&endpoints).await?;
        let mut plan = options::plan_to_look(endpoints, &self.rules, self.drain, &session)?;
        super::units::ask(&mut plan).await;
        let context =
            Context { service: self.service.name(), command: "status", dry_run: false, drain: self.drain };
        let mut output = Output::new(context, self.output.json, verbose, Box::new(std::io::stdout()));
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
