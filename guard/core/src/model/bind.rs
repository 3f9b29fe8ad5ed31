use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::Port;

/// How the guarded service binds: everything that decides whether its
/// `bind()` would succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BindSpec {
    /// Local address; the address family follows from it.
    pub address: IpAddr,
    /// Interface index for a link-local IPv6 address, else 0.
    pub scope: u32,
    /// Local port.
    pub port: Port,
    /// `IPV6_V6ONLY`; means nothing on an IPv4 address.
    pub v6only: bool,
    /// `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
}

impl BindSpec {
    /// What `server.listen(port)` of Node.js asks for: `[::]`, dual-stack,
    /// with `SO_REUSEADDR`. Go and Rust's std set `SO_REUSEADDR` too.
    pub const fn node_default(port: Port) -> Self {
        Self::reusable(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
    }

    /// `address` with `SO_REUSEADDR` and without `SO_REUSEPORT`, dual-stack
    /// when the address is `[::]`.
    pub const fn reusable(address: IpAddr, port: Port) -> Self {
        Self { address, scope: 0, port, v6only: false, reuse_address: true, reuse_port: false }
    }

    /// Whether there is an address that both are for, on the same port: two listeners on it exclude each
    /// other, unless both have `SO_REUSEPORT`.
    pub fn overlaps(&self, other: &Self) -> bool {
        fn meet<T: PartialEq>(a: Option<T>, b: Option<T>, any: T) -> bool {
            a.zip(b).is_some_and(|(a, b)| a == b || a == any || b == any)
        }
        self.port == other.port
            && (meet(self.ipv4(), other.ipv4(), Ipv4Addr::UNSPECIFIED)
                || meet(self.ipv6(), other.ipv6(), Ipv6Addr::UNSPECIFIED))
    }

    /// Whether a socket that is bound to `address` is for all that this is for. `dual_stack` says of one that is bound
    /// to `[::]` that it is for IPv4 too.
    pub(crate) fn lies_within(&self, address: IpAddr, dual_stack: bool) -> bool {
        fn within<T: PartialEq>(ours: Option<T>, theirs: Option<T>, any: T) -> bool {
            ours.is_none_or(|ours| theirs.is_some_and(|theirs| theirs == ours || theirs == any))
        }
        let theirs = Self { v6only: !dual_stack, ..Self::reusable(address, self.port) };
        within(self.ipv4(), theirs.ipv4(), Ipv4Addr::UNSPECIFIED)
            && within(self.ipv6(), theirs.ipv6(), Ipv6Addr::UNSPECIFIED)
    }

    /// What it is for in IPv4: a dual-stack `[::]` is for all of it.
    fn ipv4(&self) -> Option<Ipv4Addr> {
        match self.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => (!self.v6only).then_some(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(address) => address.to_ipv4_mapped(),
        }
    }

    fn ipv6(&self) -> Option<Ipv6Addr> {
        match self.address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => address.to_ipv4_mapped().is_none().then_some(address),
        }
    }

    /// The address as `bind()` takes it.
    pub const fn socket_addr(&self) -> SocketAddr {
        match self.address {
            IpAddr::V4(address) => SocketAddr::V4(SocketAddrV4::new(address, self.port.get())),
            IpAddr::V6(address) => SocketAddr::V6(SocketAddrV6::new(address, self.port.get(), 0, self.scope)),
        }
    }
}

impl fmt::Display for BindSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket_addr().fmt(f)
    }
}

/// What `bind()` said to a probe of a [`BindSpec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindOutcome {
    /// `bind()` succeeded: the proof that the service's own bind would.
    Bindable,
    /// `EADDRINUSE`.
    InUse,
    /// `EADDRNOTAVAIL`: the address is on no interface (yet).
    AddressMissing,
    /// `EAFNOSUPPORT`: this machine has no such address family.
    FamilyMissing,
    /// `EACCES` or `EPERM`: the guard may not bind here, so it cannot tell.
    NotPermitted,
    /// Any other error, in words.
    Failed(String),
}
