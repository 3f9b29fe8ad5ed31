use std::fmt;
use std::num::NonZeroU16;

/// A TCP port, never 0: port 0 asks the kernel to choose and cannot be guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// `None` for port 0.
    pub const fn new(port: u16) -> Option<Self> {
        match NonZeroU16::new(port) {
            Some(port) => Some(Self(port)),
            None => None,
        }
    }

    /// The port in host byte order.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A thread group's id in the guard's PID namespace: what user space calls a PID.
    Tgid(u32)
}
number! {
    /// A process's start, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    StartTime(u64)
}
number! {
    /// A user id in the guard's user namespace.
    Uid(u32)
}
number! {
    /// A socket's inode number on sockfs, as `sock_diag` and `/proc/PID/fd` show it.
    SocketInode(u64)
}
number! {
    /// The kernel's 64-bit socket cookie, unique for the life of the machine.
    SocketCookie(u64)
}
number! {
    /// A network namespace's inode number on nsfs, as `/proc/PID/ns/net` shows it.
    NetnsInode(u64)
}

/// One process for its whole life: a PID alone can be reused, a PID together
/// with its start time cannot within one clock tick's resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Thread group id.
    pub tgid: Tgid,
    /// When the thread group leader started.
    pub start: StartTime,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tgid.fmt(f)
    }
}
