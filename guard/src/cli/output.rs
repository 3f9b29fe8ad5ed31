//! Where a command's report goes.

use std::io::Write;

use guard_core::gate::{Gate, Goal, Outcome};
use guard_core::model::Instant;
use guard_core::timeline::Entry;

use super::exit::Exit;
use crate::report::notes::{self, Note};
use crate::report::{Context, Human, Json, outcome_code};
use crate::runtime::Tier;
use crate::runtime::{Session, Sink, now};

mod through;
mod unit;

pub(super) use self::through::Through;

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
            Self::Json(json) => json.looked(gate, session.tier(), now()),
        }
        self.notes(notes::of_look(gate));
        self.finished(gate, session, "looked", exit);
    }

    /// Tells how a run ended, and of the whole command when that was all.
    pub(super) fn ended(&mut self, gate: &Gate, session: &Session, outcome: &Outcome) {
        if let Self::Human(human) = self {
            human.ended(gate, session.tier(), session.shortfall());
        }
        self.notes(notes::of_end(gate));
        self.finished(gate, session, outcome_code(outcome), Exit::of_outcome(outcome));
    }

    fn finished(&mut self, gate: &Gate, session: &Session, outcome: &'static str, exit: Exit) {
        if let Self::Json(json) = self {
            json.finished(now(), gate.timeline().began(), session.tier(), outcome, exit.code(), None);
        }
    }

    pub(super) fn notes(&mut self, notes: impl IntoIterator<Item = Note>) {
        for note in notes {
            match self {
                Self::Human(human) => human.note(&note),
                Self::Json(json) => json.note(now(), &note),
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
        if gate.plan().goal != Goal::Look {
            self.notes(notes::of_entry(gate, entry));
        }
    }
}
