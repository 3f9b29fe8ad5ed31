//! Who has the port: a stand-in in the cell, as large and as crowded as asked for.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use anyhow::{Context, Result};
use guard_tests::DEADLINE;
use guard_tests::child::Child;
use guard_tests::standin::{Plan, said};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::cell::Cell;

/// A word in its arguments that portguard recognises it by.
pub(crate) const TAG: &str = "bench-holder";

/// Room for the longest queue, and for the connections of those who look by connecting.
const BACKLOG: &str = "8192";

/// A stand-in that listens.
#[derive(Debug)]
pub(crate) struct Holder {
    child: Child,
    _queue: Vec<TcpStream>,
}

/// What the holder is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Resident memory, as `500M`.
    pub(crate) rss: &'static str,
    /// Connections that wait to be accepted.
    pub(crate) queue: usize,
}

impl Holder {
    /// Starts one on `port` of 127.0.0.1 and waits until it listens and its queue is full.
    pub(crate) fn start(cell: &Cell, port: u16, size: Size, on_term: &str) -> Result<Self> {
        let line = Self::plan(port, size, on_term).command_line();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        let child = cell.start(command, "the holder");
        child
            .stdout
            .wait_for(DEADLINE, |line| said(line, "ready"))
            .with_context(|| format!("the holder never listened\n{}", child.said()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let queue = (0..size.queue)
            .map(|number| TcpStream::connect(address).with_context(|| format!("connection {number}")))
            .collect::<Result<_>>()?;
        Ok(Self { child, _queue: queue })
    }

    /// Its command line, for whoever starts it elsewhere.
    pub(crate) fn plan(port: u16, size: Size, on_term: &str) -> Plan {
        Plan::new(["--tag", TAG, "--rss", size.rss, "--on-term", on_term, "--backlog", BACKLOG])
            .listen("127.0.0.1", port)
    }

    /// Makes it give the port back.
    pub(crate) fn let_go(&self, how: LetGo) {
        self.child.signal(match how {
            LetGo::Killed => Signal::SIGKILL,
            LetGo::Closes => Signal::SIGTERM,
        });
    }
}

/// How the holder gives the port back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetGo {
    /// It closes its listener at SIGTERM, and lives on.
    Closes,
    /// SIGKILL.
    Killed,
}

/// Lets this process have as many connections, and a listener as long a queue, as is asked for.
pub(crate) fn allow_queues() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")?;
    // Of this network namespace only.
    std::fs::write("/proc/sys/net/core/somaxconn", BACKLOG).context("raise net.core.somaxconn")
}

/// Bytes of memory that are available, from `/proc/meminfo`.
pub(crate) fn available_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().context("read MemAvailable")?;
    Ok(kilobytes * 1024)
}
