//! What a process needs that stays: its socket, its service manager, its rights.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

pub use crate::kernel::memory::{give_back, return_large_blocks};
use crate::kernel::notify;
pub use crate::kernel::notify::Notify;
pub use crate::kernel::privileges::{give_up_capabilities, raise_descriptor_limit};
use crate::kernel::unix_socket;
pub use crate::kernel::unix_socket::{SocketFile, UnixSocketError, peer_groups};

/// The socket that the service manager handed over, else one at `path` with its
/// file: what was handed over is not to be removed.
///
/// # Errors
///
/// See [`UnixSocketError`].
pub fn listen(
    path: &Path,
    mode: u32,
    group: Option<u32>,
) -> Result<(UnixListener, Option<SocketFile>), UnixSocketError> {
    match unix_socket::handed_over(variable("LISTEN_PID"), variable("LISTEN_FDS"))? {
        Some(listener) => Ok((listener, None)),
        None => unix_socket::listen_at(path, mode, group).map(|(listener, file)| (listener, Some(file))),
    }
}

/// The service manager, if one wants to know.
///
/// # Errors
///
/// When its address cannot be used.
pub fn service_manager() -> io::Result<Option<Notify>> {
    Notify::from_env(variable("NOTIFY_SOCKET"))
}

/// How often the service manager's watchdog wants to hear.
pub fn watchdog_interval() -> Option<Duration> {
    notify::watchdog_interval(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"))
}

/// The user that this process acts as.
pub fn own_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}
