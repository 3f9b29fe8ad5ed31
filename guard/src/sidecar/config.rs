//! The configuration file: what is guarded, who may ask for what.

mod file;
mod mistake;
#[cfg(test)]
mod tests;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use guard_core::model::{BindSpec, Manager, Uid, UnitId, UnitName};
use guard_core::policy::{CgroupGlob, Pattern, Rules};

pub use self::mistake::Mistake;
use crate::runtime::engine::DRAIN;
use crate::runtime::spelling::{Address, Place, Regex};
use crate::runtime::{Tier, TierChoice};

/// Where the configuration is when nothing else is said.
pub const PATH: &str = "/etc/portguard/portguard.toml";

/// Where the socket is when nothing else is said.
pub const SOCKET: &str = "/run/portguard/portguard.sock";

/// The socket's permissions when nothing else is said.
pub const MODE: u32 = 0o660;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{mistake}", path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What, and where.
        mistake: Mistake,
    },
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where facts come from.
    pub observer: ObserverConfig,
    /// How the sidecar is asked.
    pub api: ApiConfig,
    /// Where its runs are exported to as traces; `None`: nowhere. Needs the feature `otlp`.
    pub otlp: Option<OtlpConfig>,
    /// The guarded services, in the order of their names.
    pub services: Vec<ServiceConfig>,
}

/// Where facts come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObserverConfig {
    /// Which tier.
    pub tier: TierChoice,
    /// No lower tier than this will do.
    pub require: Option<Tier>,
    /// Time between two bind probes in the poll tier.
    pub poll_interval: Duration,
    /// Bytes of kernel memory for events that are not read yet; `None`: each tier's default.
    pub event_buffer: Option<u32>,
}

/// How the sidecar is asked, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiConfig {
    /// The socket's path.
    pub socket: PathBuf,
    /// The socket's permissions.
    pub mode: u32,
    /// The socket's group, by number.
    pub group: Option<u32>,
    /// How many connections at most.
    pub clients: NonZeroUsize,
    /// How many events are kept for readers that come back.
    pub history: NonZeroUsize,
}

/// Where runs are exported to as traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpConfig {
    /// What they are posted to: a URL with host and port.
    pub url: String,
}

/// One guarded service.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Its name.
    pub name: Arc<str>,
    /// What must be bindable, all of it at once. Never empty.
    pub endpoints: Vec<Endpoint>,
    /// The service sets `IPV6_V6ONLY`.
    pub v6only: bool,
    /// The service binds without `SO_REUSEADDR`.
    pub strict_bind: bool,
    /// Its network namespace, where it is not the sidecar's own.
    pub netns: Option<Place>,
    /// Who it is.
    pub recognise: Recognise,
    /// How long each step may take.
    pub budget: Budget,
    /// Open although an ended process has not finished exiting.
    pub port_only: bool,
    /// Destroy sockets as the last resort.
    pub evict: bool,
    /// How it is started again.
    pub restart: Option<Restart>,
    /// Who may see it.
    pub observe: Grant,
    /// Who may restart it.
    pub control: Grant,
}

/// An address and a port, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `None`: wherever a server listens that names no address.
    pub address: Option<Address>,
    /// The port.
    pub port: guard_core::model::Port,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.address {
            Some(address) if address.ip.is_ipv6() => write!(f, "[{}]:{}", address.ip, self.port.get()),
            Some(address) => write!(f, "{}:{}", address.ip, self.port.get()),
            None => write!(f, "[::]:{}", self.port.get()),
        }
    }
}

/// How a service's processes are recognised: kinds combine with AND, repeats
/// of one kind with OR.
#[derive(Clone, Debug, Default)]
pub struct Recognise {
    /// Searched in argv, exe and comm.
    pub patterns: Vec<Regex>,
    /// Paths of the executable.
    pub exe: Vec<String>,
    /// Command names, as the kernel cuts them.
    pub comm: Vec<String>,
    /// Users.
    pub uid: Vec<Uid>,
    /// Paths of the cgroup.
    pub cgroups: Vec<CgroupGlob>,
    /// Everybody.
    pub any_owner: bool,
}

