//! A network namespace for each test.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::child::FORKING;
use crate::process::{PidFd, reap};

/// The network namespace of the current thread. Dropping a private one ends every
/// process that still lives in it: the test made them all.
#[derive(Debug)]
pub struct Netns {
    link: std::path::PathBuf,
    /// Whether it is the tests' own, and all who live in it.
    private: bool,
    /// The ports that were given: the kernel may choose one twice.
    given: Mutex<BTreeSet<u16>>,
}

impl Netns {
    /// Moves the current thread, and with it every process it starts, into a new
    /// network namespace whose loopback interface is up.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`.
    pub fn enter() -> Result<Self> {
        // Orphans come to this process, so a test can see how they end.
        nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET) for a private network namespace")?;
        raise_loopback().context("bring lo up")?;
        Self::current(true)
    }

    /// The namespace in which the thread already is, which the test shares with whoever lives in it.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn shared() -> Result<Self> {
        nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
        Self::current(false)
    }

    fn current(private: bool) -> Result<Self> {
        let link = std::fs::read_link("/proc/thread-self/ns/net").context("read /proc/thread-self/ns/net")?;
        Ok(Self { link, private, given: Mutex::default() })
    }

    /// A port that nobody in this namespace uses, chosen by the kernel; never the same twice.
    ///
    /// # Panics
    /// When not even port 0 can be bound.
    pub fn free_port(&self) -> u16 {
        loop {
            let port = Self::chosen_port();
            if self.given.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
                return port;
            }
        }
    }

    fn chosen_port() -> u16 {
        let _nobody_keeps_it = FORKING.write().unwrap_or_else(PoisonError::into_inner);
        let fd = socket(IpAddr::V4(Ipv4Addr::UNSPECIFIED), false).expect("a TCP socket");
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))
            .expect("bind port 0");
        let name: SockaddrStorage = socket::getsockname(fd.as_raw_fd()).expect("getsockname");
        name.as_sockaddr_in().expect("an IPv4 name").port()
    }

    /// The truth about a port, by `bind()` itself: `SO_REUSEADDR` as asked, dual-stack for `[::]`.
    ///
    /// # Errors
    /// `EADDRINUSE` and whatever else `bind()` says.
    pub fn bind(&self, address: SocketAddr, reuse: bool) -> nix::Result<OwnedFd> {
        let fd = socket(address.ip(), reuse)?;
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(fd)
    }

    /// Whether a service with `SO_REUSEADDR` could bind `address:port` now.
    pub fn bindable(&self, address: &str, port: u16) -> bool {
        let address = address.parse().expect("an IP address");
        self.binds(SocketAddr::new(address, port), true)
    }

    /// Whether a service without `SO_REUSEADDR` could bind `address:port` now.
    pub fn strictly_bindable(&self, address: &str, port: u16) -> bool {
        let address = address.parse().expect("an IP address");
        self.binds(SocketAddr::new(address, port), false)
    }

    fn binds(&self, address: SocketAddr, reuse: bool) -> bool {
        let _nobody_keeps_it = FORKING.write().unwrap_or_else(PoisonError::into_inner);
        self.bind(address, reuse).is_ok()
    }

    /// Whether a service could bind `address:port` now and listen.
    ///
    /// # Errors
    /// Whatever else `bind()` and `listen()` say than `EADDRINUSE`.
    pub fn serviceable(&self, address: IpAddr, port: u16, reuse: bool, v6only: bool) -> Result<bool> {
        // A process that is just being started would keep it for a moment.
        let _nobody_keeps_it = FORKING.write().unwrap_or_else(PoisonError::into_inner);
        let fd = socket(address, reuse).context("a TCP socket")?;
        if v6only {
            socket::setsockopt(&fd, sockopt::Ipv6V6Only, &true).context("IPV6_V6ONLY")?;
        }
        let name = SockaddrStorage::from(SocketAddr::new(address, port));
        match socket::bind(fd.as_raw_fd(), &name).and_then(|()| socket::listen(&fd, socket::Backlog::new(1)?))
        {
            Ok(()) => Ok(true),
            Err(Errno::EADDRINUSE) => Ok(false),
            Err(errno) => Err(errno).with_context(|| format!("bind {address} port {port} and listen")),
        }
    }

    /// Every process whose main thread lives in this namespace.
    fn inhabitants(&self) -> Vec<i32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| self.has(*pid))
            .collect()
    }

    fn has(&self, pid: i32) -> bool {
        pid != std::process::id().cast_signed()
            && std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns/net"))
                .is_ok_and(|link| link == self.link)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.private {
            return;
        }
        // A supervisor may start another one between two looks: until nobody is left.
        crate::wait_until(Duration::from_secs(10), || {
            let left = self.inhabitants();
            for &pid in &left {
                let Some(pidfd) = PidFd::open(pid) else { continue };
                // The PID may have been reused before it was opened.
                if self.has(pid) {
                    pidfd.signal(Signal::SIGKILL);
                    pidfd.ended_within(Duration::from_secs(10));
                    reap(pid);
                }
            }
            left.is_empty()
        });
    }
}

fn socket(address: IpAddr, reuse: bool) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &reuse)?;
    if address.is_ipv6() {
        socket::setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    }
    Ok(fd)
}

/// Brings `lo` up in the network namespace of the current thread.
///
/// # Errors
/// Without `CAP_NET_ADMIN`.
pub fn raise_loopback() -> Result<()> {
    use nix::libc::{IFF_UP, SIOCGIFFLAGS, SIOCSIFFLAGS, c_short, ifreq, ioctl};
    let fd = socket(IpAddr::V4(Ipv4Addr::LOCALHOST), false)?;
    // SAFETY: ifreq is plain old data for which all zeros is a valid value.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    // SAFETY: both requests take a pointer to an ifreq, which lives across the calls;
    // SIOCGIFFLAGS has filled in `ifru_flags` before it is read.
    unsafe {
        Errno::result(ioctl(fd.as_raw_fd(), SIOCGIFFLAGS, &raw mut request)).context("SIOCGIFFLAGS")?;
        request.ifr_ifru.ifru_flags |= IFF_UP as c_short;
        Errno::result(ioctl(fd.as_raw_fd(), SIOCSIFFLAGS, &raw mut request)).context("SIOCSIFFLAGS")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::child::output;
    use crate::skip::skip;

    /// Symptom: a stand-in could not bind the port that its test had just chosen, because another test was making a
    /// process, which had the socket that chose the port until it executed.
    #[test]
    fn a_port_just_chosen_is_nobodys_while_others_make_processes() {
        const TEST: &str = "a_port_just_chosen_is_nobodys_while_others_make_processes";
        if !nix::unistd::geteuid().is_root() {
            return skip(TEST, "a private network namespace needs root");
        }
        let stop = AtomicBool::new(false);
        let choosing = || {
            let netns = Netns::enter().expect("a network namespace for the test");
            let taken = (0..2_000).filter(|_| {
                let fd = socket(IpAddr::V4(Ipv4Addr::LOCALHOST), true).expect("a TCP socket");
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, netns.free_port()));
                socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).is_err()
            });
            let taken = taken.count();
            stop.store(true, Ordering::Relaxed);
            taken
        };
        std::thread::scope(|scope| {
            // A namespace belongs to a thread.
            let choosing = scope.spawn(choosing);
            while !stop.load(Ordering::Relaxed) && !choosing.is_finished() {
                output(&mut Command::new("true")).expect("true");
            }
            assert_eq!(choosing.join().expect("its count"), 0);
        });
    }
}
