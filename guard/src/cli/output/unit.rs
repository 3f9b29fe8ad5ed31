//! How the restart of a unit is told.

use guard_core::gate::Gate;
use guard_core::model::{Instant, Unit, Verdict};
use guard_core::restart::{End, Step, UnitDetails};

use super::{Exit, Output};
use crate::report::{journal, outcome_code, overall, unit_words};
use crate::runtime::{RestartSink, Restarted, Session, Tier, now};

impl Output {
    /// What is about to be restarted.
    pub(in crate::cli) fn unit(&mut self, at: Instant, unit: &Unit, details: &UnitDetails) {
        match self {
            Self::Human(human) => human.moment(at, &unit_words(unit, details)),
            Self::Json(json) => json.unit(at, "unit_seen", unit, details, unit_words(unit, details)),
        }
    }

    /// Nothing is begun, because of where portguard runs.
    pub(in crate::cli) fn refused_here(&mut self, began: Instant, tier: Tier, why: &str) {
        match self {
            Self::Human(human) => human.line(&format!("refused: {why}")),
            Self::Json(json) => {
                let exit = Exit::Refused.code();
                json.finished(now(), began, tier, "refused", exit, Some(why.to_owned()));
            }
        }
    }

    /// Nobody is ended, because systemd would start them again.
    pub(in crate::cli) fn supervised(&mut self, gate: &Gate, session: &Session, why: &[String]) {
        match self {
            Self::Human(human) => {
                human.last_holders(gate);
                human.line("refused: nobody was signalled");
                for line in why {
                    human.line(&format!("  {line}"));
                }
            }
            Self::Json(json) => {
                json.looked(gate, session.tier(), now());
                let (began, why) = (gate.timeline().began(), why.join("; "));
                json.finished(now(), began, session.tier(), "refused", Exit::Refused.code(), Some(why));
            }
        }
    }

    /// How it ended.
    pub(in crate::cli) fn unit_restarted(
        &mut self,
        restarted: &Restarted,
        end: &End,
        session: &Session,
        exit: Exit,
        began: Instant,
    ) {
        let unit = restarted.restart.unit();
        let mut text = end.to_string();
        if !matches!(end, End::Restarted(_) | End::NotBegun(_))
            && let Some((unit, details)) = unit
        {
            text = format!("{text}; {}", unit_words(unit, details));
        }
        let hint = unit.and_then(|(unit, _)| journal(unit, end));
        match self {
            Self::Human(human) => {
                match (&restarted.gate, end) {
                    (Some(gate), End::GateShut(_)) => human.ended(gate, session.tier(), session.shortfall()),
                    (Some(gate), End::NotBegun(ahead)) => human.not_begun(gate, ahead),
                    _ => {}
                }
                match end {
                    End::Restarted(_) => {
                        let took = now().since(began);
                        human.line(&format!("restarted: {text}, after {}", crate::report::span(took)));
                    }
                    _ => human.line(&format!("not restarted: {text}")),
                }
                if let Some(hint) = hint {
                    human.line(&format!("  see: {hint}"));
                }
            }
            Self::Json(json) => {
                if let (Some((unit, details)), false) = (unit, matches!(end, End::NotBegun(_))) {
                    json.unit(now(), "unit_seen", unit, details, unit_words(unit, details));
                }
                let word = match end {
                    End::GateShut(outcome) => outcome_code(outcome),
                    other => other.code(),
                };
                let detail = hint.map_or(text.clone(), |hint| format!("{text}; see: {hint}"));
                let detail = (exit != Exit::Done).then_some(detail);
                json.finished(now(), began, session.tier(), word, exit.code(), detail);
            }
        }
    }
}

impl RestartSink for Output {
    fn looked_ahead(&mut self, gate: &Gate, tier: Tier) {
        match self {
            Self::Human(human) => {
                let busy = !matches!(overall(&gate.verdicts()), Verdict::Free);
                let (holders, more) = gate.holders_on_record();
                human.holders(&holders, more, busy);
            }
            Self::Json(json) => json.looked(gate, tier, now()),
        }
    }

    fn unit_step(&mut self, at: Instant, step: &Step) {
        let pid = match step {
            Step::Listening(process) => Some(process.tgid.0),
            _ => None,
        };
        self.step(at, step.code(), pid, &step.to_string());
    }
}
