//! A description of types as the kernel shows it in sysfs: mapped where the kernel allows that, else read.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Deref;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The bytes of a description.
#[derive(Debug)]
pub struct Blob(Bytes);

#[derive(Debug)]
enum Bytes {
    Mapped(Mapping),
    Read(Vec<u8>),
}

impl Blob {
    /// Those of the file at `path`.
    ///
    /// sysfs hands out one page for each call of `read`, which takes a millisecond or more for a kernel's 5 MB. Since
    /// Linux 6.16 it maps `btf/vmlinux` instead.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if path.starts_with("/sys")
            && let Some(mapping) = Mapping::of(&file, size)
        {
            return Ok(Self(Bytes::Mapped(mapping)));
        }
        let mut content = Vec::with_capacity(size.saturating_add(1));
        file.read_to_end(&mut content)?;
        Ok(Self(Bytes::Read(content)))
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(mapping) => mapping.bytes(),
            Bytes::Read(content) => content,
        }
    }
}

/// Pages of the kernel's own, for reading.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// `None` where the kernel does not map this file.
    fn of(file: &File, length: usize) -> Option<Self> {
        // SAFETY: the kernel chooses an address where nothing is.
        let start =
            unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }.ok()?;
        Some(Self { start: NonNull::new(start.cast())?, length })
    }

    const fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped until this value is dropped. What they show is part of the running
        // kernel's image, which neither changes nor shrinks: the file is of sysfs.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody borrows them any more. An error leaves them mapped.
        let _still_mapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::VMLINUX;
    use super::*;

    #[test]
    fn what_is_mapped_is_what_is_read() {
        let path = Path::new(VMLINUX);
        if !path.exists() {
            eprintln!("skipped: this kernel has no {VMLINUX}");
            return;
        }
        let read = std::fs::read(path).unwrap();
        assert!(*Blob::of(path).unwrap() == *read);
        let copy = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(copy.path(), &read).unwrap();
        let copied = Blob::of(copy.path()).unwrap();
        assert!(matches!(copied.0, Bytes::Read(_)), "a file that may change under us is not mapped");
        assert!(*copied == *read);
    }

    #[test]
    fn a_file_that_cannot_be_mapped_is_read() {
        let path = Path::new("/sys/kernel/uevent_seqnum");
        let blob = Blob::of(path).unwrap();
        assert!(matches!(blob.0, Bytes::Read(_)));
        assert!(blob.ends_with(b"\n"));
        let missing = Blob::of(Path::new("/sys/kernel/btf/portguard")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
