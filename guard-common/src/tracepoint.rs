//! What the programs rely on at fixed places: the arguments of raw tracepoints
//! and fields of the classic ones' records.
//!
//! A raw tracepoint hands over its arguments as 64-bit words in their order. The
//! guard compares their number with the kernel's BTF before it attaches anything;
//! newer kernels append some.
//!
//! Of a classic tracepoint's record, only what the filters need has a fixed place: such a field is one load
//! instruction. The guard compares this table with tracefs `format` before it
//! attaches anything. Fields that matter only for an event that will be sent
//! are read through offsets in [`Settings`](crate::Settings), so their place
//! may differ between kernels.

/// A field of a tracepoint's record, as tracefs `format` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name.
    pub name: &'static str,
    /// Offset from the beginning of the record, in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

impl Field {
    const fn new(name: &'static str, offset: usize, size: usize) -> Self {
        assert!(offset.is_multiple_of(size), "the verifier refuses unaligned context loads");
        Self { name, offset, size }
    }
}

/// A tracepoint, and what its programs load directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Folder below `events` in tracefs.
    pub category: &'static str,
    /// Folder below the category.
    pub name: &'static str,
    /// The fields of the classic one's record.
    pub fields: &'static [Field],
    /// The typedef in BTF that shows the raw one's arguments (since 5.5). Its
    /// function has one parameter more, before them.
    pub prototype: &'static str,
    /// Arguments of the raw one, at least.
    pub arguments: usize,
}

/// `sock:inet_sock_set_state`, since 4.16.
pub mod inet_sock_set_state {
    use super::{Event, Field};

    /// Argument: address of the `struct sock`.
    pub const ARG_SK: usize = 0;
    /// Argument: state left.
    pub const ARG_OLDSTATE: usize = 1;
    /// Argument: state about to be entered.
    pub const ARG_NEWSTATE: usize = 2;

    /// Address of the `struct sock`.
    pub const SKADDR: Field = Field::new("skaddr", 8, 8);
    /// State left.
    pub const OLDSTATE: Field = Field::new("oldstate", 16, 4);
    /// State about to be entered.
    pub const NEWSTATE: Field = Field::new("newstate", 20, 4);
    /// Local port, host byte order.
    pub const SPORT: Field = Field::new("sport", 24, 2);
    /// Remote port, host byte order.
    pub const DPORT: Field = Field::new("dport", 26, 2);
    /// Address family.
    pub const FAMILY: Field = Field::new("family", 28, 2);
    /// `IPPROTO_`; one byte on older kernels and two on newer ones: its size is a setting.
    pub const PROTOCOL_OFFSET: usize = 30;

    /// The table.
    pub const EVENT: Event = Event {
        category: "sock",
        name: "inet_sock_set_state",
        fields: &[SKADDR, OLDSTATE, NEWSTATE, SPORT, DPORT, FAMILY],
        prototype: "btf_trace_inet_sock_set_state",
        arguments: 3,
    };
}

/// `tcp:tcp_destroy_sock`, since 4.16.
pub mod tcp_destroy_sock {
    use super::{Event, Field};

    /// Argument: address of the `struct sock`.
    pub const ARG_SK: usize = 0;

    /// Address of the `struct sock`.
    pub const SKADDR: Field = Field::new("skaddr", 8, 8);
    /// Local port, host byte order.
    pub const SPORT: Field = Field::new("sport", 16, 2);
    /// Remote port, host byte order.
    pub const DPORT: Field = Field::new("dport", 18, 2);

    /// The table.
    pub const EVENT: Event = Event {
        category: "tcp",
        name: "tcp_destroy_sock",
        fields: &[SKADDR, SPORT, DPORT],
        prototype: "btf_trace_tcp_destroy_sock",
        arguments: 1,
    };
}

/// `sched:sched_process_exit`.
pub mod sched_process_exit {
    use super::Event;

    /// Argument, since 6.16: the whole thread group is dead.
    pub const ARG_GROUP_DEAD: usize = 1;

    /// No field at a fixed place: the programs ask helpers about the current task.
    pub const EVENT: Event = Event {
        category: "sched",
        name: "sched_process_exit",
        fields: &[],
        prototype: "btf_trace_sched_process_exit",
        arguments: 1,
    };
}

/// `raw_syscalls:sys_exit`: every system call's end.
pub mod sys_exit {
    use super::Event;

    /// Argument: address of the `struct pt_regs` with which it was called.
    pub const ARG_REGS: usize = 0;
    /// Argument: what it returns.
    pub const ARG_RET: usize = 1;

    /// There is no program on the classic one, so no field matters.
    pub const EVENT: Event = Event {
        category: "raw_syscalls",
        name: "sys_exit",
        fields: &[],
        prototype: "btf_trace_sys_exit",
        arguments: 2,
    };
}
