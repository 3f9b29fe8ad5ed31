//! `/proc/net/tcp` and `tcp6`: the socket table where `sock_diag` is missing.
//!
//! It shows no bound-only socket, no cookie and no `IPV6_V6ONLY`, has no filter
//! (the kernel prints every socket of the namespace), and is a walk like the
//! dump of `sock_diag`: a missing row proves nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use guard_core::model::{Port, Socket, SocketInode, TcpState, Uid};
use rustix::fs::CWD;
use rustix::io::Errno;

use super::process::clock_ticks_per_second;
use super::{ProcError, read_at};

/// The timer column's value for a TIME_WAIT mini-socket (`get_timewait4_sock`).
const TIMER_TIME_WAIT: &str = "03";

/// All TCP sockets of the calling thread's network namespace whose local port
/// is `port`, IPv4 first.
///
/// `/proc/net` is a link to the *process's* namespace, so the thread's own is
/// read.
///
/// # Errors
///
/// When `/proc` is not readable. A kernel without IPv6 has no `tcp6`.
pub fn sockets(port: Port) -> Result<Vec<Socket>, ProcError> {
    let mut sockets = table("/proc/thread-self/net/tcp", port)?;
    match table("/proc/thread-self/net/tcp6", port) {
        Ok(mut inet6) => sockets.append(&mut inet6),
        Err(ProcError::Failed { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}

fn table(path: &str, port: Port) -> Result<Vec<Socket>, ProcError> {
    let text = read_at(CWD, path).map_err(|errno: Errno| ProcError::new(path, errno))?;
    let text = String::from_utf8_lossy(&text);
    // ":1F90 " is in every row of the port, and in few others.
    let needle = format!(":{:04X} ", port.get());
    let ticks = clock_ticks_per_second();
    text.lines()
        .skip(1)
        .filter(|line| line.contains(&needle))
        .map(|line| {
            row(line, ticks).ok_or_else(|| ProcError::Malformed {
                path: path.to_owned(),
                what: "a row with other columns",
            })
        })
        .filter(|row| row.as_ref().map_or(true, |socket| socket.port == port))
        .collect()
}

/// Columns: slot, local, remote, state, tx:rx queue, timer:when, retransmits,
/// uid, timeout, inode, references (`get_tcp4_sock` in net/ipv4/tcp_ipv4.c).
fn row(line: &str, ticks_per_second: u64) -> Option<Socket> {
    let columns: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, local_port) = endpoint(columns.get(1)?)?;
    let (remote, remote_port) = endpoint(columns.get(2)?)?;
    let state = u8::from_str_radix(columns.get(3)?, 16).ok()?;
    let (_, rx_queue) = columns.get(4)?.split_once(':')?;
    let (timer, when) = columns.get(5)?.split_once(':')?;
    let inode: u64 = columns.get(9)?.parse().ok()?;
    let references: i64 = columns.get(10)?.parse().ok()?;
    let state = match TcpState::from_kernel(state) {
        // A request socket shows as SYN_RECV with no reference of its own
        // (`get_openreq4` prints 0).
        TcpState::SynRecv if references == 0 => TcpState::NewSynRecv,
        state => state,
    };
    let expires = if timer == TIMER_TIME_WAIT {
        let ticks = u64::from_str_radix(when, 16).ok()?;
        Some(Duration::from_millis(ticks.saturating_mul(1000) / ticks_per_second.max(1)))
    } else {
        None
    };
    let mapped = unmapped(local);
    Some(Socket {
        address: mapped.unwrap_or(local),
        mapped: mapped.is_some(),
        port: Port::new(local_port)?,
        remote: (remote_port != 0 || !remote.is_unspecified())
            .then(|| (unmapped(remote).unwrap_or(remote), remote_port)),
        v6only: None,
        device: 0,
        state,
        uid: Uid(columns.get(7)?.parse().ok()?),
        inode: (inode != 0).then_some(SocketInode(inode)),
        cookie: None,
        expires,
        reuse_address: None,
        reuse_port: None,
        accept_queue: if state == TcpState::Listen { u32::from_str_radix(rx_queue, 16).ok() } else { None },
        backlog: None,
    })
}

/// `ADDRESS:PORT`: the address as 32-bit words of network byte order, each
/// printed as a number of the host; the port as a number.
fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((address, port))
}

fn unmapped(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => address.to_ipv4_mapped().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests;
