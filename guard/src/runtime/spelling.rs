//! How addresses, rules and spans of time are written, in flags and in the
//! configuration file alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use guard_core::model::Uid;
use guard_core::policy::Pattern;

use super::asker;

/// The file of a network namespace, written as its path or as `pid:N`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub PathBuf);

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("pid:").map(str::parse::<u32>) {
            Some(Ok(pid @ 1..)) => Ok(Self(Path::new("/proc").join(pid.to_string()).join("ns/net"))),
            Some(_) => Err("pid: takes the number of a process"),
            None if text.is_empty() => Err("give a path such as /run/netns/NAME, or pid:N"),
            None => Ok(Self(PathBuf::from(text))),
        }
    }
}

/// An IP address, with a scope when it is link-local.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Which interface it is meant on.
    pub scope: Scope,
}

/// Which interface a link-local address is meant on. An interface's name means
/// something only inside the network namespace that is guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Any.
    None,
    /// By its number.
    Index(u32),
    /// By its name.
    Interface(String),
}

/// The interface that an address names does not exist.
#[derive(Debug, thiserror::Error)]
#[error("no network interface {name}: {source}")]
pub struct NoInterface {
    name: String,
    source: std::io::Error,
}

impl Scope {
    /// The interface's number in the calling thread's network namespace, else 0.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn index(&self) -> Result<u32, NoInterface> {
        match self {
            Self::None => Ok(0),
            Self::Index(index) => Ok(*index),
            Self::Interface(name) => {
                asker::interface_index(name).map_err(|source| NoInterface { name: name.clone(), source })
            }
        }
    }
}

impl Address {
    /// What a server listens on that names no address: `[::]` dual-stack, or
    /// `0.0.0.0` where there is no IPv6.
    pub fn everywhere() -> Self {
        let ip = if asker::ipv6_available() {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        Self { ip, scope: Scope::None }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let (ip, scope) = match bare.split_once('%') {
            Some((ip, scope)) => (ip, Some(scope)),
            None => (bare, None),
        };
        let ip = IpAddr::from_str(ip).map_err(
            |_| "not an IP address (names are not resolved; for localhost give 127.0.0.1 and ::1)",
        )?;
        let scope = match scope {
            None => Scope::None,
            Some(scope) => scope.parse().map_or_else(|_| Scope::Interface(scope.to_owned()), Scope::Index),
        };
        // A socket bound to ::ffff:a.b.c.d and one bound to a.b.c.d conflict alike.
        Ok(Self { ip: ip.to_canonical(), scope })
    }
}

/// The kernel keeps 15 bytes of a command name (`TASK_COMM_LEN` is 16).
pub fn as_kernel_comm(comm: &str) -> String {
    comm[..comm.floor_char_boundary(15)].to_owned()
}

/// A user, by name or number.
///
/// # Errors
///
/// In words, when there is none of that name.
pub fn parse_user(text: &str) -> Result<Uid, String> {
    if let Ok(number) = text.parse() {
        return Ok(Uid(number));
    }
    match asker::user_id(text) {
        Ok(Some(uid)) => Ok(uid),
        Ok(None) => Err(format!("no user {text}")),
        Err(error) => Err(format!("cannot look up user {text}: {error}")),
    }
}

/// A regular expression rule. It is compiled once, for all its copies, when one of them is first asked: compiled it takes
/// far more memory than its text, and most of what a sidecar guards is never held against it.
#[derive(Clone, Debug)]
pub struct Regex {
    text: Arc<str>,
    /// `None`: it cannot be compiled, which was tried before.
    compiled: Arc<OnceLock<Option<regex_lite::Regex>>>,
}

impl FromStr for Regex {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let regex = regex_lite::Regex::new(text).map_err(|error| error.to_string())?;
        // What an unset variable leaves behind must not recognise everybody.
        if regex.is_match("") {
            return Err("it matches the empty text, so it would recognise everybody; \
                        that is --any-owner, or any-owner = true"
                .to_owned());
        }
        Ok(Self { text: text.into(), compiled: Arc::default() })
    }
}

impl Pattern for Regex {
    fn is_match(&self, text: &str) -> bool {
        let compiled = self.compiled.get_or_init(|| regex_lite::Regex::new(&self.text).ok());
        compiled.as_ref().is_some_and(|regex| regex.is_match(text))
    }

    fn source(&self) -> &str {
        &self.text
    }
}

/// `500ms`, `3s`, `2m`.
///
/// # Errors
///
/// When it is written otherwise.
pub fn parse_duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

/// As [`parse_duration`], long enough for a pause between two looks.
///
/// # Errors
///
/// In words.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(interval) if interval >= Duration::from_micros(100) => Ok(interval),
        Ok(_) => Err("must be at least 100us".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A size of kernel memory, `64K` or `4M`: from one page to what a busy machine can spare.
///
/// # Errors
///
/// In words.
pub fn parse_buffer(text: &str) -> Result<u32, String> {
    const LEAST: u32 = 4 << 10;
    const MOST: u32 = 256 << 20;
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix(['M', 'm']).map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    match digits.parse::<u32>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(bytes @ LEAST..=MOST) => Ok(bytes),
        Some(_) => Err("must be from 4K to 256M".to_owned()),
        None => Err("give a size such as 64K or 4M".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_with_brackets_and_scopes() {
        let plain: Address = "127.0.0.1".parse().expect("an address");
        assert_eq!((plain.ip.to_string().as_str(), plain.scope), ("127.0.0.1", Scope::None));
        let bracketed: Address = "[::1]".parse().expect("an address");
        assert!(bracketed.ip.is_loopback());
        let scoped: Address = "fe80::1%1".parse().expect("an address");
        assert_eq!(scoped.scope, Scope::Index(1));
        let named: Address = "fe80::1%no-such-if".parse().expect("an address");
        assert!(named.scope.index().expect_err("no such interface").to_string().contains("no-such-if"));
        assert!("localhost".parse::<Address>().expect_err("a name").contains("127.0.0.1 and ::1"));
    }

    #[test]
    fn a_network_namespace_is_named_by_path_or_process() {
        assert_eq!("/run/netns/blue".parse(), Ok(Place(PathBuf::from("/run/netns/blue"))));
        assert_eq!("pid:7".parse(), Ok(Place(PathBuf::from("/proc/7/ns/net"))));
        for wrong in ["", "pid:", "pid:0", "pid:me", "pid:-1"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_comm_is_cut_as_the_kernel_cuts_it() {
        assert_eq!(as_kernel_comm("openclaw-gateway"), "openclaw-gatewa");
        assert_eq!(as_kernel_comm("node"), "node");
    }

    #[test]
    fn an_unset_variable_in_a_rule_recognises_nobody() {
        assert!("".parse::<Regex>().expect_err("empty").contains("--any-owner"));
        assert!(".*".parse::<Regex>().is_err());
        assert!("gateway$".parse::<Regex>().is_ok());
    }

    #[test]
    fn a_buffer_is_a_number_of_bytes_with_a_unit() {
        assert_eq!(parse_buffer("4K"), Ok(4096));
        assert_eq!(parse_buffer("1M"), Ok(1 << 20));
        assert_eq!(parse_buffer("65536"), Ok(65536));
        for wrong in ["", "K", "1", "4G", "-4K", "4 K", "9999999M", "257M", "3K"] {
            assert!(parse_buffer(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn intervals_that_would_spin_are_refused() {
        assert!(parse_interval("1us").is_err());
        assert_eq!(parse_interval("5ms"), Ok(Duration::from_millis(5)));
    }
}
