//! What a run says: human lines, JSON lines, the timeline.

mod human;
mod json;
mod picture;
mod words;

pub use human::Human;
pub use json::Json;
pub use picture::timeline;
pub use words::{Context, outcome_code, overall};
