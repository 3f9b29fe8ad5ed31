//! `portguard run`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::exit::{Exit, UsageError};
use crate::sidecar::config::PATH;
use crate::sidecar::{SidecarError, serve};

/// Guards the services of the configuration, and answers over a Unix socket.
///
/// SIGHUP reads the configuration again, SIGTERM ends it.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The configuration
    #[arg(long, default_value = PATH, value_name = "FILE")]
    config: PathBuf,
}

impl Run {
    pub(super) fn run(&self) -> anyhow::Result<Exit> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the event loop")?;
        let served = runtime.block_on(serve(&self.config));
        runtime.shutdown_background();
        match served {
            Ok(()) => Ok(Exit::Done),
            Err(SidecarError::Config(error)) => Err(UsageError(error.to_string()).into()),
            Err(SidecarError::Runtime(error)) => Err(error.into()),
            Err(SidecarError::Netns(error)) => Err(error.into()),
            Err(SidecarError::Socket(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        }
    }
}
