//! aya's loader, without the kernel's types.

use std::io;
use std::mem::offset_of;
use std::thread;

use aya::EbpfLoader;
use nix::errno::Errno;
use nix::libc;
use tracing::debug;

/// A loader that relocates nothing against the kernel's types.
///
/// `EbpfLoader::new` of aya 0.14 reads and parses all of them before it can be
/// told not to (<https://github.com/aya-rs/aya/issues/1172>), which takes as long
/// as the rest of a start. So it is made on a thread that may open no file and
/// ends at once. Where such a thread cannot be had, it takes its time.
pub(super) fn loader() -> EbpfLoader<'static> {
    let mut loader = without_types().unwrap_or_default();
    loader.btf(None);
    loader
}

fn without_types() -> Option<EbpfLoader<'static>> {
    let alone = || {
        open_nothing()?;
        io::Result::Ok(EbpfLoader::new())
    };
    let made = thread::Builder::new().name("aya-loader".to_owned()).spawn(alone);
    match made.map(thread::JoinHandle::join) {
        Ok(Ok(Ok(loader))) => return Some(loader),
        Ok(Ok(Err(error))) | Err(error) => debug!(%error, "BPF takes longer to load"),
        Ok(Err(_panicked)) => {}
    }
    None
}

/// From here on every attempt of this thread to open a file is answered with
/// ENOENT, by a seccomp filter, which needs no privilege and ends with the thread
/// (`Documentation/userspace-api/seccomp_filter.rst`).
fn open_nothing() -> io::Result<()> {
    const NUMBER: u32 = offset_of!(libc::seccomp_data, nr) as u32;
    let (load, equals, answer) = (
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        (libc::BPF_RET | libc::BPF_K) as u16,
    );
    let instruction = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut filter = [
        instruction(load, 0, NUMBER),
        instruction(equals, 1, libc::SYS_openat as u32),
        instruction(answer, 0, libc::SECCOMP_RET_ERRNO | libc::ENOENT as u32),
        instruction(answer, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: the kernel copies the program, which outlives the call.
    let set =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::from_ref(&program)) };
    Errno::result(set)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_loader_has_no_types_and_the_process_still_opens_files() {
        let shown = format!("{:?}", without_types().expect("such a thread"));
        assert!(shown.contains("btf: None"), "{shown}");
        assert!(fs::read("/proc/self/stat").is_ok());
    }

    #[test]
    fn only_the_thread_that_asked_opens_nothing() {
        let refused = thread::spawn(|| {
            open_nothing().unwrap();
            fs::read("/proc/self/stat").map_err(|error| error.kind())
        });
        assert_eq!(refused.join().unwrap(), Err(io::ErrorKind::NotFound));
        assert!(fs::read("/proc/self/stat").is_ok());
    }
}
