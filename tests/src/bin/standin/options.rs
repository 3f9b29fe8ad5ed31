//! The parts that can be asked for.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// A stand-in for anything that can be on a TCP port.
#[derive(Debug, Parser)]
#[command(name = "standin")]
pub(crate) struct Options {
    /// Bind this address and, unless told otherwise, listen on it. `[::]` is dual-stack.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Vec<SocketAddr>,
    /// Set IPV6_V6ONLY on IPv6 listeners.
    #[arg(long)]
    pub(crate) v6only: bool,
    /// Bind without SO_REUSEADDR.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Bind with SO_REUSEPORT.
    #[arg(long)]
    pub(crate) reuseport: bool,
    /// Backlog for listen().
    #[arg(long, default_value_t = 511)]
    pub(crate) backlog: i32,
    /// Bind and never listen.
    #[arg(long)]
    pub(crate) bind_only: bool,
    /// Leave the listeners open across exec.
    #[arg(long)]
    pub(crate) inheritable: bool,
    /// Try to bind this often before giving up.
    #[arg(long, default_value_t = 1)]
    pub(crate) bind_attempts: u32,
    /// Accept connections and keep them; otherwise they stay in the accept queue.
    #[arg(long)]
    pub(crate) accept: bool,
    /// What SIGTERM leads to: exit, ignore, hang, close-hang, delay=300ms, close-then=300ms, successor,
    /// grow=500 (MiB).
    #[arg(long, default_value = "exit")]
    pub(crate) on_term: OnTerm,
    /// Fork this many children that share the listeners.
    #[arg(long, default_value_t = 0)]
    pub(crate) fork_sharer: u32,
    /// What SIGTERM leads to in those children.
    #[arg(long, default_value = "exit")]
    pub(crate) sharer_on_term: OnTerm,
    /// Exit once the children share the listeners.
    #[arg(long)]
    pub(crate) orphan: bool,
    /// Exit as soon as the state is reached.
    #[arg(long)]
    pub(crate) exit_when_ready: bool,
    /// End the thread group leader and leave the rest to the other threads.
    #[arg(long, requires = "threads")]
    pub(crate) leader_exits: bool,
    /// Start this many threads that only wait.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: u32,
    /// Touch this much memory: 500M, 2G.
    #[arg(long, default_value = "0")]
    pub(crate) rss: Size,
    /// Keep this many descriptors of /dev/null open; each sharer of the listeners has them too.
    #[arg(long, default_value_t = 0)]
    pub(crate) descriptors: u32,
    /// Overwrite argv and comm with this title.
    #[arg(long)]
    pub(crate) title: Option<String>,
    /// Means nothing here: something in argv to recognise the process by.
    #[arg(long, default_value = "")]
    pub(crate) tag: String,
    /// Connect to this address.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) connect: Option<SocketAddr>,
    /// With --connect: keep this many connections open.
    #[arg(long, default_value_t = 1)]
    pub(crate) hold_connections: usize,
    /// Be a client whose own port is this one.
    #[arg(long, value_name = "PORT")]
    pub(crate) client_from: Option<u16>,
    /// Serve one connection on each listener and close it first: TIME_WAIT on the listener's port.
    #[arg(long)]
    pub(crate) time_wait: bool,
    /// Make one connection on each listener, or with --client-from from that port, and leave the
    /// port's side of it in this state.
    #[arg(long, value_enum, value_name = "STATE")]
    pub(crate) leave: Option<Left>,
    /// With this many threads for each listener, connect to it and reset, over and over.
    #[arg(long, value_name = "THREADS", default_value_t = 0)]
    pub(crate) churn: u32,
    /// Close the listeners once everything else is there.
    #[arg(long)]
    pub(crate) close_listeners: bool,
    /// Register the listeners with an io_uring and close them: no process has a descriptor for them.
    #[arg(long)]
    pub(crate) io_uring: bool,
    /// Leave the listeners in flight over a Unix socket: no process has a descriptor for them.
    #[arg(long)]
    pub(crate) inflight: bool,
    /// Move to a network namespace of its own once the listeners are bound.
    #[arg(long)]
    pub(crate) move_away: bool,
    /// Wait in the kernel, in D state, for a child that never exits and has no socket: what vfork() does.
    #[arg(long)]
    pub(crate) vfork: bool,
    /// Start the same command line again, without this flag, whenever it ends.
    #[arg(long)]
    pub(crate) supervise: bool,
    /// Run this once ready, and report how it ended.
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// The state that the port's side of a connection is left in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Left {
    Established,
    CloseWait,
    /// FIN_WAIT2, with a descriptor.
    FinWait,
    /// FIN_WAIT2, closed: no process has it.
    Orphan,
    TimeWait,
}

/// What SIGTERM leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnTerm {
    /// Close the listeners and exit.
    Exit,
    /// SIG_IGN.
    Ignore,
    /// Report it, change nothing, never exit.
    Hang,
    /// Close the listeners, never exit.
    CloseHang,
    /// Keep listening for this long, then exit.
    Delay(Duration),
    /// Close the listeners, exit after this long.
    CloseThen(Duration),
    /// Close the listeners, start a detached successor that binds them, exit.
    Successor,
    /// Use more and more memory, up to this many MiB.
    Grow(u32),
}

impl FromStr for OnTerm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(most) = text.strip_prefix("grow=") {
            return most.parse().map(Self::Grow).map_err(|_| format!("not a number of MiB: {text}"));
        }
        let (word, span) = match text.split_once('=') {
            Some((word, span)) => (word, Some(humantime::parse_duration(span).map_err(|e| e.to_string())?)),
            None => (text, None),
        };
        match (word, span) {
            ("exit", None) => Ok(Self::Exit),
            ("ignore", None) => Ok(Self::Ignore),
            ("hang", None) => Ok(Self::Hang),
            ("close-hang", None) => Ok(Self::CloseHang),
            ("successor", None) => Ok(Self::Successor),
            ("delay", Some(span)) => Ok(Self::Delay(span)),
            ("close-then", Some(span)) => Ok(Self::CloseThen(span)),
            _ => Err(format!("no such reaction to SIGTERM: {text}")),
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size(pub(crate) usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = match text.char_indices().last() {
            Some((end, 'K')) => (&text[..end], 1 << 10),
            Some((end, 'M')) => (&text[..end], 1 << 20),
            Some((end, 'G')) => (&text[..end], 1 << 30),
            _ => (text, 1),
        };
        let number: usize = digits.parse().map_err(|_| format!("not a size: {text}"))?;
        number.checked_mul(unit).map(Self).ok_or_else(|| format!("too large a size: {text}"))
    }
}
