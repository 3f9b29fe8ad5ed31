//! `iter/task_file`: every open file of every process, of which those are told
//! that are wanted sockets.
//!
//! The kernel visits the thread group leaders and, since 5.10, of the other
//! threads only those with a descriptor table of their own. It shows the tasks
//! that have a number in the guard's PID namespace, whoever may look into them.
//!
//! Nothing here calls a helper that reads kernel memory by address, unless the
//! guard is in a child PID namespace: each member is loaded through a pointer
//! whose type the verifier knows. So it works on a locked down kernel too.

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::{bpf_get_current_task, generated};
use guard_common::{OWNER_IS_LEADER, OwnerOffsets, OwnerRecord};

use crate::maps;
use crate::socket::read;

/// The values are the guard's. It loads the program only where it knows all.
#[unsafe(no_mangle)]
static OWNER_OFFSETS: OwnerOffsets = OwnerOffsets {
    file_inode: 0,
    inode_mode: 0,
    inode_number: 0,
    inode_super_block: 0,
    super_block_magic: 0,
    task_pid: 0,
    task_tgid: 0,
    task_leader: 0,
    task_start: 0,
    task_thread_pid: 0,
    pid_level: 0,
    pid_numbers: 0,
    upid_size: 0,
    upid_number: 0,
};

/// One offset. The read is volatile because the loader replaces the value that
/// the compiler sees.
macro_rules! offset {
    ($field:ident) => {{
        // SAFETY: a field of an initialized static.
        let offset = unsafe { core::ptr::read_volatile(&raw const OWNER_OFFSETS.$field) };
        offset as usize
    }};
}

/// Loads a member of type `$type` through a pointer to one of the kernel's own
/// structures. Where the pointer is stale or null the kernel catches the fault
/// and gives zero.
macro_rules! member {
    ($base:expr, $field:ident: $type:ty) => {{
        let (base, offset): (*const u8, usize) = ($base, offset!($field));
        // SAFETY: the verifier knows what `base` points to, and the guard found a member of this
        // type there. Volatile, because the compiler must not load before a condition.
        unsafe { core::ptr::read_volatile(base.add(offset).cast::<$type>()) }
    }};
}

/// Loads a field of what the kernel passes to the program.
macro_rules! passed {
    ($base:expr, $field:ident) => {{
        let base = $base;
        // SAFETY: the kernel's own layout, the same since 5.8. Volatile keeps the compiler from merging
        // loads, which the verifier would refuse on a context pointer.
        unsafe { core::ptr::read_volatile(&raw const (*base).$field) }
    }};
}

/// `S_IFMT` and `S_IFSOCK` of `include/uapi/linux/stat.h`.
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
/// `SOCKFS_MAGIC` of `include/uapi/linux/magic.h`. A socket's file in another
/// file system, opened with O_PATH, is no socket.
const SOCKFS_MAGIC: u64 = 0x534f_434b;

/// `struct bpf_iter__task_file`.
#[repr(C)]
struct Context {
    meta: *const Meta,
    task: *const u8,
    fd: u32,
    pad: u32,
    file: *const u8,
}

/// `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn pg_task_file(context: *const Context) -> i32 {
    let (task, file) = (passed!(context, task), passed!(context, file));
    // The last call, after the last file, has neither.
    if task.is_null() || file.is_null() {
        return 0;
    }
    let inode = member!(file, file_inode: *const u8);
    if member!(inode, inode_mode: u16) & S_IFMT != S_IFSOCK {
        return 0;
    }
    let number = member!(inode, inode_number: u64);
    // SAFETY: only the presence matters.
    if unsafe { maps::WANTED.get(number) }.is_none() {
        return 0;
    }
    let super_block = member!(inode, inode_super_block: *const u8);
    if member!(super_block, super_block_magic: u64) != SOCKFS_MAGIC {
        return 0;
    }
    let leader = member!(task, task_leader: *const u8);
    let (pid, tgid) = (member!(task, task_pid: u32), member!(task, task_tgid: u32));
    let record = OwnerRecord {
        inode: number,
        start_ns: member!(leader, task_start: u64),
        tgid: if offset!(upid_size) == 0 { tgid } else { number_here(leader) },
        fd: passed!(context, fd),
        flags: if pid == tgid { OWNER_IS_LEADER } else { 0 },
        pad: 0,
    };
    let seq = passed!(passed!(context, meta), seq);
    // SAFETY: `seq` is what the iterator writes to, and `record` of this size. The kernel shows the file
    // again when the record does not fit any more, so the answer does not matter.
    let _shown_again =
        unsafe { generated::bpf_seq_write(seq, (&raw const record).cast(), size_of::<OwnerRecord>() as u32) };
    0
}

/// The number that a thread group's leader has in the PID namespace of the
/// current task, which is the guard; 0 when it is being reaped.
#[inline(always)]
fn number_here(leader: *const u8) -> u32 {
    // SAFETY: the helper has no requirements.
    let current = unsafe { bpf_get_current_task() };
    let number = || {
        let own: u64 = read(current, offset!(task_thread_pid))?;
        let level: u32 = read(own, offset!(pid_level))?;
        let pid: u64 = read(leader as u64, offset!(task_thread_pid))?;
        let numbers = offset!(pid_numbers) + level as usize * offset!(upid_size);
        read::<u32>(pid, numbers + offset!(upid_number))
    };
    number().unwrap_or(0)
}
