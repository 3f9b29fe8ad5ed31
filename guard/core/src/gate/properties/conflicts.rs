//! The conflict table against the toy's `bind()`.

use std::net::IpAddr;

use proptest::prelude::*;

use super::config;
use crate::conflict::{Conflict, conflict};
use crate::gate::toy::{Bucket, bind_fails, port};
use crate::model::{BindSpec, Port, Socket, SocketInode, TcpState, Uid};

fn address() -> impl Strategy<Value = IpAddr> {
    let addresses = [
        "0.0.0.0",
        "127.0.0.1",
        "127.0.0.2",
        "::",
        "::1",
        "fe80::1",
        "::ffff:127.0.0.1",
        "::ffff:127.0.0.2",
        "::ffff:0.0.0.0",
    ];
    proptest::sample::select(addresses.map(|address| address.parse().expect("an address")).to_vec())
}

fn some_port() -> impl Strategy<Value = Port> {
    prop_oneof![9 => Just(port()), 1 => Just(Port::new(80).expect("not zero"))]
}

fn bucket() -> impl Strategy<Value = Bucket> {
    let state = proptest::sample::select(vec![
        TcpState::Listen,
        TcpState::Established,
        TcpState::SynSent,
        TcpState::CloseWait,
        TcpState::TimeWait,
        TcpState::Close,
        TcpState::BoundInactive,
    ]);
    (some_port(), address(), any::<[bool; 3]>(), 0..3_u32, state, 0..2_u32).prop_map(
        |(port, address, [v6only, reuse_address, reuse_port], device, state, uid)| Bucket {
            port,
            address,
            // No socket is both: IPV6_V6ONLY refuses an IPv4-mapped address.
            v6only: v6only && matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_none()),
            device,
            reuse_address,
            reuse_port,
            uid: Uid(uid),
            state,
        },
    )
}

fn bind_spec() -> impl Strategy<Value = BindSpec> {
    (address(), any::<[bool; 3]>(), 0..3_u32).prop_map(
        |(address, [v6only, reuse_address, reuse_port], scope)| BindSpec {
            address,
            scope: if address == "fe80::1".parse::<IpAddr>().expect("an address") { scope } else { 0 },
            port: port(),
            v6only: v6only && matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_none()),
            reuse_address,
            reuse_port,
        },
    )
}

/// The bucket's socket as a table shows it that hides what `hidden` says:
/// v6only, SO_REUSEADDR, SO_REUSEPORT.
fn row(bucket: &Bucket, hidden: [bool; 3]) -> Socket {
    let mapped = match bucket.address {
        IpAddr::V6(address) => address.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    let has_file = bucket.state != TcpState::TimeWait;
    Socket {
        address: mapped.map_or(bucket.address, IpAddr::V4),
        mapped: mapped.is_some(),
        port: bucket.port,
        remote: None,
        v6only: (bucket.address.is_ipv6() && !hidden[0]).then_some(bucket.v6only),
        device: bucket.device,
        state: bucket.state,
        uid: bucket.uid,
        inode: has_file.then_some(SocketInode(1)),
        cookie: None,
        expires: None,
        reuse_address: (!hidden[1]).then_some(bucket.reuse_address),
        reuse_port: (!hidden[2]).then_some(bucket.reuse_port),
        accept_queue: None,
        backlog: None,
    }
}

proptest! {
    #![proptest_config(config(20_000))]

    #[test]
    fn certain_and_none_are_what_bind_does(
        spec in bind_spec(),
        there in bucket(),
        hidden in any::<[bool; 3]>(),
        uid in 0..2_u32,
    ) {
        let fails = bind_fails(&Bucket::binder(&spec, Uid(uid)), &there);
        match conflict(&spec, &row(&there, hidden)) {
            Conflict::Certain => prop_assert!(fails, "called certain, but the bind succeeds"),
            Conflict::None => prop_assert!(!fails, "called no conflict, but the bind fails"),
            Conflict::Possible => {
                let open = hidden != [false; 3] || spec.reuse_port;
                prop_assert!(open, "left open although every flag is known");
            }
        }
    }

    #[test]
    fn knowing_a_flag_never_turns_the_answer_around(
        spec in bind_spec(),
        there in bucket(),
        hidden in any::<[bool; 3]>(),
    ) {
        let vague = conflict(&spec, &row(&there, hidden));
        let exact = conflict(&spec, &row(&there, [false; 3]));
        prop_assert!(vague == Conflict::Possible || vague == exact, "{vague:?} became {exact:?}");
    }
}
