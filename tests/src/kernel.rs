//! What the kernel itself says: who owns a socket, and which BPF objects exist.

use std::collections::BTreeSet;

use nix::errno::Errno;

use crate::process::Proc;

/// Every process with a descriptor for the socket with this inode, by a walk of its own
/// through `/proc`.
pub fn owners(inode: u64) -> Vec<Proc> {
    let target = format!("socket:[{inode}]");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|descriptors| {
                descriptors
                    .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
                    .any(|link| link.as_os_str() == target.as_str())
            })
        })
        .filter_map(Proc::of)
        .collect()
}

/// Whether the running kernel's release is `major.minor` or later.
///
/// # Panics
/// When the release does not begin with two numbers.
pub fn at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(a)), Some(Ok(b))) => (a, b) >= (major, minor),
        _ => panic!("no numbers in the kernel's release {release:?}"),
    }
}

/// Whether this process may make an io_uring.
pub fn has_io_uring() -> bool {
    // Without its parameters a kernel that has io_uring complains of the address.
    // SAFETY: the kernel refuses the null pointer.
    let made = unsafe { nix::libc::syscall(nix::libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<u8>()) };
    Errno::result(made) == Err(Errno::EFAULT)
}

/// A BPF object that the kernel numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BpfId {
    /// A loaded program.
    Prog(u32),
    /// A map.
    Map(u32),
    /// A link between a program and its hook.
    Link(u32),
}

/// Every BPF object that process `pid` has a descriptor for.
pub fn bpf_ids(pid: i32) -> BTreeSet<BpfId> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return BTreeSet::new() };
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .flat_map(|text| text.lines().filter_map(bpf_id).collect::<Vec<_>>())
        .collect()
}

fn bpf_id(line: &str) -> Option<BpfId> {
    let (key, value) = line.split_once(':')?;
    let id = value.trim().parse().ok()?;
    match key {
        "prog_id" => Some(BpfId::Prog(id)),
        "map_id" => Some(BpfId::Map(id)),
        "link_id" => Some(BpfId::Link(id)),
        _ => None,
    }
}

impl BpfId {
    /// Whether the kernel still has it; it gives the numbers out in turn, so none
    /// comes back within a test.
    ///
    /// # Panics
    /// When the kernel answers anything but yes or no.
    pub fn exists(self) -> bool {
        // enum bpf_cmd in include/uapi/linux/bpf.h.
        let (command, id) = match self {
            Self::Prog(id) => (13, id),
            Self::Map(id) => (14, id),
            Self::Link(id) => (30, id),
        };
        // The part of union bpf_attr that the three commands read: id, next_id, open_flags.
        let attributes: [u32; 3] = [id, 0, 0];
        // SAFETY: the kernel reads `size` bytes of attributes, which live across the call.
        let answer = unsafe {
            nix::libc::syscall(nix::libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes))
        };
        match Errno::result(answer) {
            Ok(fd) => {
                let fd = i32::try_from(fd).expect("a descriptor");
                // SAFETY: the kernel has just made this descriptor for us alone.
                drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
                true
            }
            Err(Errno::ENOENT) => false,
            Err(errno) => panic!("look for {self:?}: {errno}"),
        }
    }
}

/// The scheduling policy of a thread; -1 when it is gone.
pub fn policy(thread: i32) -> i32 {
    // SAFETY: it takes no pointer.
    let policy = unsafe { nix::libc::sched_getscheduler(thread) };
    if policy < 0 { policy } else { policy & !nix::libc::SCHED_RESET_ON_FORK }
}
