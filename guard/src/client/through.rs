//! What one command wants to know of a sidecar that serves exactly what it was asked about.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_core::model::{BindSpec, Instant, Manager, UnitName};
use serde_json::Value;

use super::connection::{ClientError, Connection, Events};
use super::events::{Event, What};
use super::look::Look;
use crate::runtime::{daemon, netns, now};
use crate::sidecar::documents::{
    EndpointDocument, GateDocument, RunAccepted, RunDocument, ServiceList, ServiceSummary, UnitDocument,
};

/// How long a sidecar may take to say what it serves: it knows by heart.
const ANSWER: Duration = Duration::from_millis(500);

/// How long it may take for an answer to a request that has a deadline of its own.
const GRACE: Duration = Duration::from_millis(300);

/// How long it may take until a run is accepted, and then until it can be followed.
const ACCEPTED: Duration = Duration::from_secs(5);

/// How long it may take for a look: longer than it waits for one itself.
const LOOK: Duration = Duration::from_millis(2500);

/// How often a sidecar without room for one more client is asked again what became of a run, and how long after, unless
/// something happens.
const SEATS_TRIED: u32 = 50;
const SEATS_PAUSE: Duration = Duration::from_millis(200);

/// Where a sidecar may be.
#[derive(Clone, Debug)]
pub struct Door {
    /// Its socket.
    pub socket: PathBuf,
    /// Somebody said so; else it is where one usually is.
    pub named: bool,
}

/// Why a sidecar is not asked.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is not there, or does not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It takes too long.
    #[error("the sidecar does not answer within {0:?}")]
    Late(Duration),
    /// It could say anything.
    #[error("the process behind {} is of uid {uid}: only root's sidecar and one's own are trusted unasked", path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Whose process it is.
        uid: u32,
    },
    /// It serves something else, as far as this user may see.
    #[error("the sidecar serves no service with exactly these endpoints in this network namespace")]
    OtherEndpoints,
    /// It has no service of that name or unit, as far as this user may see.
    #[error("the sidecar has no service {0}, nor one that is this unit")]
    OtherName(String),
    /// Each would be restarted with its own ports only.
    #[error("several services of the sidecar are the unit {unit}: name one of {services}")]
    Several {
        /// The unit.
        unit: String,
        /// Their names.
        services: String,
    },
}

impl Unfit {
    /// There is simply none.
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::Client(ClientError::Absent { .. }))
    }

    /// The socket is not for this user.
    pub const fn is_denied(&self) -> bool {
        matches!(self, Self::Client(ClientError::Denied { .. }))
    }
}

/// A service of a running sidecar.
#[derive(Debug)]
pub struct Served {
    socket: PathBuf,
    connection: Connection,
    summary: ServiceSummary,
}

impl Door {
    async fn services(&self) -> Result<(Connection, Vec<ServiceSummary>), Unfit> {
        let mut connection = Connection::open(&self.socket).await?;
        if let Some(uid) = connection.peer
            && !self.named
            && uid != 0
            && uid != daemon::own_user()
        {
            return Err(Unfit::Stranger { path: self.socket.clone(), uid });
        }
        let list: ServiceList = within(ANSWER, connection.get("/v1/services")).await?;
        Ok((connection, list.services))
    }

    /// The service with exactly these endpoints in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// See [`Unfit`].
    pub async fn serves(&self, endpoints: &[BindSpec]) -> Result<Served, Unfit> {
        let (connection, services) = self.services().await?;
        let here = netns::current().map_err(|_| Unfit::OtherEndpoints)?;
        let fits =
            |service: &ServiceSummary| service.netns == Some(here.0) && same(&service.endpoints, endpoints);
        let summary = services.into_iter().find(fits).ok_or(Unfit::OtherEndpoints)?;
        Ok(Served { socket: self.socket.clone(), connection, summary })
    }

    /// The service of that name, or else the one that is this unit of the system's manager; with a
    /// `manager`, only the one that is this unit of it.
    ///
    /// # Errors
    ///
    /// See [`Unfit`].
    pub async fn named(&self, name: &str, manager: Option<Manager>) -> Result<Served, Unfit> {
        let (connection, services) = self.services().await?;
        let summary = named(services, name, manager)?;
        Ok(Served { socket: self.socket.clone(), connection, summary })
    }
}

