//! A socket as a raw tracepoint shows it: the kernel's own structure.

use guard_common::LostReason;

use crate::settings::{known, setting};
use crate::skip::{Skip, count};
use crate::socket::{Details, Socket, cookie, read};

/// `AF_INET6` of `include/linux/socket.h`.
const AF_INET6: u16 = 10;

/// Address of a `struct sock`, which is the beginning of a `struct inet_sock`.
/// The guard loads the programs that use it only where it knows all offsets.
pub(crate) struct Sock(pub(crate) u64);

/// A pointer that the verifier knows to be a `struct sock`, so that one member is
/// one load: what a typed raw tracepoint (`tp_btf`) hands over.
pub(crate) struct Typed(pub(crate) *const u8);

impl Typed {
    /// The local port in host byte order; 0 once the port was put. Where the kernel
    /// chose the port, that is before the socket closes.
    #[inline(always)]
    pub(crate) fn number(&self) -> u16 {
        let offset = setting!(sock_number) as usize;
        // SAFETY: the verifier knows the type, and the guard found a member of this size there.
        unsafe { core::ptr::read_volatile(self.0.add(offset).cast::<u16>()) }
    }

    /// Whether it has a peer's port. A listener never has; a connection that was reset may have
    /// lost its own.
    #[inline(always)]
    pub(crate) fn has_peer(&self) -> bool {
        let offset = setting!(sock_remote_port) as usize;
        // SAFETY: as for the number, which is the member beside it.
        unsafe { core::ptr::read_volatile(self.0.add(offset).cast::<u16>()) != 0 }
    }
}

impl Socket for Sock {
    #[inline(always)]
    fn skaddr(&self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn local_port(&self) -> Result<u16, Skip> {
        self.member(setting!(sock_local_port)).map(u16::from_be)
    }

    #[inline(always)]
    fn protocol(&self) -> Result<u16, Skip> {
        self.member(setting!(sock_protocol))
    }

    #[inline(always)]
    fn details(&self) -> Details {
        let filled = (|| {
            let family = self.member(setting!(sock_family))?;
            let (local_addr, remote_addr) = if family == AF_INET6 {
                (self.v6(setting!(sock_local_v6))?, self.v6(setting!(sock_remote_v6))?)
            } else {
                (
                    mapped(self.member(setting!(sock_local_v4))?),
                    mapped(self.member(setting!(sock_remote_v4))?),
                )
            };
            let remote_port = u16::from_be(self.member(setting!(sock_remote_port))?);
            Ok::<_, Skip>(Details { family, remote_port, cookie: 0, local_addr, remote_addr })
        })();
        let details = filled.unwrap_or_else(|_| {
            count(LostReason::ReadSocket);
            Details { family: 0, remote_port: 0, cookie: 0, local_addr: [0; 2], remote_addr: [0; 2] }
        });
        Details { cookie: cookie(self.0), ..details }
    }
}

impl Sock {
    #[inline(always)]
    fn member<T>(&self, offset: u32) -> Result<T, Skip> {
        read(self.0, offset as usize).map_err(|_| Skip::Lost(LostReason::ReadSocket))
    }

    /// The unspecified address on a kernel without IPv6, which has no such sockets.
    #[inline(always)]
    fn v6(&self, offset: u32) -> Result<[u64; 2], Skip> {
        known(offset).map_or(Ok([0; 2]), |_| self.member(offset))
    }
}

/// `::ffff:a.b.c.d`, as the classic tracepoints show an IPv4 address.
#[inline(always)]
pub(crate) fn mapped(address: u32) -> [u64; 2] {
    let tail = [0xffff_u32.to_be(), address];
    // SAFETY: both are 8 bytes of integers.
    [0, unsafe { core::mem::transmute::<[u32; 2], u64>(tail) }]
}
