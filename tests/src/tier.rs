//! Where portguard is told to take its facts from, and whether it can.

use std::fmt;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::child::output;
use crate::portguard::binary;

/// Where portguard is told to take its facts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// `--tier ebpf`
    Ebpf,
    /// `--tier netlink`
    Netlink,
    /// `--tier poll`
    Poll,
}

impl Tier {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ebpf, Self::Netlink, Self::Poll];

    /// The word of `--tier`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Netlink => "netlink",
            Self::Poll => "poll",
        }
    }

    /// Why it cannot be tested here, in `portguard doctor`'s own words. What that cannot say
    /// is left to the tests themselves to fail on.
    pub fn missing(self) -> Option<&'static str> {
        static WHY_NOT_EBPF: OnceLock<Option<String>> = OnceLock::new();
        if self != Self::Ebpf {
            return None;
        }
        let ask = || {
            let answer = output(Command::new(binary()).args(["doctor", "--json"])).ok()?;
            let answer: Value = serde_json::from_slice(&answer.stdout).ok()?;
            answer["why_not_ebpf"].as_str().map(str::to_owned)
        };
        WHY_NOT_EBPF.get_or_init(ask).as_deref()
    }

    /// `PORTGUARD_TEST_TIERS` names it, or is not set.
    pub fn asked_for(self) -> bool {
        std::env::var("PORTGUARD_TEST_TIERS")
            .map_or(true, |tiers| tiers.split(',').any(|tier| tier.trim() == self.name()))
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