impl Recognise {
    /// As the policy takes them, without the unit that is restarted.
    pub fn rules(&self) -> Rules {
        Rules {
            patterns: self.patterns.iter().map(|regex| Box::new(regex.clone()) as Box<dyn Pattern>).collect(),
            exe: self.exe.clone(),
            comm: self.comm.clone(),
            uid: self.uid.clone(),
            cgroups: self.cgroups.clone(),
            units: Vec::new(),
            any_owner: self.any_owner,
            // Nothing stops a unit first but its own restart, so its manager would start a rival.
            spare_services: true,
        }
    }
}

/// How long each step of a restart may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// From SIGTERM to SIGKILL, for each process; `None`: what its unit grants, or [`DRAIN`].
    pub drain: Option<Duration>,
    /// Until the port is bindable; `None`: the drain budget and 20 s.
    pub timeout: Option<Duration>,
    /// From the start to LISTEN.
    pub start: Duration,
}

/// How a service is started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// By a command: program and arguments. Never empty.
    Command(Vec<String>),
    /// By the manager of this unit, which stops it first.
    Unit {
        /// Whose it is.
        manager: Manager,
        /// Its name.
        name: UnitName,
        /// Exit codes by which it says that a healthy instance of it already runs.
        already_running: Vec<i32>,
    },
}

/// Who may do something. The superuser and the sidecar's own user always may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Grant {
    /// Whoever may connect.
    #[default]
    Everybody,
    /// These.
    Only {
        /// User ids.
        uid: Vec<u32>,
        /// Group ids, the supplementary ones too.
        gid: Vec<u32>,
    },
}

impl Grant {
    /// Nobody but the superuser and the sidecar's own user.
    pub const fn nobody() -> Self {
        Self::Only { uid: Vec::new(), gid: Vec::new() }
    }

    /// Whether a user with these ids is meant.
    pub fn covers(&self, user: u32, groups: &[u32]) -> bool {
        match self {
            Self::Everybody => true,
            Self::Only { uid, gid } => uid.contains(&user) || groups.iter().any(|group| gid.contains(group)),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|mistake| ConfigError::Wrong { path: path.to_owned(), mistake })
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    ///
    /// The first mistake, and where it is.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        file::parse(text)
    }
}

impl ServiceConfig {
    /// What it stands for, in a sentence.
    pub fn in_words(&self) -> String {
        let endpoints: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        let place =
            self.netns.as_ref().map_or_else(String::new, |place| format!(" in {}", place.0.display()));
        let span = |span: Duration| humantime::format_duration(span).to_string();
        let restart = match &self.restart {
            None => "cannot be restarted by a client".to_owned(),
            Some(Restart::Command(argv)) => format!(
                "a restart ends stale holders (SIGKILL after {}) and runs {} once the port is free; nobody in a \
                 systemd service is ended",
                span(self.budget.drain.unwrap_or(DRAIN)),
                argv.join(" "),
            ),
            Some(Restart::Unit { manager, name, .. }) => format!(
                "a restart has systemd stop {}, ends what is left on the port (SIGKILL after {drain}), has systemd \
                 start it once the port is free, and follows it for {} until it listens",
                UnitId { manager: *manager, name: name.clone() },
                span(self.budget.start),
                drain = self.budget.drain.map_or_else(|| "the unit's TimeoutStopSec=".to_owned(), span),
            ),
        };
        format!("{}: {}{place}; {restart}", self.name, endpoints.join(" and "))
    }

    /// The bind specs, for a thread that is in the service's network namespace:
    /// an interface's name means something only there.
    ///
    /// # Errors
    ///
    /// When an address names an interface that does not exist.
    pub fn bind_specs(&self) -> Result<Vec<BindSpec>, crate::runtime::spelling::NoInterface> {
        let mut specs: Vec<BindSpec> = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            let address = endpoint.address.clone().unwrap_or_else(Address::everywhere);
            let spec = BindSpec {
                address: address.ip,
                scope: address.scope.index()?,
                port: endpoint.port,
                v6only: self.v6only && address.ip.is_ipv6(),
                reuse_address: !self.strict_bind,
                reuse_port: false,
            };
            if !specs.contains(&spec) {
                specs.push(spec);
            }
        }
        Ok(specs)
    }
}
