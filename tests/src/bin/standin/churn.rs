//! Connections that come and go as fast as the machine can make them.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::linger;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use serde_json::json;

use crate::say;
use crate::sockets::Bound;

/// A line says how many there were, this often.
const TOLD_EVERY: u64 = 1_000;

/// Starts `threads` clients and one server for each listener; they end with the process.
pub(crate) fn start(listeners: &[Bound], threads: u32) -> Result<()> {
    if threads == 0 {
        // Whoever else listens keeps the connections that it accepts.
        return Ok(());
    }
    let made = Arc::new(AtomicU64::new(0));
    for listener in listeners {
        let acceptor = TcpListener::from(listener.fd.try_clone().context("duplicate the listener")?);
        // What it accepts inherits this.
        resets_on_close(&acceptor).context("have the listener's connections reset")?;
        std::thread::spawn(move || {
            loop {
                drop(acceptor.accept());
            }
        });
        for _ in 0..threads {
            let (to, made) = (listener.address, Arc::clone(&made));
            std::thread::spawn(move || {
                let mut failed = None;
                loop {
                    // ECONNRESET: the server had accepted and reset it before this thread came to run again.
                    if let Err(errno) = connect(to)
                        && errno != Errno::ECONNRESET
                    {
                        if failed.replace(errno) != Some(errno) {
                            eprintln!("connect() to {to}: {errno}");
                        }
                        std::thread::yield_now();
                        continue;
                    }
                    let number = made.fetch_add(1, Ordering::Relaxed) + 1;
                    if number.is_multiple_of(TOLD_EVERY) {
                        say::line(&json!({ "standin": "churned", "connections": number }));
                    }
                }
            });
        }
    }
    Ok(())
}

/// Both sides must. A side that ends with a FIN becomes a TIME_WAIT socket before the other's reset ends that too, and
/// a reset that arrives just then is lost: for a minute nobody binds strictly.
fn resets_on_close(socket: &impl AsFd) -> nix::Result<()> {
    socket::setsockopt(socket, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })
}

/// Connects and resets: neither side leaves a TIME_WAIT socket.
fn connect(to: SocketAddr) -> nix::Result<()> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    resets_on_close(&fd)?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
}
