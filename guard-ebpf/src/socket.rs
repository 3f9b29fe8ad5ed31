//! What the programs ask about a socket, and how its answers are read.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::programs::TracePointContext;
use guard_common::LostReason;

use crate::settings::{known, setting};
use crate::skip::{Skip, count};

/// A socket, seen through one kind of tracepoint. Everything is read when it is
/// asked for.
pub(crate) trait Socket {
    /// Address of the `struct sock`.
    fn skaddr(&self) -> u64;

    /// Host byte order; 0 for a socket that has none yet.
    fn local_port(&self) -> Result<u16, Skip>;

    /// `IPPROTO_` number. A hook of TCP's own need not ask.
    #[inline(always)]
    fn protocol(&self) -> Result<u16, Skip> {
        Err(Skip::Unrelated)
    }

    /// What only an event that will be sent needs.
    fn details(&self) -> Details;
}

/// As in [`SocketEvent`](guard_common::SocketEvent), where an address is [`bytes`].
pub(crate) struct Details {
    pub(crate) family: u16,
    pub(crate) remote_port: u16,
    pub(crate) cookie: u64,
    pub(crate) local_addr: [u64; 2],
    pub(crate) remote_addr: [u64; 2],
}

/// Loads argument `N` of a raw tracepoint.
///
/// # Safety
///
/// The tracepoint has that many arguments.
#[inline(always)]
pub(crate) unsafe fn argument<const N: usize>(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the caller's promise. Volatile, as for fields; and a load that the
    // compiler moved to before its condition would be refused at attach.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<u64>().add(N)) }
}

/// Loads a field of the tracepoint's record at a place that the verifier sees
/// as a constant.
///
/// # Safety
///
/// The record has a field of type `T` at `OFFSET`: the guard compared both with
/// the running kernel before it attached the program.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy, const OFFSET: usize>(ctx: &TracePointContext) -> T {
    // SAFETY: the caller's promise. Volatile keeps the compiler from merging
    // loads, which the verifier would refuse on a context pointer.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().byte_add(OFFSET).cast()) }
}

/// Copies a `T` from `offset` bytes past `base`.
#[inline(always)]
pub(crate) fn read<T>(base: u64, offset: usize) -> Result<T, i32> {
    let address = base.wrapping_add(offset as u64);
    // SAFETY: the helper checks the address and fails instead of faulting; every
    // `T` used with it is an integer or an array of bytes.
    unsafe { bpf_probe_read_kernel(address as *const T) }
}

/// Copies a `T` from the tracepoint's record; `default` where the kernel has no
/// such field.
#[inline(always)]
pub(crate) fn context<T>(ctx: &TracePointContext, offset: u32, default: T) -> T {
    let Some(offset) = known(offset) else {
        return default;
    };
    read(ctx.as_ptr() as u64, offset).unwrap_or_else(|_| {
        count(LostReason::ReadSocket);
        default
    })
}

/// The bytes in memory order. On their way they are words, because the compiler
/// copies what is aligned in two instructions and what is not in thirty-two.
#[inline(always)]
pub(crate) fn bytes(words: [u64; 2]) -> [u8; 16] {
    // SAFETY: both are 16 bytes of integers.
    unsafe { core::mem::transmute(words) }
}

/// Inode number of the socket's network namespace, or 0 where the kernel does
/// not tell where it is.
#[inline(always)]
pub(crate) fn netns(skaddr: u64) -> Result<u32, Skip> {
    let (Some(net_offset), Some(inum_offset)) = (known(setting!(sock_net)), known(setting!(net_inum))) else {
        return Ok(0);
    };
    let lost = |_| Skip::Lost(LostReason::ReadNetns);
    let net: u64 = read(skaddr, net_offset).map_err(lost)?;
    read(net, inum_offset).map_err(lost)
}

/// The socket's cookie, or 0 when it has none yet.
#[inline(always)]
pub(crate) fn cookie(skaddr: u64) -> u64 {
    member(skaddr, setting!(sock_cookie))
}

/// A member of the socket; 0 where the kernel does not tell where it is.
#[inline(always)]
pub(crate) fn member<T: Default>(skaddr: u64, offset: u32) -> T {
    let Some(offset) = known(offset) else {
        return T::default();
    };
    read(skaddr, offset).unwrap_or_else(|_| {
        count(LostReason::ReadSocket);
        T::default()
    })
}

/// No socket keeps this port. Its bit says that the end of connections is
/// reported for some port.
pub(crate) const CONNECTIONS: u16 = 0;

/// The port's bit in the bitmap of watched ports.
#[inline(always)]
pub(crate) fn port_is_watched(port: u16) -> bool {
    match crate::maps::PORTS.get_ptr(u32::from(port >> 6)) {
        // SAFETY: array slots live as long as the map; the guard writes them in
        // one piece.
        Some(word) => unsafe { core::ptr::read_volatile(word) >> (port & 63) & 1 == 1 },
        None => false,
    }
}
