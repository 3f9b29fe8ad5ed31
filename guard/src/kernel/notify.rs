//! Telling a service manager how things are (`sd_notify(3)`).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// Where the service manager listens.
#[derive(Debug)]
pub struct Notify {
    socket: UnixDatagram,
    address: std::os::unix::net::SocketAddr,
}

impl Notify {
    /// From the value of `NOTIFY_SOCKET`; `None` when nobody listens.
    ///
    /// # Errors
    ///
    /// When the address cannot be used.
    pub fn from_env(address: Option<OsString>) -> io::Result<Option<Self>> {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;
        let Some(address) = address.filter(|address| !address.is_empty()) else { return Ok(None) };
        let address = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Some(Self { socket, address }))
    }

    /// Sends lines such as `READY=1`. Never blocks: a service manager that does
    /// not read is not waited for.
    ///
    /// # Errors
    ///
    /// When it was not sent.
    pub fn send(&self, lines: &str) -> io::Result<()> {
        self.socket.send_to_addr(lines.as_bytes(), &self.address).map(drop)
    }
}

/// How often the watchdog wants to hear, from `WATCHDOG_USEC` and
/// `WATCHDOG_PID`: twice as often as it must.
pub fn watchdog_interval(usec: Option<OsString>, pid: Option<OsString>) -> Option<Duration> {
    let number = |text: OsString| text.into_string().ok()?.parse::<u64>().ok();
    if pid.is_some_and(|pid| number(pid) != Some(u64::from(std::process::id()))) {
        return None;
    }
    let half = number(usec?)? / 2;
    (half > 0).then(|| Duration::from_micros(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_arrives_at_a_path_and_at_an_abstract_name() {
        use std::os::linux::net::SocketAddrExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("portguard-test-{}", std::process::id());
        let abstract_name = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
        let managers = [
            (UnixDatagram::bind(&path).expect("a socket"), path.into_os_string()),
            (UnixDatagram::bind_addr(&abstract_name).expect("a socket"), OsString::from(format!("@{name}"))),
        ];
        for (manager, address) in managers {
            let notify = Notify::from_env(Some(address)).expect("an address").expect("a manager");
            notify.send("READY=1\nSTATUS=watching").expect("sent");
            let mut buffer = [0; 64];
            let length = manager.recv(&mut buffer).expect("a state");
            assert_eq!(&buffer[..length], b"READY=1\nSTATUS=watching");
        }
        assert!(Notify::from_env(None).expect("nobody").is_none());
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_must_be() {
        let some = |text: &str| Some(OsString::from(text));
        assert_eq!(watchdog_interval(some("30000000"), None), Some(Duration::from_secs(15)));
        assert_eq!(watchdog_interval(some("30000000"), some("1")), None);
        assert_eq!(watchdog_interval(None, None), None);
        assert_eq!(watchdog_interval(some("0"), None), None);
    }
}
