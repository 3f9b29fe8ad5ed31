use core::mem::{offset_of, size_of};

/// Number of the wire format; both sides come from one build, so a mismatch
/// means that a foreign or stale object was embedded.
pub const ABI: u16 = 1;

/// Length of the kernel's `comm`, including at least one NUL.
pub const COMM_LEN: usize = 16;

/// [`SocketEvent`]: a socket is about to change its TCP state.
pub const KIND_STATE_CHANGED: u16 = 1;
/// [`SocketEvent`]: the kernel begins to destroy a socket; its bind bucket is
/// released well under a microsecond later.
pub const KIND_RELEASED: u16 = 2;
/// [`ExitEvent`]: the last thread of a watched thread group exits.
pub const KIND_EXITED: u16 = 3;

/// [`SocketEvent`]: a former listener has given its port back. In place of
/// [`KIND_RELEASED`], where the programs see that moment itself.
pub const KIND_PORT_PUT: u16 = 5;
/// [`TimeWaitEvent`]: a TIME_WAIT or FIN_WAIT2 mini-socket is gone.
pub const KIND_TIME_WAIT_ENDED: u16 = 6;
/// [`BindFailedEvent`]: a process was told that a watched port is in use.
pub const KIND_BIND_FAILED: u16 = 4;

/// `TCP_CLOSE` of `include/net/tcp_states.h`.
pub const TCP_CLOSE: u8 = 7;
/// `TCP_LISTEN` of `include/net/tcp_states.h`.
pub const TCP_LISTEN: u8 = 10;

/// [`ExitEvent::flags`]: [`ExitEvent::status`] was read from the task.
pub const EXIT_STATUS_KNOWN: u32 = 1 << 0;

/// [`BindFailedEvent::flags`]: `listen()` failed, after a `bind()` that had succeeded.
pub const BIND_FAILED_BY_LISTEN: u32 = 1 << 0;

/// Begins every record in the ring buffer.
///
/// A reader that does not know `kind` skips the record; `size` is the record's
/// own length, so a longer record of a known kind can be read by its beginning.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`ABI`].
    pub abi: u16,
    /// One of the `KIND_` constants, or one that this version does not know.
    pub kind: u16,
    /// Length of the whole record in bytes, this header included.
    pub size: u32,
    /// `bpf_ktime_get_ns()`: `CLOCK_MONOTONIC` in nanoseconds.
    pub ktime_ns: u64,
}

const _: () = assert!(size_of::<Header>() == 16);
const _: () = assert!(offset_of!(Header, kind) == 2);
const _: () = assert!(offset_of!(Header, size) == 4);
const _: () = assert!(offset_of!(Header, ktime_ns) == 8);

/// Something happened to a TCP socket on a watched port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketEvent {
    /// `kind` is [`KIND_STATE_CHANGED`], [`KIND_RELEASED`] or [`KIND_PORT_PUT`].
    pub header: Header,
    /// Address of the kernel's `struct sock`: names the socket until it is destroyed.
    pub skaddr: u64,
    /// `sk_cookie`; 0 when nobody asked the kernel for this socket's cookie yet.
    pub cookie: u64,
    /// Inode number of the socket's network namespace; 0 when the programs
    /// cannot read it.
    pub netns: u32,
    /// Thread group that acted, in the guard's PID namespace. Only listeners
    /// entering or leaving LISTEN and listeners being released have one: these
    /// happen in process context. 0 for every other socket (often softirq,
    /// where the current task is a bystander) and for a task that the guard's
    /// PID namespace does not contain.
    pub tgid: u32,
    /// `AF_INET` (2) or `AF_INET6` (10); 0 when a classic tracepoint has no such field.
    pub family: u16,
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order; 0 for a listener.
    pub remote_port: u16,
    /// Kernel's number of the state left. In a [`KIND_RELEASED`] or
    /// [`KIND_PORT_PUT`] record: `TCP_LISTEN` for a socket that had been a listener, else 0.
    pub old_state: u8,
    /// Kernel's number of the state entered; 0 in a record of a release.
    pub new_state: u8,
    /// Local address in IPv6 form. An IPv4 address is mapped
    /// (`::ffff:a.b.c.d`), whatever the socket's family: so do the tracepoints.
    pub local_addr: [u8; 16],
    /// Remote address in the same form; unspecified for a listener.
    pub remote_addr: [u8; 16],
    /// `comm` of the thread that acted, all zero where `tgid` is 0.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<SocketEvent>() == 96);
