//! `portguard watch`

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::exit::Exit;
use crate::client::watch::{Form, WatchError, watch};
use crate::sidecar::config::SOCKET;

/// Shows the services of the running sidecar, live.
///
/// On a terminal it is a table: verdict, tier, holders and owners, the last run and its timeline,
/// and what was lost. q, Esc or Ctrl-C end it, the arrow keys choose a service, r looks at it again.
/// When standard output or input is no terminal, it is one line of text for each event. A sidecar
/// that goes away is waited for; what happened meanwhile follows, or the fact that it is not known.
#[derive(Debug, Args)]
pub(super) struct Watch {
    /// The sidecar's socket
    #[arg(long, default_value = SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// The event stream: one JSON object per line
    #[arg(long)]
    json: bool,
}

impl Watch {
    pub(super) fn run(&self) -> anyhow::Result<Exit> {
        let form = if self.json {
            Form::Json
        } else if std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
            // An empty value is none: https://no-color.org
            let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            Form::Table { colour }
        } else {
            Form::Lines
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the event loop")?;
        let watched = runtime.block_on(watch(&self.socket, form));
        runtime.shutdown_background();
        match watched {
            Ok(()) => Ok(Exit::Done),
            Err(WatchError::Client(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        }
    }
}
