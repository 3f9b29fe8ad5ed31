//! Where a mistake is, and what was probably meant.

use std::fmt;
use std::ops::Range;

/// Something in a configuration that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Line and column, from 1; `None` when it is what is missing.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what to write instead.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{line}:{column}: {}", self.what),
            None => write!(f, " {}", self.what),
        }
    }
}

impl Mistake {
    pub(super) fn at(text: &str, span: Option<Range<usize>>, what: String) -> Self {
        Self { place: span.map(|span| line_and_column(text, span.start)), what }
    }

    pub(super) fn of_toml(text: &str, error: &toml::de::Error) -> Self {
        Self::at(text, error.span(), with_suggestion(error.message()))
    }
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// serde says "unknown field `a`, expected one of `b`, `c`"; the likeliest of
/// those is what was meant.
fn with_suggestion(message: &str) -> String {
    let message = message.replace("unknown field", "unknown key").replace("missing field", "missing key");
    if !message.starts_with("unknown key") && !message.starts_with("unknown variant") {
        return message;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(written) = quoted.next() else { return message };
    let likeness = |known: &&str| strsim::jaro_winkler(written, known);
    let likeliest = quoted.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match likeliest.filter(|known| likeness(known) > 0.75) {
        Some(meant) => format!("{message}; did you mean `{meant}`?"),
        None => message,
    }
}
