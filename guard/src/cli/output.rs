//! Where a command's report goes.

use std::io::Write;

use guard_core::gate::{Gate, Outcome};
use guard_core::model::Instant;
use guard_core::timeline::Entry;

use super::exit::Exit;
use crate::report::{Context, Human, Json, outcome_code};
use crate::runtime::Tier;
use crate::runtime::{Session, Sink, now};

mod unit;

/// Either kind of report.
pub(super) enum Output {
    Human(Human<Box<dyn Write>>),
    Json(Json<Box<dyn Write>>),
}

impl Output {
    pub(super) fn new(context: Context, json: bool, verbose: bool, out: Box<dyn Write>) -> Self {
        if json {
            Self::Json(Json::new(context, out))
        } else {
            Self::Human(Human::new(context, out, verbose))
        }
    }

    /// Tells what a look found.
    pub(super) fn looked(&mut self, gate: &Gate, session: &Session, exit: Exit) {
        match self {
            Self::Human(human) => human.looked(gate, session.tier(), session.shortfall()),
            Self::Json(json) => {
                let began = gate.timeline().began();
                json.looked(gate, session.tier(), now());
                json.finished(now(), began, session.tier(), "looked", exit.code(), None);
            }
        }
    }

    /// Tells how a run ended, and of the whole command when that was all.
    pub(super) fn ended(&mut self, gate: &Gate, session: &Session, outcome: &Outcome) {
        match self {
            Self::Human(human) => human.ended(gate, session.tier(), session.shortfall()),
            Self::Json(json) => {
                let exit = Exit::of_outcome(outcome);
                let word = outcome_code(outcome);
                json.finished(now(), gate.timeline().began(), session.tier(), word, exit.code(), None);
            }
        }
    }

    /// Tells a step that happened outside of the gate.
    pub(super) fn step(&mut self, at: Instant, step: &'static str, pid: Option<u32>, text: &str) {
        match self {
            Self::Human(human) => human.moment(at, text),
            Self::Json(json) => json.step(at, step, pid, Some(text.to_owned())),
        }
    }
}

impl Sink for Output {
    fn entry(&mut self, gate: &Gate, tier: Tier, at: Instant, entry: &Entry) {
        match self {
            Self::Human(human) => human.entry(gate, tier, at, entry),
            Self::Json(json) => json.entry(gate, tier, at, entry),
        }
    }
}
