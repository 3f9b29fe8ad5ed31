//! `portguard status`

use std::time::Duration;

use clap::Args;

use super::exit::Exit;
use super::options::{self, OutputOptions, RuleOptions, ServiceOptions, TierOptions, parse_duration};
use super::output::Output;
use super::units;
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
    /// The drain budget that `free` would give [default: as `free` has it]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    drain: Option<Duration>,
    #[command(flatten)]
    rules: RuleOptions,
}

impl Status {
    pub(super) async fn run(mut self, verbose: bool) -> anyhow::Result<Exit> {
        self.rules = self.rules.with_preset(self.service.preset.preset());
        let endpoints = self.service.endpoints()?;
        let mut session = self.tier.open(&endpoints).await?;
        let drain = self.drain.unwrap_or(options::DRAIN);
        let mut plan = options::plan_to_look(endpoints, &self.rules, drain, &session)?;
        units::ask(&mut plan).await;
        if self.drain.is_none() {
            plan.budgets.drain = units::longest_stop_budget(&plan).unwrap_or(drain);
        }
        let context = Context { service: self.service.name(), command: "status", dry_run: false, drain };
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
