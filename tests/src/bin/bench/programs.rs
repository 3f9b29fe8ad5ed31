//! How often the kernel ran a BPF program, and how long that took it.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use guard_tests::kernel::BpfId;
use nix::errno::Errno;

/// `enum bpf_cmd` in `include/uapi/linux/bpf.h`.
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
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

/// `bpf(2)` with the part of `union bpf_attr` that `command` reads.
fn bpf<T>(command: i32, attributes: &mut T) -> nix::Result<i32> {
    // SAFETY: the kernel reads and writes `size` bytes of attributes, which live across the call; the one
    // pointer that any of them holds is to an array of the size that stands beside it, alive in the caller.
    let answer =
        unsafe { nix::libc::syscall(nix::libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    Errno::result(answer).map(|fd| i32::try_from(fd).unwrap_or(-1))
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
