//! `portguard free`

use std::ops::ControlFlow;

use clap::Args;
use guard_core::gate::{Decision, Gate};
use guard_core::model::{BindSpec, Verdict};

use super::exit::{Exit, UsageError};
use super::options::{self, EndingOptions, OutputOptions, RuleOptions, ServiceOptions, TierOptions};
use super::output::Output;
use super::through::{self, Given, SidecarOptions};
use super::units;
use crate::report::{Context, overall};
use crate::runtime::Session;

/// Ends the stale holders and waits until the port is bindable.
///
/// `free --port N` knows them by the rules that are given with it. `free NAME` has the running sidecar do it
/// for its service NAME, by the rules of its configuration.
#[derive(Debug, Args)]
#[command(mut_arg("port", |port| port.required_unless_present_any(["preset", "named"])))]
pub(super) struct Free {
    /// A service of the running sidecar, in place of ports, rules and all other options
    #[arg(value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    named: Option<String>,
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
    #[command(flatten)]
    sidecar: SidecarOptions,
}

impl Free {
    /// What a sidecar is asked for too.
    const ASKED: &[&str] = &["named", "no_sidecar", "json"];

    pub(super) async fn run(mut self, verbose: bool, given: &Given) -> anyhow::Result<Exit> {
        if let Some(name) = &self.named {
            if !given.only(Self::ASKED) {
                let why = format!(
                    "{name} is freed as the sidecar's configuration says: only --json, --socket and -v go with it"
                );
                return Err(UsageError(why).into());
            }
            let output = |service: &str| {
                let (service, drain) = (service.to_owned(), self.ending.drain());
                let context = Context { service, command: "free", dry_run: false, drain };
                Output::new(context, self.output.json, verbose, Box::new(std::io::stdout()))
            };
            return through::free(&self.sidecar, name, verbose, output).await;
        }
        self.sidecar.decline("it is asked to free what is named: portguard free NAME");
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
        let freed = free_ports(endpoints, &self.rules, &self.ending, &mut session, &mut output).await?;
        let gate = match freed {
            ControlFlow::Break(exit) => return Ok(exit),
            ControlFlow::Continue(gate) => gate,
        };
        let Some(outcome) = gate.outcome() else { return Ok(Exit::Unknown) };
        output.ended(&gate, &session, outcome);
        Ok(Exit::of_outcome(outcome))
    }
}

/// Ends the stale holders of these ports, or with `--dry-run` says whom that would reach.
///
/// Nobody is ended whom a service manager would start again at once. Breaks where the report has said all there is to
/// say; else the run is over, and its end is the caller's to tell.
pub(super) async fn free_ports(
    endpoints: Vec<BindSpec>,
    rules: &RuleOptions,
    ending: &EndingOptions,
    session: &mut Session,
    output: &mut Output,
) -> anyhow::Result<ControlFlow<Exit, Gate>> {
    let plan = options::plan_to_rehearse(endpoints.clone(), rules, ending, session)?;
    // One request has one time, however often its port is looked at.
    let asker = plan.asker.clone();
    if let Some(foreseen) = units::foresee(session, plan, output).await?
        && !foreseen.supervised.is_empty()
    {
        output.supervised(&foreseen.gate, session, &foreseen.supervised);
        return Ok(ControlFlow::Break(Exit::Refused));
    }
    let plan = if ending.dry_run { options::plan_to_rehearse } else { options::plan_to_free };
    let mut plan = plan(endpoints, rules, ending, session)?;
    plan.asker = asker;
    units::ask(&mut plan).await;
    ending.respect(units::longest_stop_budget(&plan), &mut plan);
    let gate = session.run(plan, output).await?;
    if !ending.dry_run {
        return Ok(ControlFlow::Continue(gate));
    }
    let exit = rehearsed(&gate);
    output.looked(&gate, session, exit);
    Ok(ControlFlow::Break(exit))
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
