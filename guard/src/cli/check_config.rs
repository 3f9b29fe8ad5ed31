//! `portguard check-config`

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, UsageError};
use crate::sidecar::config::{Config, PATH};

/// Reads the sidecar's configuration and says what is wrong with it.
#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    /// The file
    #[arg(default_value = PATH, value_name = "FILE")]
    file: PathBuf,
}

impl CheckConfig {
    pub(super) fn run(&self) -> anyhow::Result<Exit> {
        let config = Config::load(&self.file).map_err(|error| UsageError(error.to_string()))?;
        let names: Vec<&str> = config.services.iter().map(|service| &*service.name).collect();
        // Nobody may be reading: the exit code tells all the same.
        let mut text = format!("{}: good, guards {}\n", self.file.display(), names.join(", "));
        for service in &config.services {
            text.push_str(&format!("  {}\n", service.in_words()));
        }
        drop(std::io::stdout().write_all(text.as_bytes()));
        Ok(Exit::Done)
    }
}
