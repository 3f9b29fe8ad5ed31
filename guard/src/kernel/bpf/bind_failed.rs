//! User side of what tells of failed binds.

use guard_common::{BIND_FAILED_BY_LISTEN, BindFailedEvent, INET_CSK_GET_PORT, Settings, sys_exit};
use guard_core::model::{Instant, NetnsInode, Port, StartTime, Tgid, Uid};
use std::net::{IpAddr, Ipv6Addr};

use super::BpfError;
use super::event::{Malformed, comm, instant};
use super::settings::KernelTypes;
use crate::kernel::procfs::clock_ticks_per_second;

/// Whether binds that fail on a watched port are reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailedBinds {
    /// They are not.
    #[default]
    Unseen,
    /// They are where the kernel lets a program hook the function that decides
    /// about binds: that costs nobody else anything.
    WhereCheap,
    /// They are, even where it takes a program at the end of every system call
    /// of the machine: for the time of a run, not for months.
    AtAnyCost,
}

/// Somebody was told that a watched port is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindFailed {
    /// When.
    pub at: Instant,
    /// The address that was asked for; an IPv4-mapped one shows as IPv4.
    pub address: IpAddr,
    /// The port that was asked for.
    pub port: Port,
    /// The namespace of the socket; `None` on a kernel that does not tell the programs.
    pub netns: Option<NetnsInode>,
    /// `listen()` failed, after a `bind()` that had succeeded.
    pub by_listen: bool,
    /// How often this process failed on this port since it was last reported,
    /// which is at most once a second.
    pub attempts: u32,
    /// The process; `None` for one outside of the guard's PID namespace.
    pub tgid: Option<Tgid>,
    /// When it began; `None` where the kernel's types do not tell.
    pub start: Option<StartTime>,
    /// `comm` of the thread.
    pub comm: String,
    /// Its user.
    pub uid: Uid,
    /// Id of its cgroup in the v2 hierarchy: the inode number of its directory.
    pub cgroup: u64,
}

/// Where a system call's number and arguments are in `struct pt_regs`, which is
/// part of the ABI: it needs no BTF.
struct Registers {
    number: u32,
    first: u32,
    second: u32,
    bind: u32,
    listen: u32,
}

/// `orig_rax`, `rdi` and `rsi` of `arch/x86/include/uapi/asm/ptrace.h`.
#[cfg(target_arch = "x86_64")]
const REGISTERS: Option<Registers> =
    Some(Registers { number: 120, first: 112, second: 104, bind: 49, listen: 50 });
/// `syscallno`, `orig_x0` and `x1` of `arch/arm64/include/asm/ptrace.h`.
#[cfg(target_arch = "aarch64")]
const REGISTERS: Option<Registers> =
    Some(Registers { number: 280, first: 272, second: 8, bind: 200, listen: 201 });
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const REGISTERS: Option<Registers> = None;

/// Notes what the program on the deciding function must know.
///
/// # Errors
///
/// When the kernel lets nobody hook it, or its types are unknown.
pub(super) fn fit_function(types: &KernelTypes, settings: &mut Settings) -> Result<(), BpfError> {
    types.hook_function(&INET_CSK_GET_PORT)?;
    types.resolve_functions(&INET_CSK_GET_PORT, settings)?;
    types.resolve_sock(&sys_exit::EVENT, settings)?;
    // Of all this the start time only.
    types.resolve_descriptors(&sys_exit::EVENT, settings)?;
    settings.own_tgid = std::process::id();
    Ok(())
}

/// Notes what the program at the end of every system call must know.
///
/// # Errors
///
/// When this machine's registers or the kernel's types are unknown.
pub(super) fn fit_calls(types: &KernelTypes, settings: &mut Settings) -> Result<(), BpfError> {
    let Some(registers) = REGISTERS else {
        return Err(BpfError::Option {
            what: format!("the registers of {} are not known to this portguard", std::env::consts::ARCH),
        });
    };
    types.arguments(&sys_exit::EVENT)?;
    types.resolve_descriptors(&sys_exit::EVENT, settings)?;
    types.resolve_sock(&sys_exit::EVENT, settings)?;
    settings.regs_number = registers.number;
    (settings.regs_first, settings.regs_second) = (registers.first, registers.second);
    (settings.call_bind, settings.call_listen) = (registers.bind, registers.listen);
    settings.own_tgid = std::process::id();
    Ok(())
}

pub(super) fn decode(event: &BindFailedEvent) -> Result<BindFailed, Malformed> {
    let tick_ns = 1_000_000_000 / clock_ticks_per_second().max(1);
    Ok(BindFailed {
        at: instant(&event.header),
        address: Ipv6Addr::from(event.local_addr).to_canonical(),
        port: Port::new(event.port).ok_or(Malformed)?,
        netns: (event.netns != 0).then_some(NetnsInode(event.netns.into())),
        by_listen: event.flags & BIND_FAILED_BY_LISTEN != 0,
        attempts: event.attempts,
        tgid: (event.tgid != 0).then_some(Tgid(event.tgid)),
        // The kernel rounds down as well when it shows the start time in /proc.
        start: (event.start_ns != 0).then_some(StartTime(event.start_ns / tick_ns)),
        comm: comm(&event.comm),
        uid: Uid(event.uid),
        cgroup: event.cgroup,
    })
}
