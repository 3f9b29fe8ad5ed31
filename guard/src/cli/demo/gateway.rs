//! The stand-in: a small server with every bad habit of a stuck gateway.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use anyhow::Context as _;
use clap::Args;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork};

use super::super::exit::Exit;

/// The hidden subcommand, and the text by which the demo recognises it.
pub(in super::super) const NAME: &str = "demo-gateway";

/// Where it listens.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Connections that the stubborn one keeps open.
const CONNECTIONS: usize = 8;

#[derive(Debug, Args)]
pub(in super::super) struct Gateway {
    #[arg(long)]
    port: u16,
    /// Ignore SIGTERM, hold connections, share the listener with a forked child
    #[arg(long)]
    stubborn: bool,
}

impl Gateway {
    /// Binds once, says so, and lives until its standard input ends.
    pub(in super::super) fn run(self) -> anyhow::Result<Exit> {
        let listener = TcpListener::bind((ADDRESS, self.port))
            .with_context(|| format!("cannot bind {ADDRESS}:{}", self.port))?;
        let port = listener.local_addr().context("cannot read the bound address")?.port();
        let mut connections = Vec::new();
        let mut sharer = String::new();
        if self.stubborn {
            // SAFETY: ignoring a signal installs no handler, so nothing of ours runs in signal context.
            unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.context("cannot ignore SIGTERM")?;
            for _ in 0..CONNECTIONS {
                let client = TcpStream::connect((ADDRESS, port)).context("cannot connect to the stand-in")?;
                let (server, _) = listener.accept().context("cannot accept a connection")?;
                connections.push((client, server));
            }
            // SAFETY: this process has a single thread, so the child may go on like any process.
            match unsafe { fork() }.context("cannot fork")? {
                ForkResult::Child => {
                    wait_for_the_end();
                    return Ok(Exit::Done);
                }
                ForkResult::Parent { child } => sharer = format!(" {child}"),
            }
        }
        println!("listening {port}{sharer}");
        std::io::stdout().flush().context("cannot report the port")?;
        wait_for_the_end();
        Ok(Exit::Done)
    }
}

/// Whoever started the stand-in holds the other end of its standard input.
fn wait_for_the_end() {
    let mut sink = [0];
    // An error ends the stand-in as well as the end of the input does.
    while matches!(std::io::stdin().read(&mut sink), Ok(1)) {}
}
