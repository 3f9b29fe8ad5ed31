//! Services that come with their rules: data, which the core knows nothing of.

use std::num::NonZeroU16;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::exit::UsageError;
use super::options::parse_port;

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

/// What a preset expands to.
#[derive(Debug)]
pub(super) struct Expansion {
    /// As `--match`.
    pub(super) patterns: &'static [&'static str],
    /// As `--comm`.
    pub(super) comm: &'static [&'static str],
    /// Names the port in the environment.
    pub(super) port_variable: &'static str,
    /// Without any other word on it.
    pub(super) port: u16,
    /// The port of a named profile.
    pub(super) profile_port: fn(&str) -> u16,
    /// The exit code of an instance that finds a healthy one running.
    pub(super) already_runs: i32,
}

/// Its process shows either the title that it gave itself or how it was started,
/// with node or bun and one of these entry points; the comm is that of the title,
/// of Node.js's main thread, or of the program.
const OPENCLAW: Expansion = Expansion {
    patterns: &[
        r"^openclaw-gateway( |$)",
        r"(^|[ /])openclaw(\.mjs)? ([^ ]+ )*gateway( |$)",
        r"(^|[ /])dist/(index|entry)\.m?js ([^ ]+ )*gateway( |$)",
    ],
    comm: &["openclaw-gatewa", "openclaw", "MainThread", "node", "bun"],
    port_variable: "OPENCLAW_GATEWAY_PORT",
    port: 18789,
    profile_port: openclaw_profile_port,
    already_runs: 78,
};

impl Preset {
    /// The data.
    pub(super) const fn expansion(self) -> &'static Expansion {
        match self {
            Self::Openclaw => &OPENCLAW,
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

fn openclaw_profile_port(profile: &str) -> u16 {
    // Below 60,000 whatever the hash.
    20_000 + u16::try_from(fnv1a_32(profile.as_bytes()) % 40_000).unwrap_or(0)
}

/// The 32-bit FNV-1a hash (Fowler, Noll and Vo).
fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spelling::Regex;
    use guard_core::policy::Pattern as _;

    #[test]
    fn the_hash_is_fnv1a() {
        // The published test vectors.
        assert_eq!(fnv1a_32(b""), 0x811c_9dc5);
        assert_eq!(fnv1a_32(b"a"), 0xe40c_292c);
        assert_eq!(fnv1a_32(b"foobar"), 0xbf9c_f968);
        assert_eq!(openclaw_profile_port("a"), 20_000 + (0xe40c_292c_u32 % 40_000) as u16);
    }

    #[test]
    fn the_gateway_is_recognised_as_it_shows_itself_and_nobody_else() {
        let patterns: Vec<Regex> =
            OPENCLAW.patterns.iter().map(|text| text.parse().expect("a regular expression")).collect();
        for (argv, is_it) in [
            ("openclaw-gateway", true),
            ("openclaw-gateway --port 18789", true),
            ("node dist/index.js gateway", true),
            ("/usr/bin/node /opt/openclaw/dist/entry.js --profile blue gateway run", true),
            ("bun /usr/lib/node_modules/openclaw/openclaw.mjs gateway --port 19000", true),
            ("/usr/local/bin/openclaw gateway run", true),
            ("openclaw-gatewayd", false),
            ("node dist/index.js agent", false),
            ("node dist/index.js gateways", false),
            ("openclaw status", false),
            ("node server.js", false),
        ] {
            assert_eq!(patterns.iter().any(|pattern| pattern.is_match(argv)), is_it, "{argv}");
        }
    }
}
