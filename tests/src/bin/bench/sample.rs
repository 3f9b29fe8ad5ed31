//! What was measured: one JSON object per line on stdout.

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a number counts. The reader chooses how to print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds, printed in the unit that suits.
    Nanoseconds,
    /// Nanoseconds of something so short that they are printed as they are.
    NanosecondsEach,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// So many in a second.
    PerSecond,
    /// One number divided by another.
    Ratio,
    /// A count.
    Number,
    /// 1 for yes and 0 for no: the reader prints a share.
    Yes,
}

impl Unit {
    const fn word(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::NanosecondsEach => "ns each",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::PerSecond => "per second",
            Self::Ratio => "ratio",
            Self::Number => "number",
            Self::Yes => "yes",
        }
    }
}

/// Writes the samples of one section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Samples {
    section: &'static str,
}

impl Samples {
    pub(crate) const fn of(section: &'static str) -> Self {
        Self { section }
    }

    /// One measured number.
    pub(crate) fn sample(
        self,
        scenario: &str,
        subject: &str,
        measure: &str,
        unit: Unit,
        value: f64,
    ) -> Result<()> {
        line(&json!({
            "kind": "sample",
            "section": self.section,
            "scenario": scenario,
            "subject": subject,
            "measure": measure,
            "unit": unit.word(),
            "value": value,
        }))
    }

    /// A span between two readings of the clock; negative when the second came first.
    pub(crate) fn span(
        self,
        scenario: &str,
        subject: &str,
        measure: &str,
        from_ns: u64,
        to_ns: u64,
    ) -> Result<()> {
        let span = to_ns.cast_signed() - from_ns.cast_signed();
        self.sample(scenario, subject, measure, Unit::Nanoseconds, span as f64)
    }

    /// A span at one size of a curve.
    pub(crate) fn growth(
        self,
        scenario: &str,
        size: usize,
        subject: &str,
        measure: &str,
        span_ns: (u64, u64),
    ) -> Result<()> {
        let span = (span_ns.1.cast_signed() - span_ns.0.cast_signed()) as f64;
        self.growing(scenario, size, subject, measure, Unit::Nanoseconds, span)
    }

    /// A number at one size of a curve.
    pub(crate) fn growing(
        self,
        scenario: &str,
        size: usize,
        subject: &str,
        measure: &str,
        unit: Unit,
        value: f64,
    ) -> Result<()> {
        line(&json!({
            "kind": "sample",
            "section": self.section,
            "scenario": scenario,
            "subject": subject,
            "measure": measure,
            "at": size,
            "unit": unit.word(),
            "value": value,
        }))
    }

    /// Whether something was so.
    pub(crate) fn yes(self, scenario: &str, subject: &str, measure: &str, answer: bool) -> Result<()> {
        self.sample(scenario, subject, measure, Unit::Yes, f64::from(u8::from(answer)))
    }

    /// What a reader of the table has to know.
    pub(crate) fn note(self, text: &str) -> Result<()> {
        line(&json!({ "kind": "note", "section": self.section, "text": text }))
    }

    /// Somebody or something that could not be measured here, and why.
    pub(crate) fn absent(self, what: &str, why: &str) -> Result<()> {
        line(&json!({ "kind": "absent", "section": self.section, "what": what, "why": why }))
    }

    /// How far it has come, for a person who waits.
    pub(crate) fn progress(self, text: &str) -> Result<()> {
        line(&json!({ "kind": "progress", "section": self.section, "text": text }))
    }
}

fn line(value: &Value) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{value}").and_then(|()| stdout.flush()).context("write a sample")
}
