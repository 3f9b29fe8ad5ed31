//! `portguard free`

use clap::Args;
use guard_core::gate::{Decision, Gate};
use guard_core::model::Verdict;

use super::exit::Exit;
use super::options::{self, EndingOptions, OutputOptions, RuleOptions, ServiceOptions, TierOptions};
use super::output::Output;
use super::units;
use crate::report::{Context, overall};

/// Ends the stale holders and waits until the port is bindable.
#[derive(Debug, Args)]
pub(super) struct Free {
    #[command(flatten)]
    pub(super) service: ServiceOptions,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    tier: TierOptions,
    #[command(flatten)]
    ending: EndingOptions,
    #[command(flatten)]
    rules: RuleOptions,
}

impl Free {
    pub(super) async fn run(mut self, verbose: bool) -> anyhow::Result<Exit> {
        self.rules = self.rules.with_preset(self.service.preset.preset());
        let endpoints = self.service.endpoints()?;
        let mut session = self.tier.open(&endpoints).await?;
        let context = Context {
            service: self.service.name(),
            command: "free",
            dry_run: self.ending.dry_run,
            drain: self.ending.drain(),
        };
        let mut output = Output::new(context, self.output.json, verbose, Box::new(std::io::stdout()));
        // One request has one time, however often its port is looked at.
        let mut requested = None;
        let plan = options::plan_to_rehearse(endpoints.clone(), &self.rules, &self.ending, &session)?;
        let asker = plan.asker.clone();
        if let Some(foreseen) = units::foresee(&mut session, plan, &mut output).await? {
            requested = Some(asker);
            if !foreseen.supervised.is_empty() {
                output.supervised(&foreseen.gate, &session, &foreseen.supervised);
                return Ok(Exit::Refused);
            }
        }
        if self.ending.dry_run {
            let mut plan = options::plan_to_rehearse(endpoints, &self.rules, &self.ending, &session)?;
            units::ask(&mut plan).await;
            self.ending.respect(units::longest_stop_budget(&plan), &mut plan);
            let gate = session.run(plan, &mut output).await?;
            let exit = rehearsed(&gate);
            output.looked(&gate, &session, exit);
            return Ok(exit);
        }
        let mut plan = options::plan_to_free(endpoints, &self.rules, &self.ending, &session)?;
        if let Some(asker) = requested {
            plan.asker = asker;
        }
        units::ask(&mut plan).await;
        self.ending.respect(units::longest_stop_budget(&plan), &mut plan);
        let gate = session.run(plan, &mut output).await?;
        let Some(outcome) = gate.outcome() else { return Ok(Exit::Unknown) };
        output.ended(&gate, &session, outcome);
        Ok(Exit::of_outcome(outcome))
    }
}

/// How the run that was only rehearsed would begin: refused, unknown, or under
/// way. Whether it would end in time cannot be known.
pub(super) fn rehearsed(gate: &Gate) -> Exit {
    match (overall(&gate.verdicts()), gate.decision()) {
        (Verdict::Free, _) => Exit::Done,
        (_, Some(Decision::End(_) | Decision::Evict(_))) => Exit::Done,
        (_, Some(Decision::Refuse(_))) => Exit::Refused,
        (_, Some(Decision::NotPermitted(_))) => Exit::NotPermitted,
        (_, Some(Decision::CannotTell(_))) | (Verdict::Unknown { .. }, _) | (_, None) => Exit::Unknown,
        (Verdict::Busy { .. }, Some(Decision::Wait)) => Exit::StillBusy,
    }
}
