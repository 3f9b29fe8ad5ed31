//! How often the kernel ran a BPF program, and how long that took it; and programs that do nothing.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use guard_tests::kernel::BpfId;
use nix::errno::Errno;

/// `enum bpf_cmd` in `include/uapi/linux/bpf.h`.
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
const BPF_ENABLE_STATS: i32 = 32;

/// The kernel counts for as long as this lives (since Linux 5.8); it stops by itself when the process ends.
#[derive(Debug)]
pub(crate) struct Statistics {
    _fd: OwnedFd,
}

impl Statistics {
    pub(crate) fn enable() -> Result<Self> {
        // BPF_STATS_RUN_TIME is 0.
        let fd = bpf(BPF_ENABLE_STATS, &mut 0_u32).context("BPF_ENABLE_STATS")?;
        Ok(Self { _fd: owned(fd) })
    }
}

/// The account of one program.
#[derive(Clone, Debug)]
pub(crate) struct Runs {
    pub(crate) name: String,
    pub(crate) count: u64,
    pub(crate) time_ns: u64,
}

/// The accounts of the programs among these objects.
pub(crate) fn runs(objects: &BTreeSet<BpfId>) -> Vec<Runs> {
    objects
        .iter()
        .filter_map(|object| match object {
            BpfId::Prog(id) => account(*id).ok(),
            BpfId::Map(_) | BpfId::Link(_) => None,
        })
        .collect()
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
struct InfoByFd {
    fd: i32,
    length: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to `run_cnt` (Linux 5.1), in words: the name at byte 64, `run_time_ns` at
/// 192, `run_cnt` at 200.
type ProgInfo = [u64; 26];

fn account(id: u32) -> Result<Runs> {
    let fd = owned(bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0]).context("BPF_PROG_GET_FD_BY_ID")?);
    let mut info: ProgInfo = [0; 26];
    let mut by_fd = InfoByFd {
        fd: fd.as_raw_fd(),
        length: u32::try_from(size_of::<ProgInfo>()).context("the size of bpf_prog_info")?,
        info: (&raw mut info).expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut by_fd).context("BPF_OBJ_GET_INFO_BY_FD")?;
    let bytes = info[8..10].iter().flat_map(|word| word.to_ne_bytes());
    let name: Vec<u8> = bytes.take_while(|&byte| byte != 0).collect();
    Ok(Runs { name: String::from_utf8_lossy(&name).into_owned(), count: info[25], time_ns: info[24] })
}

/// A program that does nothing on each of the tracepoints that every connection passes in the ebpf tier: what the
/// kernel takes for calling one at all. Detached when this is dropped.
#[derive(Debug)]
pub(crate) struct Empty {
    _attached: Vec<OwnedFd>,
}

impl Empty {
    pub(crate) fn attach() -> Result<Self> {
        let attached = [c"inet_sock_set_state", c"tcp_destroy_sock"]
            .into_iter()
            .map(|tracepoint| attach_empty(tracepoint).with_context(|| format!("{tracepoint:?}")))
            .collect::<Result<_>>()?;
        Ok(Self { _attached: attached })
    }
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads, up to the name.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part that `BPF_RAW_TRACEPOINT_OPEN` reads.
#[repr(C)]
struct Open {
    name: u64,
    program: i32,
    pad: u32,
}

/// The link keeps its program.
fn attach_empty(tracepoint: &CStr) -> Result<OwnedFd> {
    const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
    /// `r0 = 0`, `exit`: bytes that read the same in either order.
    static NOTHING: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut load = Load {
        program_type: BPF_PROG_TYPE_RAW_TRACEPOINT,
        instruction_count: 2,
        instructions: NOTHING.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"empty\0\0\0\0\0\0\0\0\0\0\0",
    };
    let program = owned(bpf(BPF_PROG_LOAD, &mut load).context("BPF_PROG_LOAD")?);
    let mut open =
        Open { name: tracepoint.as_ptr().expose_provenance() as u64, program: program.as_raw_fd(), pad: 0 };
    Ok(owned(bpf(BPF_RAW_TRACEPOINT_OPEN, &mut open).context("BPF_RAW_TRACEPOINT_OPEN")?))
}

/// `bpf(2)` with the part of `union bpf_attr` that `command` reads.
fn bpf<T>(command: i32, attributes: &mut T) -> nix::Result<i32> {
    // SAFETY: the kernel reads and writes `size` bytes of attributes, which live across the call; the pointers
    // in them are to a string, or to an array of the size that stands beside it, alive in the caller.
    let answer =
        unsafe { nix::libc::syscall(nix::libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    Errno::result(answer).map(|fd| i32::try_from(fd).unwrap_or(-1))
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
