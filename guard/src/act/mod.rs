//! Actions → world: signals, destroyed sockets, probes and commands.

mod cgroup;
mod command;
mod evict;
mod signal;
pub mod systemd;

pub use cgroup::kill_cgroup;
pub use command::{Command, CommandError, replace};
pub use evict::evict;
pub use signal::signal;

pub use crate::kernel::bind::{Prober, bind_all as probe};
