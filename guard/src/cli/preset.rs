//! The options that name a service that comes with its rules.

use std::num::NonZeroU16;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::exit::UsageError;
use super::options::parse_port;
use crate::runtime::preset::{self, Expansion};

/// A service that comes with its rules.
#[derive(Clone, Debug, Args)]
pub(super) struct PresetOptions {
    /// A service whose rules and port are known. Rules of your own take the place of its rules of the
    /// same kind, and narrow it down otherwise; `status -v` shows what it stands for
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// The preset's named instance, from whose name its port follows
    #[arg(long, value_name = "NAME", requires = "preset", conflicts_with = "port")]
    profile: Option<String>,
}

impl PresetOptions {
    /// The preset that was asked for.
    pub(super) const fn preset(&self) -> Option<Preset> {
        self.preset
    }

    /// The ports that were given, else the preset's.
    pub(super) fn ports(&self, given: &[NonZeroU16]) -> anyhow::Result<Vec<NonZeroU16>> {
        let Some(known) = self.preset.map(Preset::expansion).filter(|_| given.is_empty()) else {
            return Ok(given.to_vec());
        };
        let port = match (&self.profile, std::env::var(known.port_variable)) {
            (Some(profile), _) => (known.profile_port)(profile),
            (None, Ok(text)) if !text.is_empty() => {
                let wrong = |why| UsageError(format!("{}={text}: {why}", known.port_variable));
                parse_port(&text).map_err(wrong)?.get()
            }
            (None, _) => known.port,
        };
        Ok(vec![NonZeroU16::new(port).context("port 0 cannot be guarded")?])
    }

    /// What the preset stands for, for who asks with `-v`.
    pub(super) fn in_flags(&self, given: &[NonZeroU16]) -> Option<String> {
        let ports = self.ports(given).ok()?;
        self.preset.map(|preset| format!("the preset stands for {}", preset.in_flags(&ports)))
    }
}

/// A service whose rules are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// The OpenClaw gateway: port 18789, OPENCLAW_GATEWAY_PORT or that of --profile; recognised by
    /// title, or by node or bun with the gateway's entry point; exit code 78 means that a healthy
    /// one is running already
    Openclaw,
}

impl Preset {
    /// The data.
    pub(super) const fn expansion(self) -> &'static Expansion {
        match self {
            Self::Openclaw => &preset::OPENCLAW,
        }
    }

    /// What it stands for, as flags.
    fn in_flags(self, ports: &[NonZeroU16]) -> String {
        let expansion = self.expansion();
        let words = |flag: &str, values: &[&str]| -> String {
            values.iter().map(|value| format!(" --{flag} '{value}'")).collect()
        };
        let ports: String = ports.iter().map(|port| format!(" --port {port}")).collect();
        let rules = format!("{}{}", words("match", expansion.patterns), words("comm", expansion.comm));
        format!("{}{rules}", ports.trim_start())
    }
}
