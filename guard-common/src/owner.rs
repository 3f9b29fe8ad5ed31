//! What the iterator over all open files and the guard agree on.

use core::mem::{offset_of, size_of};

/// Sockets whose owners are looked for in one pass at most.
pub const WANTED_ENTRIES: u32 = 4096;

/// Where the iterator finds things in the kernel's structures: the value of a
/// read-only global of its own, so the verifier knows each offset as a constant
/// and follows the kernel's types through it. All are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerOffsets {
    /// `struct file` → pointer to `struct inode`.
    pub file_inode: u32,
    /// `struct inode` → 16-bit mode.
    pub inode_mode: u32,
    /// `struct inode` → number, 64 bits.
    pub inode_number: u32,
    /// `struct inode` → pointer to `struct super_block`.
    pub inode_super_block: u32,
    /// `struct super_block` → magic number, 64 bits.
    pub super_block_magic: u32,
    /// `struct task_struct` → number of the thread.
    pub task_pid: u32,
    /// `struct task_struct` → number of the thread group.
    pub task_tgid: u32,
    /// `struct task_struct` → pointer to the thread group leader's `struct task_struct`.
    pub task_leader: u32,
    /// `struct task_struct` → start in nanoseconds of the boot clock.
    pub task_start: u32,
    /// `struct task_struct` → pointer to the thread's `struct pid`.
    pub task_thread_pid: u32,
    /// `struct pid` → depth of the innermost PID namespace that it has a number in.
    pub pid_level: u32,
    /// `struct pid` → array of `struct upid`, from the initial PID namespace inwards.
    pub pid_numbers: u32,
    /// Size of `struct upid`; 0 when the guard is in the initial PID namespace,
    /// where the kernel's own numbers are the guard's.
    pub upid_size: u32,
    /// `struct upid` → the number.
    pub upid_number: u32,
}

const _: () = assert!(size_of::<OwnerOffsets>() == 56);
const _: () = assert!(offset_of!(OwnerOffsets, upid_number) == 52);

/// [`OwnerRecord::flags`]: the descriptor is in the thread group leader's table.
pub const OWNER_IS_LEADER: u32 = 1 << 0;

/// A process has a descriptor for a wanted socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerRecord {
    /// Inode number of the socket.
    pub inode: u64,
    /// When the thread group leader started: nanoseconds of the boot clock, without the
    /// offset of any time namespace.
    pub start_ns: u64,
    /// The thread group, in the guard's PID namespace.
    pub tgid: u32,
    /// The descriptor's number.
    pub fd: u32,
    /// `OWNER_` flags.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<OwnerRecord>() == 32);
const _: () = assert!(offset_of!(OwnerRecord, start_ns) == 8);
const _: () = assert!(offset_of!(OwnerRecord, tgid) == 16);
const _: () = assert!(offset_of!(OwnerRecord, fd) == 20);
const _: () = assert!(offset_of!(OwnerRecord, flags) == 24);
const _: () = assert!(offset_of!(OwnerRecord, pad) == 28);
