//! Services that come with their rules: data, which the core knows nothing of.

use super::spelling::Regex;

/// What a preset expands to.
#[derive(Debug)]
pub struct Expansion {
    /// As `--match`.
    pub patterns: &'static [&'static str],
    /// As `--comm`.
    pub comm: &'static [&'static str],
    /// Names the port in the environment.
    pub port_variable: &'static str,
    /// Without any other word on it.
    pub port: u16,
    /// The port of a named profile.
    pub profile_port: fn(&str) -> u16,
    /// The exit code of an instance that finds a healthy one running.
    pub already_runs: i32,
}

/// Its process shows either the title that it gave itself or how it was started,
/// with node or bun and one of these entry points; the comm is that of the title,
/// of Node.js's main thread, or of the program.
pub const OPENCLAW: Expansion = Expansion {
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

impl Expansion {
    /// Its patterns, made ready.
    pub fn regexes(&self) -> Vec<Regex> {
        // A test makes sure that each is one.
        self.patterns.iter().filter_map(|text| text.parse().ok()).collect()
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
