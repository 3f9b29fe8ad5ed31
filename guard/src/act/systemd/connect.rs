//! Which bus a manager is on.

use std::path::PathBuf;

use guard_core::model::Manager;
use zbus::Connection;
use zbus::connection::Builder;

use super::{SystemdError, words};
use crate::kernel::bus_socket;

/// Where the specification puts the system's bus.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// Connects to the bus that `manager` is on, as the user it belongs to.
pub(super) async fn connect(manager: Manager) -> Result<Connection, SystemdError> {
    let (path, uid) = match manager {
        Manager::System => (PathBuf::from(SYSTEM_BUS), bus_socket::own_uid()),
        // A user's bus turns away everybody else, root included.
        Manager::User(uid) => (PathBuf::from(format!("/run/user/{uid}/bus")), uid),
    };
    let stream = bus_socket::connect(&path, uid).map_err(|source| SystemdError::NoBus { manager, source })?;
    Builder::unix_stream(stream).user_id(uid.0).build().await.map_err(|error| SystemdError::Failed {
        operation: format!("introducing portguard to {}", words(manager)),
        source: Box::new(error),
    })
}
