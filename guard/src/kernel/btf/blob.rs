//! A description of types as the kernel shows it in sysfs: mapped where the kernel allows that, else read.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Deref;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;

use rustix::fs::{FsWord, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// `SYSFS_MAGIC` of `include/uapi/linux/magic.h`.
const SYSFS_MAGIC: FsWord = 0x6265_6572;

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
    /// sysfs hands out one page for each call of `read`, which takes milliseconds for a kernel's 5 MB. Since Linux 6.16 it
    /// maps `btf/vmlinux` too.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if let Some(mapping) = Mapping::of(&file, size) {
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
    /// `None` where the kernel does not map this file, or it is any file that may change or shrink under us.
    fn of(file: &File, length: usize) -> Option<Self> {
        if fstatfs(file).ok()?.f_type != SYSFS_MAGIC {
            return None;
        }
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
    use crate::kernel::sandbox::skip;

    #[test]
    fn what_is_mapped_is_what_is_read() {
        const NAME: &str = "what_is_mapped_is_what_is_read";
        let path = Path::new(VMLINUX);
        if !path.exists() {
            return skip(NAME, &format!("this kernel has no {VMLINUX}"));
        }
        let blob = Blob::of(path).unwrap();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
        let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
        assert!(matches!(blob.0, Bytes::Mapped(_)) || version < (6, 16), "{release}");
        let read = std::fs::read(path).unwrap();
        assert!(*blob == *read);
        // A bind mount, say, in the place of the kernel's own.
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
