//! The toy's `bind()`, from the kernel's rule and with every flag known.

use std::net::{IpAddr, Ipv6Addr};

use crate::model::{BindSpec, Port, TcpState, Uid};

/// What a bind bucket knows of a socket in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) struct Bucket {
    pub(in crate::gate) port: Port,
    /// As `bind()` was given it: an IPv4-mapped address is an `IpAddr::V6`.
    pub(in crate::gate) address: IpAddr,
    pub(in crate::gate) v6only: bool,
    pub(in crate::gate) device: u32,
    pub(in crate::gate) reuse_address: bool,
    pub(in crate::gate) reuse_port: bool,
    pub(in crate::gate) uid: Uid,
    pub(in crate::gate) state: TcpState,
}

impl Bucket {
    /// The socket that a bind of `spec` puts in front of the bucket.
    pub(in crate::gate) fn binder(spec: &BindSpec, uid: Uid) -> Self {
        Self {
            port: spec.port,
            address: spec.address,
            v6only: spec.v6only,
            device: spec.scope,
            reuse_address: spec.reuse_address,
            reuse_port: spec.reuse_port,
            uid,
            state: TcpState::Close,
        }
    }

    /// Every address as an IPv6 one; those of IPv4 are mapped.
    fn wide(&self) -> Ipv6Addr {
        match self.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        }
    }

    fn kind(&self) -> Kind {
        let wide = self.wide();
        match wide.to_ipv4_mapped() {
            Some(v4) => Kind::V4 { any: v4.is_unspecified() },
            None if wide.is_unspecified() => Kind::AnyV6 { takes_v4: !self.v6only },
            None => Kind::OneV6,
        }
    }
}

/// The part of an address space that a socket claims.
#[derive(Clone, Copy)]
enum Kind {
    V4 { any: bool },
    AnyV6 { takes_v4: bool },
    OneV6,
}

/// `EADDRINUSE` because of `there`, which is already bound.
pub(in crate::gate) fn bind_fails(binder: &Bucket, there: &Bucket) -> bool {
    let meet = binder.port == there.port
        && (binder.device == 0 || there.device == 0 || binder.device == there.device)
        && claims_meet(binder, there);
    let both_reuse = binder.reuse_address && there.reuse_address && there.state != TcpState::Listen;
    let both_share = binder.reuse_port
        && there.reuse_port
        && (there.state == TcpState::TimeWait || binder.uid == there.uid);
    meet && !both_reuse && !both_share
}

fn claims_meet(one: &Bucket, other: &Bucket) -> bool {
    match (one.kind(), other.kind()) {
        (Kind::V4 { any: a }, Kind::V4 { any: b }) => a || b || one.wide() == other.wide(),
        (Kind::V4 { .. }, Kind::AnyV6 { takes_v4 }) | (Kind::AnyV6 { takes_v4 }, Kind::V4 { .. }) => takes_v4,
        (Kind::V4 { .. }, Kind::OneV6) | (Kind::OneV6, Kind::V4 { .. }) => false,
        (Kind::OneV6, Kind::OneV6) => one.wide() == other.wide(),
        (Kind::AnyV6 { .. }, _) | (_, Kind::AnyV6 { .. }) => true,
    }
}
