use core::mem::{offset_of, size_of};

/// Everything that is fixed before the programs are loaded: the value of one
/// read-only global, so the verifier knows it and drops what cannot happen.
///
/// Offsets are in bytes and come from the running kernel: `ctx_` offsets into
/// a classic tracepoint's record from tracefs, the others from its BTF. 0 means
/// that the kernel does not tell; no member that may be missing lies at 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Device number of the guard's PID namespace; see `pidns_ino`.
    pub pidns_dev: u64,
    /// Inode number of the guard's PID namespace, or 0 when it is the initial
    /// one and the kernel's own numbers are the guard's.
    pub pidns_ino: u64,
    /// `inet_sock_set_state`: 1 or 2, the size of its `protocol` field.
    pub ctx_protocol_size: u32,
    /// `inet_sock_set_state`: `saddr_v6`.
    pub ctx_state_local: u32,
    /// `inet_sock_set_state`: `daddr_v6`.
    pub ctx_state_remote: u32,
    /// `tcp_destroy_sock`: `family`, which older kernels do not have: then `sock_family` is used.
    pub ctx_destroy_family: u32,
    /// `tcp_destroy_sock`: `saddr_v6`.
    pub ctx_destroy_local: u32,
    /// `tcp_destroy_sock`: `daddr_v6`.
    pub ctx_destroy_remote: u32,
    /// `tcp_destroy_sock`: `sock_cookie`.
    pub ctx_destroy_cookie: u32,
    /// `sched_process_exit`: `group_dead` (since 6.16).
    pub ctx_group_dead: u32,
    /// `struct sock` → pointer to `struct net`.
    pub sock_net: u32,
    /// `struct sock` → 64-bit cookie.
    pub sock_cookie: u32,
    /// `struct sock` → 16-bit address family.
    pub sock_family: u32,
    /// `struct sock` → 16-bit protocol number.
    pub sock_protocol: u32,
    /// `struct sock` → local port, 16 bits in host byte order; 0 once the port was put.
    pub sock_number: u32,
    /// `struct inet_sock` → local port, 16 bits in network byte order. Not the
    /// number in host byte order beside it: that one is 0 once the port was put.
    pub sock_local_port: u32,
    /// `struct sock` → remote port, 16 bits in network byte order.
    pub sock_remote_port: u32,
    /// `struct inet_sock` → local IPv4 address.
    pub sock_local_v4: u32,
    /// `struct sock` → remote IPv4 address: the one member that does lie at 0.
    pub sock_remote_v4: u32,
    /// `struct sock` → local IPv6 address; 0 on a kernel without IPv6.
    pub sock_local_v6: u32,
    /// `struct sock` → remote IPv6 address; 0 on a kernel without IPv6.
    pub sock_remote_v6: u32,
    /// `struct net` → inode number.
    pub net_inum: u32,
    /// `struct task_struct` → pointer to `struct signal_struct`.
    pub task_signal: u32,
    /// `struct task_struct` → pointer to the thread group leader's `struct task_struct`.
    pub task_leader: u32,
    /// `struct task_struct` → exit code.
    pub task_exit_code: u32,
    /// `struct signal_struct` → number of threads alive.
    pub signal_live: u32,
    /// `struct signal_struct` → flags.
    pub signal_flags: u32,
    /// `struct signal_struct` → exit code of the group.
    pub signal_exit_code: u32,
    /// `struct inet_connection_sock` → pointer to its bind bucket.
    pub sock_bucket: u32,
    /// `struct sock` → 8-bit TCP state.
    pub sock_state: u32,
    /// `struct inet_timewait_sock` → local port, 16 bits in network byte order.
    pub mini_port: u32,
    /// `struct task_struct` → 64-bit start time, nanoseconds of `CLOCK_BOOTTIME`.
    pub task_start: u32,
    /// `struct task_struct` → pointer to `struct files_struct`.
    pub task_files: u32,
    /// `struct files_struct` → pointer to `struct fdtable`.
    pub files_table: u32,
    /// `struct fdtable` → pointer to an array of pointers to `struct file`.
    pub table_files: u32,
    /// `struct file` → pointer to what it stands for, here a `struct socket`.
    pub file_private: u32,
    /// `struct socket` → pointer to `struct sock`.
    pub socket_sk: u32,
    /// `struct pt_regs` → number of the system call.
    pub regs_number: u32,
    /// `struct pt_regs` → its first argument.
    pub regs_first: u32,
    /// `struct pt_regs` → its second argument.
    pub regs_second: u32,
    /// Number of `bind()`.
    pub call_bind: u32,
    /// Number of `listen()`.
    pub call_listen: u32,
    /// The guard itself, in its PID namespace: its own probes are no lost binds.
    pub own_tgid: u32,
    /// 1 when the release of a socket is observed: only then are listeners
    /// that leave LISTEN remembered.
    pub observe_release: u8,
    /// 1 when the exit of owners is observed: only then are they remembered.
    pub observe_exit: u8,
    /// 1 when the raw tracepoint `sched_process_exit` has the argument
    /// `group_dead` (since 6.16). Where it has not, a program that names it
    /// cannot be attached.
    pub raw_group_dead: u8,
    /// 1 when the exit of `inet_put_port` is observed: then `tcp_destroy_sock`
    /// leaves the release of a former listener to it.
    pub observe_put: u8,
}

const _: () = assert!(size_of::<Settings>() == 184);
const _: () = assert!(offset_of!(Settings, ctx_protocol_size) == 16);
const _: () = assert!(offset_of!(Settings, sock_net) == 48);
const _: () = assert!(offset_of!(Settings, task_signal) == 96);
const _: () = assert!(offset_of!(Settings, sock_bucket) == 120);
const _: () = assert!(offset_of!(Settings, observe_release) == 180);
