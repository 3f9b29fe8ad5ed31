//! The vocabulary: what a port, a socket, a process and a verdict are.

mod bind;
mod failed_bind;
mod identity;
mod process;
mod socket;
mod time;
mod unit;
mod verdict;

pub use bind::{BindOutcome, BindSpec};
pub use failed_bind::FailedBind;
pub use identity::{NetnsInode, Port, ProcessId, SocketCookie, SocketInode, StartTime, Tgid, Uid};
pub use process::{Ancestor, ExitStatus, Process, ProcessState, Seen, Signal};
pub use socket::{Owners, Snapshot, Socket, TcpState, Unseen};
pub use time::Instant;
pub use unit::{ActiveState, KillMode, Manager, Unit, UnitId, UnitName};
pub use verdict::{Holder, UnknownReason, Verdict};
