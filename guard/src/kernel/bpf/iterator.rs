//! Links and passes of BPF iterators: two system calls that aya makes only
//! together, and once per attached program.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

/// Commands of `enum bpf_cmd`.
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ITER_CREATE: libc::c_int = 33;
/// `enum bpf_attach_type`.
const BPF_TRACE_ITER: u32 = 28;

/// `struct { … } link_create` of `union bpf_attr`, as far as it is used.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// `struct { … } iter_create` of `union bpf_attr`.
#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// What the kernel shows of its objects at most before it says EAGAIN.
const OBJECTS_PER_READ: u64 = 1_000_000;
/// Reads without any output in a row. No machine has as many open files.
const FRUITLESS_READS: u64 = 10_000_000_000 / OBJECTS_PER_READ;

/// As large as the kernel's own buffer (8 pages) on the smallest pages, and
/// more than one page of any size.
const CHUNK: usize = 128 * 1024;

/// A loaded iterator program, ready for any number of passes.
#[derive(Debug)]
pub(super) struct Iterator {
    link: OwnedFd,
}

impl Iterator {
    /// Of `program`, which may be closed afterwards.
    pub(super) fn of(program: impl AsFd) -> io::Result<Self> {
        let attributes = LinkCreate {
            prog_fd: number(program.as_fd().as_raw_fd()),
            target_fd: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
        };
        Ok(Self { link: bpf(BPF_LINK_CREATE, &attributes)? })
    }

    /// One pass: all that the program writes, in pieces of whole records if these
    /// are no longer than a page.
    pub(super) fn pass(&self, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
        let attributes = IterCreate { link_fd: number(self.link.as_raw_fd()), flags: 0 };
        let mut output = File::from(bpf(BPF_ITER_CREATE, &attributes)?);
        let mut buffer = vec![0; CHUNK];
        let mut fruitless = 0;
        loop {
            match output.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    fruitless = 0;
                    sink(buffer.get(..length).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // So many objects without output that the kernel wants to be asked again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && fruitless < FRUITLESS_READS => {
                    fruitless += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A descriptor as `union bpf_attr` takes it; none is negative.
fn number(fd: RawFd) -> u32 {
    fd.cast_unsigned()
}

/// A call of `bpf(2)` that makes a descriptor.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes, takes what is missing of the union as
    // zero, and both commands answer with a new descriptor or an error.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    let fd = Errno::result(answer)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
