//! Links and passes of BPF iterators: two system calls that aya makes only
//! together, and once per attached program.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use super::call::{IterCreate, LinkCreate, TRACE_ITER, create_iterator, create_link, number};

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
            attach_type: TRACE_ITER,
            flags: 0,
        };
        Ok(Self { link: create_link(&attributes)? })
    }

    /// One pass: all that the program writes, in pieces of whole records if these
    /// are no longer than a page.
    pub(super) fn pass(&self, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
        let attributes = IterCreate { link_fd: number(self.link.as_raw_fd()), flags: 0 };
        let mut output = File::from(create_iterator(&attributes)?);
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
