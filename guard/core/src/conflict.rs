//! Who stands in the way of a bind: the kernel's bind-conflict rules as a
//! function over what a socket table shows.
//!
//! The rules are those of `inet_bind_conflict()` and `inet_rcv_saddr_equal()`
//! in the kernel's `net/ipv4/inet_connection_sock.c` (read in 6.12; the same
//! outcome since at least 5.10): a socket on the same port, whose device and
//! local address overlap, conflicts unless
//!
//! - both set `SO_REUSEADDR` and the other one is not in LISTEN, or
//! - both set `SO_REUSEPORT` and belong to the same user (a TIME_WAIT socket
//!   to anybody).
//!
//! `sock_diag` shows neither flag, so the answer has three values. Only a bind
//! probe settles a [`Conflict::Possible`].

use std::net::IpAddr;

use crate::model::{BindSpec, Socket, TcpState};

/// Whether a socket blocks a bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// The bind does not meet this socket.
    None,
    /// It depends on a flag that the socket table does not show.
    Possible,
    /// The bind fails with `EADDRINUSE` because of this socket.
    Certain,
}

/// Whether `socket` would make a bind of `spec` fail with `EADDRINUSE`.
pub fn conflict(spec: &BindSpec, socket: &Socket) -> Conflict {
    if socket.port != spec.port || !holds_bind_bucket(socket) || !devices_overlap(spec, socket) {
        return Conflict::None;
    }
    let overlap = addresses_overlap(spec, socket);
    if overlap == Conflict::None {
        return Conflict::None;
    }
    let shared = both_reuse_address(spec, socket).or(both_reuse_port(spec, socket));
    match shared {
        Allowed::Yes => Conflict::None,
        Allowed::Depends => Conflict::Possible,
        Allowed::No => overlap,
    }
}

/// Whether nobody can begin to listen on anything that `spec` is for, as long as `socket` listens: it is for all of that
/// itself, on every device, and shares its port with nobody.
pub fn excludes_others(socket: &Socket, spec: &BindSpec) -> bool {
    socket.state == TcpState::Listen
        && socket.port == spec.port
        && (socket.device, spec.scope) == (0, 0)
        && socket.reuse_port == Some(false)
        && spec.lies_within(socket.address, socket.v6only == Some(false))
}

/// A request socket waits in its listener's queue and has no bind bucket. The
/// dump shows it as `SYN_RECV` without an inode, like a connection that nobody
/// accepted yet; the latter leaves `SYN_RECV` with the handshake.
fn holds_bind_bucket(socket: &Socket) -> bool {
    match socket.state {
        TcpState::NewSynRecv => false,
        TcpState::SynRecv => socket.inode.is_some(),
        _ => true,
    }
}

/// Sockets bound to different devices never meet. A spec binds to no device
/// (`scope` only selects a link-local address), so it meets all of them.
fn devices_overlap(spec: &BindSpec, socket: &Socket) -> bool {
    spec.scope == 0 || socket.device == 0 || socket.device == spec.scope
}

