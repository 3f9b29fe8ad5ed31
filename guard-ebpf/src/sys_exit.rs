//! `raw_syscalls:sys_exit`: failed `bind()` and `listen()` calls, where the kernel
//! lets nobody hook the function that refuses them.
//!
//! One program at the end of the call does for both ends: the registers still
//! show the arguments, and what the process passed was read by the kernel a moment
//! ago. The per-call tracepoints (`sys_exit_bind`) would be no cheaper: the kernel
//! serves them from this one, and while either is attached every system call of
//! the machine takes the slower way out.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_user};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use guard_common::LostReason;
use guard_common::sys_exit::{ARG_REGS, ARG_RET};

use crate::lost_bind::{Attempt, EADDRINUSE, report};
use crate::settings::setting;
use crate::skip::{Skip, settle};
use crate::sock::{Sock, mapped};
use crate::socket::{Socket, argument, port_is_watched, read};

/// `AF_UNSPEC`, which `bind()` takes for `AF_INET`.
const AF_UNSPEC: u16 = 0;
/// `AF_INET`
const AF_INET: u16 = 2;
/// `AF_INET6`
const AF_INET6: u16 = 10;

#[raw_tracepoint]
fn pg_raw_sys_exit(ctx: RawTracePointContext) {
    settle(try_sys_exit(&ctx));
}

#[inline(always)]
fn try_sys_exit(ctx: &RawTracePointContext) -> Result<(), Skip> {
    // Nearly no system call ends like this, so every other one is done with here.
    // SAFETY: the guard compared the number of arguments with BTF.
    if unsafe { argument::<ARG_RET>(ctx) } as i64 != -i64::from(EADDRINUSE) {
        return Err(Skip::Unrelated);
    }
    // SAFETY: as above.
    let registers = unsafe { argument::<ARG_REGS>(ctx) };
    let register = |offset: u32| read::<u64>(registers, offset as usize).map_err(|_| LostReason::ReadBind);
    let number = register(setting!(regs_number))? as u32;
    if number == setting!(call_bind) {
        let name = register(setting!(regs_second))?;
        let [family, port_be] = user::<[u16; 2]>(name, 0)?;
        let port = u16::from_be(port_be);
        if !matches!(family, AF_UNSPEC | AF_INET | AF_INET6) || !port_is_watched(port) {
            return Err(Skip::Unrelated);
        }
        let address = if family == AF_INET6 { halves(user(name, 8)?) } else { mapped(user(name, 4)?) };
        let family = if family == AF_INET6 { AF_INET6 } else { AF_INET };
        return report(
            &socket(register(setting!(regs_first))?)?,
            &Attempt { family, port, address, by_listen: false },
        );
    }
    if number == setting!(call_listen) {
        // It keeps the port and the address that it is bound to.
        let sock = socket(register(setting!(regs_first))?)?;
        let port = sock.local_port()?;
        if !port_is_watched(port) {
            return Err(Skip::Unrelated);
        }
        let details = sock.details();
        let (family, address) = (details.family, details.local_addr);
        return report(&sock, &Attempt { family, port, address, by_listen: true });
    }
    Err(Skip::Unrelated)
}

/// Copies a `T` of the current process's. Its page is in memory, for the kernel
/// has just read it; if another thread took it away meanwhile, that is a loss.
#[inline(always)]
fn user<T>(address: u64, offset: usize) -> Result<T, LostReason> {
    // SAFETY: the helper checks the address and fails instead of faulting; every
    // `T` used with it is an integer or an array of integers.
    unsafe { bpf_probe_read_user(address.wrapping_add(offset as u64) as *const T) }
        .map_err(|_| LostReason::ReadBind)
}

/// A user's address is aligned to 4 bytes only.
#[inline(always)]
fn halves(quarters: [u32; 4]) -> [u64; 2] {
    // SAFETY: both are 16 bytes of integers.
    unsafe { core::mem::transmute(quarters) }
}

/// The socket behind the current process's descriptor `fd`.
#[inline(always)]
fn socket(fd: u64) -> Result<Sock, Skip> {
    let pointer = |base: u64, offset: u64| {
        read::<u64>(base.wrapping_add(offset), 0).map_err(|_| Skip::Lost(LostReason::ReadBind))
    };
    // SAFETY: the helper has no requirements.
    let task = unsafe { bpf_get_current_task() };
    let files = pointer(task, setting!(task_files).into())?;
    let table = pointer(files, setting!(files_table).into())?;
    let array = pointer(table, setting!(table_files).into())?;
    let file = pointer(array, u64::from(fd as u32) * 8)?;
    let socket = pointer(file, setting!(file_private).into())?;
    Ok(Sock(pointer(socket, setting!(socket_sk).into())?))
}
