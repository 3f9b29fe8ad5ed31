//! What a run says: human lines, JSON lines, the timeline.

mod advice;
mod exit;
mod human;
mod json;
pub mod notes;
mod picture;
mod unit;
mod words;

pub use exit::Exit;
pub use human::Human;
pub use json::{Body, Event, Json};
pub use picture::timeline;
pub use unit::{journal, restart_end, unit_notes, unit_words};
pub use words::{Context, and_more, outcome_code, overall, printable, shorten, span, unit as unit_of_cgroup};