fn addresses_overlap(spec: &BindSpec, socket: &Socket) -> Conflict {
    let theirs_is_v4 = socket.mapped || socket.address.is_ipv4();
    let certain_if = |overlap: bool| if overlap { Conflict::Certain } else { Conflict::None };
    // An IPv4-mapped address is bound in IPv4's address space, in which an
    // `IPV6_V6ONLY` socket has no part.
    let ours = match spec.address {
        IpAddr::V6(ours) => ours.to_ipv4_mapped().map_or(spec.address, IpAddr::V4),
        IpAddr::V4(_) => spec.address,
    };
    match (ours, theirs_is_v4) {
        (IpAddr::V4(ours), true) => match socket.address {
            IpAddr::V4(theirs) => {
                certain_if(ours == theirs || ours.is_unspecified() || theirs.is_unspecified())
            }
            IpAddr::V6(_) => Conflict::None,
        },
        (IpAddr::V4(_), false) => {
            if !socket.address.is_unspecified() {
                return Conflict::None;
            }
            // `[::]` takes IPv4 too unless it is v6only.
            match socket.v6only {
                Some(true) => Conflict::None,
                Some(false) => Conflict::Certain,
                None => Conflict::Possible,
            }
        }
        (IpAddr::V6(ours), true) => certain_if(ours.is_unspecified() && !spec.v6only),
        (IpAddr::V6(ours), false) => certain_if(
            ours.is_unspecified() || socket.address.is_unspecified() || socket.address == IpAddr::V6(ours),
        ),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Allowed {
    No,
    Depends,
    Yes,
}

impl Allowed {
    fn or(self, other: Self) -> Self {
        self.max(other)
    }

    fn when(flag: Option<bool>) -> Self {
        match flag {
            Some(true) => Self::Yes,
            Some(false) => Self::No,
            None => Self::Depends,
        }
    }
}

fn both_reuse_address(spec: &BindSpec, socket: &Socket) -> Allowed {
    if spec.reuse_address && socket.state != TcpState::Listen {
        Allowed::when(socket.reuse_address)
    } else {
        Allowed::No
    }
}

fn both_reuse_port(spec: &BindSpec, socket: &Socket) -> Allowed {
    if !spec.reuse_port {
        return Allowed::No;
    }
    match Allowed::when(socket.reuse_port) {
        // The spec does not say which user binds.
        Allowed::Yes if socket.state != TcpState::TimeWait => Allowed::Depends,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Port, SocketInode, Uid};

    fn port() -> Port {
        Port::new(18789).expect("not zero")
    }

    fn spec(address: &str) -> BindSpec {
        BindSpec::reusable(address.parse().expect("an address"), port())
    }

    fn strict(address: &str) -> BindSpec {
        BindSpec { reuse_address: false, ..spec(address) }
    }

    fn socket(state: TcpState, address: &str) -> Socket {
        let address: IpAddr = address.parse().expect("an address");
        Socket {
            address,
            mapped: false,
            port: port(),
            remote: None,
            v6only: address.is_ipv6().then_some(false),
            device: 0,
            state,
            uid: Uid(0),
            inode: Some(SocketInode(1)),
            cookie: None,
            expires: None,
            reuse_address: None,
            reuse_port: None,
            accept_queue: None,
            backlog: None,
        }
    }

    fn with_reuse(state: TcpState, reuse: bool) -> Socket {
        Socket { reuse_address: Some(reuse), ..socket(state, "127.0.0.1") }
    }

    #[test]
    fn a_listener_on_an_overlapping_address_blocks_every_bind() {
        for (listener, bind) in [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("127.0.0.1", "0.0.0.0"),
            ("127.0.0.1", "::"),
            ("::", "127.0.0.1"),
            ("::", "::1"),
            ("::1", "::"),
        ] {
            for spec in [spec(bind), strict(bind)] {
                assert_eq!(
                    conflict(&spec, &socket(TcpState::Listen, listener)),
                    Conflict::Certain,
                    "{listener} {bind}"
                );
            }
        }
    }

    #[test]
    fn addresses_that_do_not_overlap_never_conflict() {
        let v6only = BindSpec { v6only: true, ..spec("::") };
        let listener = socket(TcpState::Listen, "127.0.0.1");
        assert_eq!(conflict(&spec("127.0.0.2"), &listener), Conflict::None);
        assert_eq!(conflict(&spec("::1"), &listener), Conflict::None);
        assert_eq!(conflict(&v6only, &listener), Conflict::None);
        let v6only_listener = Socket { v6only: Some(true), ..socket(TcpState::Listen, "::") };
        assert_eq!(conflict(&spec("127.0.0.1"), &v6only_listener), Conflict::None);
    }

    #[test]
    fn two_specs_overlap_when_a_listener_of_the_one_blocks_the_other() {
        let v6only = |address| BindSpec { v6only: true, ..spec(address) };
        let plain = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1", "fe80::1", "::ffff:127.0.0.1"];
        let specs: Vec<BindSpec> = plain.map(spec).into_iter().chain(["::", "::1"].map(v6only)).collect();
        for (bind, listens) in specs.iter().flat_map(|a| specs.iter().map(move |b| (a, b))) {
            // The table shows an IPv4-mapped address as the IPv4 one.
            let address = listens.address.to_canonical();
            let v6only = address.is_ipv6().then_some(listens.v6only);
            let mapped = address != listens.address;
            let listener = Socket { address, mapped, v6only, ..socket(TcpState::Listen, "::") };
            let blocked = conflict(bind, &listener) != Conflict::None;
            assert_eq!(bind.overlaps(listens), blocked, "{bind:?} beside {listens:?}");
            assert_eq!(bind.overlaps(listens), listens.overlaps(bind), "{bind:?} beside {listens:?}");
        }
        let elsewhere = BindSpec { port: Port::new(1).expect("not zero"), ..spec("::") };
        assert!(!elsewhere.overlaps(&spec("::")));
    }

    #[test]
    fn nobody_listens_beside_whoever_excludes_others() {
        let addresses = [
            "0.0.0.0",
            "127.0.0.1",
            "127.0.0.2",
            "::",
            "::1",
            "fe80::1",
            "::ffff:0.0.0.0",
            "::ffff:127.0.0.1",
        ];
        let specs: Vec<BindSpec> = addresses
            .iter()
            .flat_map(|address| [false, true].map(|v6only| BindSpec { v6only, ..spec(address) }))
            .collect();
        let listens = |spec: &BindSpec| {
            let address = spec.address.to_canonical();
            let v6only = address.is_ipv6().then_some(spec.v6only);
            let mapped = address != spec.address;
            Socket { address, mapped, v6only, reuse_port: Some(false), ..socket(TcpState::Listen, "::") }
        };
        for (ours, theirs) in specs.iter().flat_map(|a| specs.iter().map(move |b| (a, b))) {
            let listener = listens(theirs);
            assert!(ours != theirs || excludes_others(&listener, ours), "{ours:?} is there for itself");
            if !excludes_others(&listener, ours) {
                continue;
            }
            for newcomer in specs.iter().filter(|newcomer| newcomer.overlaps(ours)) {
                let newcomer = BindSpec { reuse_port: true, ..*newcomer };
                assert_eq!(
                    conflict(&newcomer, &listener),
                    Conflict::Certain,
                    "{newcomer:?} beside {theirs:?}"
                );
            }
        }
    }

    #[test]
    fn who_may_have_company_excludes_nobody() {
        let alone = Socket { reuse_port: Some(false), ..socket(TcpState::Listen, "127.0.0.1") };
        let ours = spec("127.0.0.1");
        assert!(excludes_others(&alone, &ours));
        assert!(!excludes_others(&alone, &spec("0.0.0.0")), "others may listen on other addresses");
        assert!(!excludes_others(&alone, &BindSpec { port: Port::new(1).expect("not zero"), ..ours }));
        let company = [
            Socket { reuse_port: Some(true), ..alone.clone() },
            Socket { reuse_port: None, ..alone.clone() },
            Socket { device: 2, ..alone.clone() },
            Socket { state: TcpState::BoundInactive, ..alone },
        ];
        for socket in company {
            assert!(!excludes_others(&socket, &ours), "{socket:?}");
        }
        let unknown = Socket { v6only: None, reuse_port: Some(false), ..socket(TcpState::Listen, "::") };
        assert!(!excludes_others(&unknown, &ours), "it may be for IPv6 alone");
    }

    #[test]
    fn an_unknown_v6only_flag_leaves_the_question_open() {
        let listener = Socket { v6only: None, ..socket(TcpState::Listen, "::") };
        assert_eq!(conflict(&spec("127.0.0.1"), &listener), Conflict::Possible);
    }

    #[test]
    fn connections_and_time_wait_block_by_the_listeners_flag() {
        for state in [
            TcpState::Established,
            TcpState::CloseWait,
            TcpState::FinWait2,
            TcpState::TimeWait,
            TcpState::BoundInactive,
        ] {
            let bind = spec("127.0.0.1");
            assert_eq!(conflict(&bind, &with_reuse(state, true)), Conflict::None);
            assert_eq!(conflict(&bind, &with_reuse(state, false)), Conflict::Certain);
            assert_eq!(conflict(&bind, &socket(state, "127.0.0.1")), Conflict::Possible);
            assert_eq!(conflict(&strict("127.0.0.1"), &with_reuse(state, true)), Conflict::Certain);
        }
    }

    #[test]
    fn a_reuseport_listener_blocks_a_bind_without_reuseport() {
        let listener = Socket { reuse_port: Some(true), ..socket(TcpState::Listen, "127.0.0.1") };
        assert_eq!(conflict(&spec("127.0.0.1"), &listener), Conflict::Certain);
        let joins = BindSpec { reuse_port: true, ..spec("127.0.0.1") };
        assert_eq!(conflict(&joins, &listener), Conflict::Possible);
        let refuses = Socket { reuse_port: Some(false), ..listener };
        assert_eq!(conflict(&joins, &refuses), Conflict::Certain);
    }

    #[test]
    fn request_sockets_and_other_ports_are_no_holders() {
        let request = Socket { inode: None, ..socket(TcpState::SynRecv, "127.0.0.1") };
        assert_eq!(conflict(&strict("127.0.0.1"), &request), Conflict::None);
        let other = Socket { port: Port::new(1).expect("not zero"), ..socket(TcpState::Listen, "0.0.0.0") };
        assert_eq!(conflict(&spec("127.0.0.1"), &other), Conflict::None);
    }

    #[test]
    fn an_ipv4_connection_of_a_dual_stack_socket_counts_as_ipv4() {
        let accepted =
            Socket { mapped: true, reuse_address: Some(false), ..socket(TcpState::Established, "127.0.0.1") };
        assert_eq!(conflict(&spec("127.0.0.1"), &accepted), Conflict::Certain);
        assert_eq!(conflict(&spec("::"), &accepted), Conflict::Certain);
        assert_eq!(conflict(&spec("::1"), &accepted), Conflict::None);
    }
}