fn named(
    mut services: Vec<ServiceSummary>,
    name: &str,
    manager: Option<Manager>,
) -> Result<ServiceSummary, Unfit> {
    let of_name = |service: &ServiceSummary| manager.is_none() && service.name == name;
    if let Some(index) = services.iter().position(of_name) {
        return Ok(services.swap_remove(index));
    }
    let unit = UnitDocument::new(manager.unwrap_or(Manager::System), &UnitName::new(name));
    services.retain(|service| service.unit.as_ref() == Some(&unit));
    match services.pop() {
        Some(only) if services.is_empty() => Ok(only),
        Some(last) => {
            let names: Vec<&str> =
                services.iter().chain([&last]).map(|service| service.name.as_str()).collect();
            Err(Unfit::Several { unit: unit.name, services: names.join(", ") })
        }
        None => Err(Unfit::OtherName(name.to_owned())),
    }
}

/// The same addresses, ports and flags, in whatever order.
fn same(served: &[EndpointDocument], asked: &[BindSpec]) -> bool {
    // A number of an interface may be another one's tomorrow: those are never the same.
    let plain = served.iter().all(|one| one.interface.is_none())
        && asked.iter().all(|spec| spec.scope == 0 && !spec.reuse_port);
    let mut served: Vec<_> =
        served.iter().map(|one| (one.address, one.port, one.v6only, one.reuse_address)).collect();
    let mut asked: Vec<_> =
        asked.iter().map(|spec| (spec.address, spec.port.get(), spec.v6only, spec.reuse_address)).collect();
    served.sort_unstable();
    served.dedup();
    asked.sort_unstable();
    asked.dedup();
    plain && served == asked
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, Unfit> {
    Ok(tokio::time::timeout(limit, answer).await.map_err(|_| Unfit::Late(limit))??)
}

/// How waiting for a gate ended.
#[derive(Debug)]
pub enum Waited {
    /// It is open.
    Opened {
        /// When the bind that succeeded began.
        probed: Instant,
        /// From the kernel's last event about the release to the opening.
        release_latency: Option<Duration>,
    },
    /// It was not bindable in time.
    StillBusy,
    /// The sidecar did not say: why.
    Unanswered(String),
}

impl Served {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.summary.name
    }

    /// The socket that it is asked through.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where facts come from.
    pub fn tier(&self) -> &str {
        &self.summary.tier
    }

    /// The configuration says how it is started.
    pub const fn can_restart(&self) -> bool {
        self.summary.can_restart
    }

    /// It is this unit of the system's manager.
    pub fn is_unit(&self, name: &UnitName) -> bool {
        self.summary.unit == Some(UnitDocument::new(Manager::System, name))
    }

    /// Waits until it is bindable, for no longer than `timeout`.
    pub async fn gate(&mut self, timeout: Duration) -> Waited {
        let target = format!("/v1/gate/{}?timeout={}us", self.summary.name, timeout.as_micros());
        let opened: Result<GateDocument, _> =
            within(timeout.saturating_add(GRACE), self.connection.get(&target)).await;
        match opened {
            Ok(GateDocument { open: true, probed_mono_ns, release_latency_us, .. }) => Waited::Opened {
                probed: Instant::from_nanos(probed_mono_ns),
                release_latency: release_latency_us
                    .and_then(|span| Duration::try_from_secs_f64(span / 1e6).ok()),
            },
            Ok(_) => Waited::Unanswered("its gate is neither open nor closed".to_owned()),
            Err(Unfit::Client(ClientError::Refused { code: 504, .. })) => Waited::StillBusy,
            Err(error) => Waited::Unanswered(error.to_string()),
        }
    }

    /// Looks at it on connections of their own.
    pub fn looker(&self) -> Looker {
        Looker { socket: self.socket.clone(), name: self.summary.name.clone() }
    }

    /// Asks for a run that ends holders, and follows it.
    ///
    /// # Errors
    ///
    /// See [`NotBegun`].
    pub async fn begin(mut self, command: Command) -> Result<Run, NotBegun> {
        let name = self.summary.name.clone();
        let target = format!("/v1/services/{name}/{}", command.name());
        match within(ACCEPTED, self.connection.post(&target)).await {
            Ok(RunAccepted { run, joined, after, .. }) => {
                // From before the request on. An older sidecar does not say where that is.
                let after = Some(after.as_str()).filter(|after| !after.is_empty());
                let gap = after.is_none();
                let events = match within(ACCEPTED, self.connection.events_of(&name, after)).await {
                    Ok(events) => events,
                    Err(error) => return Err(NotBegun::Unfollowed { run, why: error.to_string() }),
                };
                let (told, missed) = (0, VecDeque::new());
                Ok(Run { run, command, joined, socket: self.socket, events, told, gap, tries: 0, missed })
            }
            Err(Unfit::Client(ClientError::Refused { code: 403, message, .. })) => {
                Err(NotBegun::Forbidden(message))
            }
            Err(Unfit::Client(ClientError::Refused { error, message, .. })) if error == "no_restart" => {
                Err(NotBegun::NoRestart(message))
            }
            Err(Unfit::Client(ClientError::Refused { error, message, .. })) if error == "is_unit" => {
                Err(NotBegun::IsUnit(message))
            }
            Err(Unfit::Client(ClientError::Refused { message, .. })) => Err(NotBegun::NotAsked(message)),
            Err(error) => Err(NotBegun::Unknown(error.to_string())),
        }
    }
}

