//! systemd, over D-Bus: what its managers say about a unit, and what they are
//! asked to do. The only module that names `zbus`.
//!
//! A job is waited for by the manager's own signals, never by asking again.

mod connect;
mod unit;

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream;
use guard_core::model::{Manager, Unit, UnitName};
use guard_core::restart::{JobKind, JobResult, UnitDetails};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant};

use crate::kernel::bus_socket::BusSocketError;

pub use crate::kernel::bus_socket::own_uid;

/// The manager's well-known name, object and interfaces: see `org.freedesktop.systemd1(5)`.
const NAME: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Why a service manager could not be asked, or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// There is no bus to reach the manager by.
    #[error("{} cannot be reached: {source}", words(*manager))]
    NoBus {
        /// Which manager.
        manager: Manager,
        /// What the system said.
        source: BusSocketError,
    },
    /// The bus, or the manager behind it, did not answer as it should.
    #[error("{operation} failed: {source}")]
    Failed {
        /// What was tried.
        operation: String,
        /// What D-Bus said.
        source: Box<zbus::Error>,
    },
    /// The manager, or the policy behind it, said no.
    #[error(
        "{operation} was denied: {message}; it needs root, or a polkit rule for org.freedesktop.systemd1.manage-units"
    )]
    Denied {
        /// What was tried.
        operation: String,
        /// The manager's own words.
        message: String,
    },
    /// The manager knows no such unit.
    #[error("{} has no unit {name}: {message}", words(*manager))]
    NoUnit {
        /// Which manager.
        manager: Manager,
        /// The name that was asked for.
        name: UnitName,
        /// The manager's own words.
        message: String,
    },
    /// The manager's answer has another form than is documented.
    #[error("{operation}: the answer has no usable {what}")]
    Malformed {
        /// What was asked.
        operation: String,
        /// What is missing.
        what: &'static str,
    },
    /// The manager keeps one waiting.
    #[error("{} has not answered within {after:?}", words(*manager))]
    Late {
        /// Which manager.
        manager: Manager,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection broke.
    #[error("the connection to {} broke", words(*manager))]
    Lost {
        /// Which manager.
        manager: Manager,
    },
}

/// The manager in words.
fn words(manager: Manager) -> String {
    match manager {
        Manager::System => "the system's service manager (systemd)".to_owned(),
        Manager::User(uid) => format!("the service manager of user {uid} (systemd --user)"),
    }
}

/// What a manager told unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A job on the unit is over.
    JobOver {
        /// Which.
        job: Job,
        /// How it ended.
        result: JobResult,
    },
    /// Something about the unit changed: read it again.
    Changed,
    /// Nothing more will be heard.
    Lost,
}

/// A job that the manager was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job(OwnedObjectPath);

/// A unit, by a connection to its manager.
#[derive(Debug)]
pub struct UnitDoor {
    manager: Manager,
    name: UnitName,
    object: OwnedObjectPath,
    connection: Connection,
    heard: mpsc::UnboundedReceiver<Heard>,
    listener: AbortHandle,
}

impl Drop for UnitDoor {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl UnitDoor {
    /// Connects to `manager`, finds the unit and listens to what is said about
    /// it. Needs a running tokio reactor.
    ///
    /// # Errors
    ///
    /// See [`SystemdError`].
    pub async fn open(manager: Manager, name: &UnitName) -> Result<Self, SystemdError> {
        let connection = connect::connect(manager).await?;
        let operation = || format!("asking {} for {name}", words(manager));
        let sort = |error| sort_out(error, manager, name, operation());
        // Signals are sent only while somebody has subscribed.
        call(&connection, OBJECT, MANAGER, "Subscribe", &()).await.map_err(sort)?;
        let answer = call(&connection, OBJECT, MANAGER, "LoadUnit", &(name.as_str(),)).await.map_err(sort)?;
        let object: OwnedObjectPath = answer.body().deserialize().map_err(sort)?;
        let jobs = MatchRule::builder()
            .msg_type(Type::Signal)
            .interface(MANAGER)
            .member("JobRemoved")
            .arg(2, name.as_str())
            .build()
            .map_err(sort)?;
        let changes = MatchRule::builder()
            .msg_type(Type::Signal)
            .interface(PROPERTIES)
            .member("PropertiesChanged")
            .path(object.as_str())
            .build()
            .map_err(sort)?;
        let jobs = MessageStream::for_match_rule(jobs, &connection, None).await.map_err(sort)?;
        let changes = MessageStream::for_match_rule(changes, &connection, None).await.map_err(sort)?;
        let (sender, heard) = mpsc::unbounded_channel();
        let listener = tokio::spawn(listen(jobs, changes, sender)).abort_handle();
        Ok(Self { manager, name: name.clone(), object, connection, heard, listener })
    }

