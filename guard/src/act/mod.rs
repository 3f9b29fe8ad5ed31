//! Actions → world: signals, probes and commands.

mod command;
mod signal;

pub use command::{Command, CommandError, replace};
pub use signal::signal;

pub use crate::kernel::bind::bind_all as probe;