/// Has a service looked at.
#[derive(Clone, Debug)]
pub struct Looker {
    socket: PathBuf,
    name: String,
}

impl Looker {
    /// Has it looked at now.
    ///
    /// # Errors
    ///
    /// When there is no answer, or none that is younger than the question.
    pub async fn look(&self) -> Result<Look, String> {
        let asked = now();
        let ask = async {
            let mut connection = Connection::open(&self.socket).await?;
            let target = format!("/v1/services/{}?after={}", self.name, asked.as_nanos());
            connection.get::<Value>(&target).await
        };
        let document = within(LOOK, ask).await.map_err(|error| error.to_string())?;
        let looked = document["looked_mono_ns"].as_u64().map(Instant::from_nanos);
        if looked.is_none_or(|looked| looked < asked) {
            return Err("what it knows is older than the question".to_owned());
        }
        Look::new(document["snapshot"].clone()).ok_or_else(|| "its snapshot cannot be read".to_owned())
    }
}

/// What a sidecar is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A restart.
    Restart,
    /// The end of stale holders.
    Free,
}

impl Command {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Free => "free",
        }
    }
}

/// Why there is no run to follow.
#[derive(Debug)]
pub enum NotBegun {
    /// This user may not.
    Forbidden(String),
    /// Nothing says how the service is started.
    NoRestart(String),
    /// Only its manager stops it.
    IsUnit(String),
    /// It was not asked for, or refused: nothing has begun.
    NotAsked(String),
    /// The sidecar died with the request in its hands.
    Unknown(String),
    /// It has begun, and nothing tells how it goes on.
    Unfollowed {
        /// The run's id.
        run: String,
        /// What is in the way.
        why: String,
    },
}

/// A run that the sidecar carries out.
#[derive(Debug)]
pub struct Run {
    /// Its id.
    pub run: String,
    /// What for.
    pub command: Command,
    /// It was under way already.
    pub joined: bool,
    socket: PathBuf,
    events: Events,
    /// The number of the last event of it that was told.
    told: u64,
    /// The stream has left something out.
    gap: bool,
    /// How often a sidecar that is full was asked what that was.
    tries: u32,
    /// What that was, and is still to be told.
    missed: VecDeque<(Event, Value)>,
}

/// The next that there is of a run.
#[derive(Debug)]
pub enum Followed {
    /// It goes on.
    Event {
        /// As it was sent.
        event: Value,
        /// In words.
        words: String,
        /// When it happened.
        at: Instant,
        /// It says no more than others do.
        minor: bool,
    },
    /// It has ended, with this event.
    Ended {
        /// As it was sent.
        event: Value,
        /// In words.
        words: String,
        /// When it happened.
        at: Instant,
        /// As the command ends.
        exit_code: u8,
    },
}

