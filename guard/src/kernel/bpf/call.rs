//! `bpf(2)`, for what aya does not do, or not without more.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

/// `BPF_PROG_LOAD` of `enum bpf_cmd` in `include/uapi/linux/bpf.h`, like the others.
const PROG_LOAD: libc::c_int = 5;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_FREEZE: libc::c_int = 22;
const LINK_CREATE: libc::c_int = 28;
const ITER_CREATE: libc::c_int = 33;

/// `BPF_PROG_TYPE_TRACING` of `enum bpf_prog_type`.
pub(super) const TYPE_TRACING: u32 = 26;
/// `BPF_TRACE_FEXIT` of `enum bpf_attach_type`.
pub(super) const TRACE_FEXIT: u32 = 25;
/// `BPF_TRACE_ITER`
pub(super) const TRACE_ITER: u32 = 28;

/// The members of `union bpf_attr` for `BPF_PROG_LOAD`, as of Linux 5.6. A newer
/// kernel takes what it does not find for zero.
#[repr(C)]
#[derive(Default)]
pub(super) struct ProgLoad {
    pub(super) prog_type: u32,
    pub(super) insn_cnt: u32,
    pub(super) insns: u64,
    pub(super) license: u64,
    pub(super) log_level: u32,
    pub(super) log_size: u32,
    pub(super) log_buf: u64,
    pub(super) kern_version: u32,
    pub(super) prog_flags: u32,
    pub(super) prog_name: [u8; 16],
    pub(super) prog_ifindex: u32,
    pub(super) expected_attach_type: u32,
    pub(super) prog_btf_fd: u32,
    pub(super) func_info_rec_size: u32,
    pub(super) func_info: u64,
    pub(super) func_info_cnt: u32,
    pub(super) line_info_rec_size: u32,
    pub(super) line_info: u64,
    pub(super) line_info_cnt: u32,
    pub(super) attach_btf_id: u32,
    pub(super) attach_prog_fd: u32,
    pub(super) pad: u32,
}

const _: () = assert!(size_of::<ProgLoad>() == 120);
const _: () = assert!(std::mem::offset_of!(ProgLoad, expected_attach_type) == 68);
const _: () = assert!(std::mem::offset_of!(ProgLoad, attach_btf_id) == 108);

/// `struct { … } link_create`, as far as it is used.
#[repr(C)]
pub(super) struct LinkCreate {
    pub(super) prog_fd: u32,
    pub(super) target_fd: u32,
    pub(super) attach_type: u32,
    pub(super) flags: u32,
}

/// `struct { … } iter_create`
#[repr(C)]
pub(super) struct IterCreate {
    pub(super) link_fd: u32,
    pub(super) flags: u32,
}

/// The members for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct UpdateElem {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A descriptor as `union bpf_attr` takes it; none is negative.
pub(super) const fn number(fd: RawFd) -> u32 {
    fd.cast_unsigned()
}

/// Loads a program.
///
/// # Safety
///
/// What the attributes point to is there for the call: as many instructions as they say, a licence that ends with a NUL, and
/// room for the log where one is asked for.
pub(super) unsafe fn load_program(attributes: &ProgLoad) -> Result<OwnedFd, Errno> {
    // SAFETY: the command makes a descriptor; the rest is the caller's promise.
    unsafe { descriptor(PROG_LOAD, attributes) }
}

/// Makes a link, which needs no memory of this process.
pub(super) fn create_link(attributes: &LinkCreate) -> Result<OwnedFd, Errno> {
    // SAFETY: the command makes a descriptor and follows no pointer.
    unsafe { descriptor(LINK_CREATE, attributes) }
}

/// Makes a pass of an iterator.
pub(super) fn create_iterator(attributes: &IterCreate) -> Result<OwnedFd, Errno> {
    // SAFETY: the command makes a descriptor and follows no pointer.
    unsafe { descriptor(ITER_CREATE, attributes) }
}

/// Writes the only element of an array map whose values are as long as `value`, and lets nobody write it again: from
/// then on the verifier takes it for constants.
///
/// # Safety
///
/// It is an ordinary array map (not one per CPU) whose values are no longer than `value`.
pub(super) unsafe fn write_for_good(map: RawFd, value: &[u8]) -> Result<(), Errno> {
    let first = 0_u32;
    let update = UpdateElem {
        map_fd: number(map),
        pad: 0,
        key: std::ptr::from_ref(&first) as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel copies a key of four bytes and, by the caller's promise, no more of the value than there is.
    unsafe { call(MAP_UPDATE_ELEM, &update) }?;
    // SAFETY: the command follows no pointer.
    unsafe { call(MAP_FREEZE, &number(map)) }?;
    Ok(())
}

/// # Safety
///
/// The command makes a descriptor, and the pointers among `attributes` are valid for what it does with them.
unsafe fn descriptor<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd, Errno> {
    // SAFETY: the caller's promise.
    let fd = unsafe { call(command, attributes) }?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
///
/// The pointers among `attributes` are valid for what the command does with them.
unsafe fn call<T>(command: libc::c_int, attributes: &T) -> Result<libc::c_long, Errno> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes and takes what is missing of the union as zero; the rest
    // is the caller's promise.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    Errno::result(answer)
}
