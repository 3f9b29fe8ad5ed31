//! One row of a dump, in the words of the core, and back.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use guard_core::model::{Port, Socket, SocketCookie, SocketInode, TcpState, Uid};
use netlink_packet_core::{DecodeError, Parseable};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{InetResponse, InetResponseHeader, SocketId, Timer};
use netlink_packet_sock_diag::{AF_INET6, TCP_LISTEN, TCP_SYN_RECV};

use super::unmapped;

/// Where `struct inet_diag_msg` has `idiag_expires`: after four bytes and a
/// `struct inet_diag_sockid` of 48. The decoder of netlink-packet-sock-diag 0.5
/// drops the value for timer 3 (TIME_WAIT), the only one that matters here.
const IDIAG_EXPIRES: std::ops::Range<usize> = 52..56;

/// `None` for a row without a local port.
pub(super) fn decode(payload: &[u8]) -> Result<Option<Socket>, DecodeError> {
    let InetResponse { header, nlas } = InetResponse::parse(payload)?;
    Ok(socket(header, &nlas, payload))
}

/// As [`decode`], without the attributes that only a socket in use has. A gate may be waiting for it.
pub(super) fn decode_announcement(payload: &[u8]) -> Result<Option<Socket>, DecodeError> {
    Ok(socket(InetResponseHeader::parse(payload)?, &[], payload))
}

fn socket(header: InetResponseHeader, nlas: &[Nla], payload: &[u8]) -> Option<Socket> {
    let id = header.socket_id;
    let port = Port::new(id.source_port)?;

    let mut v6only = None;
    let mut is_full_socket = false;
    for nla in nlas {
        match nla {
            Nla::SkV6Only(value) => v6only = Some(*value),
            Nla::Shutdown(_) => is_full_socket = true,
            _ => {}
        }
    }
    // A request socket shows as SYN_RECV (`inet_req_diag_fill`). Only full
    // sockets carry INET_DIAG_SHUTDOWN.
    let state = match header.state {
        TCP_SYN_RECV if !is_full_socket => TcpState::NewSynRecv,
        // Bound-only sockets show as CLOSE on every kernel that lists them.
        state if TcpState::from_kernel(state) == TcpState::Close && id.destination_port == 0 => {
            TcpState::BoundInactive
        }
        state => TcpState::from_kernel(state),
    };
    let expires = (header.timer == Some(Timer::TimeWait)).then(|| idiag_expires(payload)).flatten();
    let is_listener = header.state == TCP_LISTEN;
    let has_remote = id.destination_port != 0 || !id.destination_address.is_unspecified();
    let mapped = unmapped(id.source_address);

    Some(Socket {
        address: mapped.unwrap_or(id.source_address),
        mapped: mapped.is_some(),
        port,
        remote: has_remote.then(|| {
            let address = id.destination_address;
            (unmapped(address).unwrap_or(address), id.destination_port)
        }),
        v6only: if header.family == AF_INET6 { v6only } else { None },
        device: id.interface_id,
        state,
        uid: Uid(header.uid),
        inode: (header.inode != 0).then(|| SocketInode(u64::from(header.inode))),
        cookie: Some(decode_cookie(id.cookie)),
        expires,
        reuse_address: None,
        reuse_port: None,
        accept_queue: is_listener.then_some(header.recv_queue),
        backlog: is_listener.then_some(header.send_queue),
    })
}

fn idiag_expires(payload: &[u8]) -> Option<Duration> {
    let bytes: [u8; 4] = payload.get(IDIAG_EXPIRES)?.try_into().ok()?;
    Some(Duration::from_millis(u64::from(u32::from_ne_bytes(bytes))))
}

/// The addresses of `socket` as the kernel gave them, with its cookie.
pub(super) fn encode_id(socket: &Socket, cookie: SocketCookie) -> SocketId {
    let is_inet6 = socket.mapped || socket.address.is_ipv6();
    let as_kernel = |address: IpAddr| match address {
        IpAddr::V4(address) if is_inet6 => IpAddr::V6(address.to_ipv6_mapped()),
        address => address,
    };
    let base = if is_inet6 { SocketId::new_v6() } else { SocketId::new_v4() };
    let (destination_address, destination_port) = match socket.remote {
        Some((address, port)) => (as_kernel(address), port),
        None => (if is_inet6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { base.destination_address }, 0),
    };
    SocketId {
        source_port: socket.port.get(),
        destination_port,
        source_address: as_kernel(socket.address),
        destination_address,
        interface_id: socket.device,
        cookie: encode_cookie(cookie),
    }
}

/// The kernel sends a cookie as two 32-bit words in host order, low word first.
fn decode_cookie(bytes: [u8; 8]) -> SocketCookie {
    let [a, b, c, d, e, f, g, h] = bytes;
    let low = u32::from_ne_bytes([a, b, c, d]);
    let high = u32::from_ne_bytes([e, f, g, h]);
    SocketCookie(u64::from(high) << 32 | u64::from(low))
}

fn encode_cookie(cookie: SocketCookie) -> [u8; 8] {
    let [a, b, c, d] = ((cookie.0 & u64::from(u32::MAX)) as u32).to_ne_bytes();
    let [e, f, g, h] = ((cookie.0 >> 32) as u32).to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_survives_the_wire() {
        let cookie = SocketCookie(0x0123_4567_89ab_cdef);
        assert_eq!(decode_cookie(encode_cookie(cookie)), cookie);
    }

    #[test]
    fn a_short_row_is_an_error_and_no_panic() {
        for length in 0..72 {
            assert!(decode(&vec![2; length]).is_err(), "{length} bytes");
        }
    }
}