impl Run {
    /// What happens next. Cancel safe.
    ///
    /// # Errors
    ///
    /// When the sidecar is gone: how the run ends is not known then.
    pub async fn next(&mut self) -> Result<Followed, ClientError> {
        loop {
            if let Some((event, value)) = self.missed.pop_front() {
                self.told = event.seq;
                return Ok(followed(&event, value));
            }
            if !self.gap {
                let told = self.events.next().await?;
                let Some(event) = Event::parse(&told.json) else { continue };
                if matches!(event.what, What::Lagged { .. }) {
                    (self.gap, self.tries) = (true, 0);
                } else if event.run.as_deref() == Some(&self.run) && event.seq > self.told {
                    self.told = event.seq;
                    return Ok(followed(&event, serde_json::from_str(&told.json).unwrap_or_default()));
                }
                continue;
            }
            match self.since_told().await {
                Ok(missed) => (self.gap, self.missed) = (false, missed),
                // It serves as many clients as it may. What the stream says meanwhile is in the next answer too.
                Err(ClientError::Refused { code: 503, .. }) if self.tries < SEATS_TRIED => {
                    self.tries += 1;
                    if let Ok(told) = tokio::time::timeout(SEATS_PAUSE, self.events.next()).await {
                        told?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What became of the run since the last event that was told, as far as it is kept.
    async fn since_told(&self) -> Result<VecDeque<(Event, Value)>, ClientError> {
        let mut connection = Connection::open(&self.socket).await?;
        let document: RunDocument = connection.get(&format!("/v1/runs/{}", self.run)).await?;
        let read = |value: Value| Some((serde_json::from_value::<Event>(value.clone()).ok()?, value));
        let events = document.events.into_iter().filter_map(read);
        Ok(events.filter(|(event, _)| event.seq > self.told).collect())
    }
}

fn followed(event: &Event, value: Value) -> Followed {
    let words = super::words::sentence(event);
    let at = Instant::from_nanos(event.mono_ns);
    match &event.what {
        What::RunFinished { exit_code, .. } => {
            Followed::Ended { event: value, words, at, exit_code: *exit_code }
        }
        what => Followed::Event { event: value, words, at, minor: super::words::is_minor(what) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guard_core::model::{Port, Uid};

    fn spec(address: &str, port: u16) -> BindSpec {
        BindSpec {
            address: address.parse().expect("an address"),
            scope: 0,
            port: Port::new(port).expect("a port"),
            v6only: false,
            reuse_address: true,
            reuse_port: false,
        }
    }

    fn document(address: &str, port: u16) -> EndpointDocument {
        EndpointDocument {
            address: address.parse().expect("an address"),
            port,
            v6only: false,
            reuse_address: true,
            interface: None,
        }
    }

    #[test]
    fn a_service_is_known_by_its_name_and_by_its_unit() {
        let service = |name: &str, unit: Option<(&str, Manager)>| ServiceSummary {
            name: name.to_owned(),
            verdict: "free".to_owned(),
            tier: "poll".to_owned(),
            shortfall: None,
            looked_mono_ns: None,
            endpoints: Vec::new(),
            netns: None,
            can_restart: true,
            unit: unit.map(|(unit, manager)| UnitDocument::new(manager, &UnitName::new(unit))),
            run: None,
            last_run: None,
        };
        let alice = Manager::User(Uid(7));
        let found = |name: &str, manager: Option<Manager>| {
            let services = vec![
                service("plain", None),
                service("web", Some(("gateway.service", Manager::System))),
                service("of-alice", Some(("gateway.service", alice))),
                service("gateway", Some(("other.service", Manager::System))),
                service("left", Some(("twin.service", Manager::System))),
                service("right", Some(("twin.service", Manager::System))),
            ];
            named(services, name, manager).map(|service| service.name)
        };
        assert_eq!(found("plain", None).expect("its name"), "plain");
        assert_eq!(found("gateway.service", None).expect("its unit"), "web");
        assert_eq!(found("gateway", None).expect("a name goes before a unit"), "gateway");
        assert_eq!(found("gateway", Some(alice)).expect("her unit"), "of-alice");
        assert!(matches!(found("plain", Some(alice)), Err(Unfit::OtherName(_))));
        assert!(matches!(found("plain.service", None), Err(Unfit::OtherName(_))));
        let several = found("twin.service", None).expect_err("two");
        assert!(several.to_string().ends_with("twin.service: name one of left, right"), "{several}");
    }

    #[test]
    fn only_exactly_the_same_endpoints_are_the_same() {
        let served = [document("127.0.0.1", 80), document("::1", 80)];
        let asked = [spec("::1", 80), spec("127.0.0.1", 80)];
        assert!(same(&served, &asked));
        assert!(!same(&served, &asked[..1]), "one is missing");
        assert!(!same(&served[..1], &asked), "one is too many");
        assert!(!same(&[document("0.0.0.0", 80)], &[spec("127.0.0.1", 80)]));
        assert!(!same(&[document("127.0.0.1", 81)], &[spec("127.0.0.1", 80)]));
        let strict = BindSpec { reuse_address: false, ..spec("::1", 80) };
        assert!(!same(&served[1..], &[strict]), "--strict-bind");
        assert!(!same(&served[1..], &[BindSpec { v6only: true, ..spec("::1", 80) }]), "--v6only");
        let scoped = EndpointDocument { interface: Some("eth0".to_owned()), ..document("fe80::1", 80) };
        assert!(!same(&[scoped], &[spec("fe80::1", 80)]));
        assert!(!same(&[document("fe80::1", 80)], &[BindSpec { scope: 2, ..spec("fe80::1", 80) }]));
    }
}