const _: () = assert!(offset_of!(SocketEvent, skaddr) == 16);
const _: () = assert!(offset_of!(SocketEvent, cookie) == 24);
const _: () = assert!(offset_of!(SocketEvent, netns) == 32);
const _: () = assert!(offset_of!(SocketEvent, tgid) == 36);
const _: () = assert!(offset_of!(SocketEvent, family) == 40);
const _: () = assert!(offset_of!(SocketEvent, local_port) == 42);
const _: () = assert!(offset_of!(SocketEvent, remote_port) == 44);
const _: () = assert!(offset_of!(SocketEvent, old_state) == 46);
const _: () = assert!(offset_of!(SocketEvent, new_state) == 47);
const _: () = assert!(offset_of!(SocketEvent, local_addr) == 48);
const _: () = assert!(offset_of!(SocketEvent, remote_addr) == 64);
const _: () = assert!(offset_of!(SocketEvent, comm) == 80);

/// A thread group that owned a watched port exits. Its descriptors, and with
/// them its sockets, are still open at this moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitEvent {
    /// `kind` is [`KIND_EXITED`].
    pub header: Header,
    /// The thread group, in the guard's PID namespace.
    pub tgid: u32,
    /// Status word as `wait(2)` will report it; 0 unless [`EXIT_STATUS_KNOWN`].
    pub status: i32,
    /// `EXIT_` flags.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
    /// `comm` of the thread that exited last.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<ExitEvent>() == 48);
const _: () = assert!(offset_of!(ExitEvent, tgid) == 16);
const _: () = assert!(offset_of!(ExitEvent, status) == 20);
const _: () = assert!(offset_of!(ExitEvent, flags) == 24);
const _: () = assert!(offset_of!(ExitEvent, pad) == 28);
const _: () = assert!(offset_of!(ExitEvent, comm) == 32);

/// A mini-socket on a watched port is gone, by time or otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWaitEvent {
    /// `kind` is [`KIND_TIME_WAIT_ENDED`].
    pub header: Header,
    /// Inode number of its network namespace; 0 when the programs cannot read it.
    pub netns: u32,
    /// Host byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<TimeWaitEvent>() == 24);
const _: () = assert!(offset_of!(TimeWaitEvent, netns) == 16);
const _: () = assert!(offset_of!(TimeWaitEvent, port) == 20);
const _: () = assert!(offset_of!(TimeWaitEvent, pad) == 22);

/// A process lost a watched port to somebody: the kernel answered `EADDRINUSE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindFailedEvent {
    /// `kind` is [`KIND_BIND_FAILED`].
    pub header: Header,
    /// When its thread group began, in nanoseconds of `CLOCK_BOOTTIME`; 0 where
    /// the kernel's types do not tell.
    pub start_ns: u64,
    /// Id of its cgroup in the v2 hierarchy.
    pub cgroup: u64,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// The thread group, in the guard's PID namespace; 0 for one outside of it.
    pub tgid: u32,
    /// Its user, in the initial user namespace.
    pub uid: u32,
    /// How often it failed on this port since it was last reported, this time included.
    pub attempts: u32,
    /// What the kernel answered, positive.
    pub errno: i32,
    /// `BIND_FAILED_` flags.
    pub flags: u32,
    /// Host byte order.
    pub port: u16,
    /// `AF_INET` (2) or `AF_INET6` (10).
    pub family: u16,
    /// Zero.
    pub pad: u32,
    /// The address that was asked for, in IPv6 form as in [`SocketEvent`].
    pub local_addr: [u8; 16],
    /// `comm` of the thread.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<BindFailedEvent>() == 96);
const _: () = assert!(offset_of!(BindFailedEvent, start_ns) == 16);
const _: () = assert!(offset_of!(BindFailedEvent, cgroup) == 24);
const _: () = assert!(offset_of!(BindFailedEvent, netns) == 32);
const _: () = assert!(offset_of!(BindFailedEvent, tgid) == 36);
const _: () = assert!(offset_of!(BindFailedEvent, uid) == 40);
const _: () = assert!(offset_of!(BindFailedEvent, attempts) == 44);
const _: () = assert!(offset_of!(BindFailedEvent, errno) == 48);
const _: () = assert!(offset_of!(BindFailedEvent, flags) == 52);
const _: () = assert!(offset_of!(BindFailedEvent, port) == 56);
const _: () = assert!(offset_of!(BindFailedEvent, family) == 58);
const _: () = assert!(offset_of!(BindFailedEvent, pad) == 60);
const _: () = assert!(offset_of!(BindFailedEvent, local_addr) == 64);
const _: () = assert!(offset_of!(BindFailedEvent, comm) == 80);

// The ring buffer aligns every record to 8 bytes and no further.
const _: () = assert!(align_of::<SocketEvent>() == 8);
const _: () = assert!(align_of::<ExitEvent>() == 8);
const _: () = assert!(align_of::<BindFailedEvent>() == 8);
const _: () = assert!(align_of::<TimeWaitEvent>() == 8);