    /// What the manager says about the unit now.
    ///
    /// # Errors
    ///
    /// See [`SystemdError`]; [`SystemdError::NoUnit`] for a unit without a file.
    pub async fn read(&self) -> Result<(Unit, UnitDetails), SystemdError> {
        let general = self.properties(UNIT).await?;
        if let Some(message) = unit::why_not_loaded(&general) {
            let (manager, name) = (self.manager, self.name.clone());
            return Err(SystemdError::NoUnit { manager, name, message });
        }
        let service = self.properties(SERVICE).await?;
        unit::read(self.manager, &general, &service)
            .map_err(|what| SystemdError::Malformed { operation: format!("reading {}", self.name), what })
    }

    /// Asks for a job on the unit.
    ///
    /// # Errors
    ///
    /// See [`SystemdError`].
    pub async fn ask_for(&self, job: JobKind) -> Result<Job, SystemdError> {
        let (method, verb) = match job {
            JobKind::Stop => ("StopUnit", "stopping"),
            JobKind::Start => ("StartUnit", "starting"),
        };
        let sort = |error| sort_out(error, self.manager, &self.name, format!("{verb} {}", self.name));
        // "replace" is what systemctl asks for: the job takes the place of a contrary one.
        let body = (self.name.as_str(), "replace");
        let answer = call(&self.connection, OBJECT, MANAGER, method, &body).await.map_err(sort)?;
        Ok(Job(answer.body().deserialize().map_err(sort)?))
    }

    /// Forgets that the unit failed, and how often it was started: a latched
    /// start limit would refuse the next start.
    ///
    /// # Errors
    ///
    /// See [`SystemdError`].
    pub async fn reset_failed(&self) -> Result<(), SystemdError> {
        let sort = |error| {
            sort_out(error, self.manager, &self.name, format!("resetting the failure of {}", self.name))
        };
        let body = (self.name.as_str(),);
        match call(&self.connection, OBJECT, MANAGER, "ResetFailedUnit", &body).await.map_err(sort) {
            // A unit that stopped well may be unloaded, and then there is nothing to forget.
            Ok(_) | Err(SystemdError::NoUnit { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What the manager tells next. Cancel safe.
    pub async fn heard(&mut self) -> Heard {
        self.heard.recv().await.unwrap_or(Heard::Lost)
    }

    async fn properties(&self, interface: &str) -> Result<HashMap<String, OwnedVariant>, SystemdError> {
        let sort = |error| sort_out(error, self.manager, &self.name, format!("reading {}", self.name));
        let answer = call(&self.connection, self.object.as_str(), PROPERTIES, "GetAll", &(interface,))
            .await
            .map_err(sort)?;
        answer.body().deserialize().map_err(sort)
    }
}

/// What the manager says about one unit, asked once.
///
/// # Errors
///
/// See [`SystemdError`].
pub async fn ask_about(manager: Manager, name: &UnitName) -> Result<(Unit, UnitDetails), SystemdError> {
    UnitDoor::open(manager, name).await?.read().await
}

async fn call<B>(
    connection: &Connection,
    object: &str,
    interface: &str,
    method: &str,
    body: &B,
) -> zbus::Result<zbus::Message>
where
    B: serde::Serialize + zbus::DynamicType,
{
    connection.call_method(Some(NAME), object, Some(interface), method, body).await
}

/// Passes on what the bus says, so that its queue is never full.
async fn listen(mut jobs: MessageStream, mut changes: MessageStream, out: mpsc::UnboundedSender<Heard>) {
    loop {
        let heard = tokio::select! {
            biased;
            job = next(&mut jobs) => match job {
                Some(message) => {
                    let body = message.body();
                    match body.deserialize::<(u32, OwnedObjectPath, &str, &str)>() {
                        Ok((_, job, _, result)) => Heard::JobOver { job: Job(job), result: JobResult::from_name(result) },
                        // Another form than is documented: the deadline will tell.
                        Err(_) => continue,
                    }
                }
                None => Heard::Lost,
            },
            change = next(&mut changes) => if change.is_some() { Heard::Changed } else { Heard::Lost },
        };
        let last = heard == Heard::Lost;
        if out.send(heard).is_err() || last {
            return;
        }
    }
}

/// `None` once the connection is over.
async fn next(stream: &mut MessageStream) -> Option<zbus::Message> {
    poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await?.ok()
}

fn sort_out(error: zbus::Error, manager: Manager, name: &UnitName, operation: String) -> SystemdError {
    let denied =
        |message: &str| SystemdError::Denied { operation: operation.clone(), message: message.to_owned() };
    match &error {
        zbus::Error::MethodError(kind, message, _) => {
            let message = message.clone().unwrap_or_default();
            match kind.as_str() {
                "org.freedesktop.systemd1.NoSuchUnit" | "org.freedesktop.systemd1.LoadFailed" => {
                    SystemdError::NoUnit { manager, name: name.clone(), message }
                }
                "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => denied(&message),
                _ => SystemdError::Failed { operation, source: Box::new(error) },
            }
        }
        zbus::Error::FDO(fdo) => match &**fdo {
            zbus::fdo::Error::AccessDenied(message)
            | zbus::fdo::Error::AuthFailed(message)
            | zbus::fdo::Error::InteractiveAuthorizationRequired(message) => denied(message),
            _ => SystemdError::Failed { operation, source: Box::new(error) },
        },
        _ => SystemdError::Failed { operation, source: Box::new(error) },
    }
}
