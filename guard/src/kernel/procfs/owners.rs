//! Which processes hold a descriptor for a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use guard_core::model::{SocketInode, Tgid, Unseen};
use rustix::fs::{Mode, OFlags, RawDir, openat, readlinkat_raw};
use rustix::io::Errno;

use super::is_gone;
use super::process::{open_proc, tgid_of_name};
use super::view::{may_trace_everybody, what_is_unseen};

/// What a scan of every process found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerScan {
    /// For every inode asked for, the processes that hold it, ascending. An
    /// empty list means that none was seen.
    pub owners: BTreeMap<SocketInode, Vec<Tgid>>,
    /// For an inode, one of its owners that has it in its leader's own
    /// descriptor table, and the number there.
    pub descriptors: BTreeMap<SocketInode, (Tgid, RawFd)>,
    /// `Ok` when every process's descriptors were looked at: then the list of
    /// an inode is all there is.
    pub complete: Result<(), Unseen>,
    /// Processes whose descriptors may not be read: another user's, or, even
    /// for root, one that a security module protects (PID 1 on some machines).
    pub closed: BTreeSet<Tgid>,
}

/// Looks for *all* processes that hold a descriptor for any of `inodes`.
///
/// A process that ends meanwhile holds nothing and is passed over. The scan is
/// a walk in the order of process numbers, and the world moves during it:
///
/// - A child forked, or a descriptor passed on, behind the cursor is missed. If
///   that leaves an inode without any owner, all is looked at once more before
///   "nobody" is believed: the sharer now stands still, or is the only one. A
///   missed *further* sharer keeps the port busy after the others ended, and
///   the next scan finds it.
/// - A thread may have a descriptor table of its own (`unshare(CLONE_FILES)`).
///   Looking into every thread would multiply the time of each scan, so the
///   first pass looks at the leader's table, and at the other threads only where
///   the leader's is empty (it has exited and is a zombie, while the others go
///   on). The second pass looks into every thread.
pub fn owners(inodes: &BTreeSet<SocketInode>) -> OwnerScan {
    scan(&mut Scan::new(inodes, &|| false))
}

/// The same, unless there is a better way meanwhile: that is asked before each process and before each descriptor. `None`
/// when there was.
pub fn owners_unless(inodes: &BTreeSet<SocketInode>, better_way: &dyn Fn() -> bool) -> Option<OwnerScan> {
    let mut asked = Scan::new(inodes, better_way);
    let found = scan(&mut asked);
    (!asked.broken_off).then_some(found)
}

fn scan(scan: &mut Scan<'_>) -> OwnerScan {
    let complete = match what_is_unseen() {
        Ok(unseen) => unseen.map_or(Ok(()), Err),
        Err(error) => Err(Unseen::Failed(error.to_string())),
    };
    let mut walked = scan.pass(Threads::OfTheLeaderless);
    if !scan.broken_off && scan.some_inode_has_no_owner() {
        let again = scan.pass(Threads::All);
        walked = walked.and(again);
    }
    let closed = match (scan.closed.is_empty(), may_trace_everybody()) {
        (true, _) => Ok(()),
        // With the privilege only a security module is left to close them.
        (false, Ok(true)) => Err(Unseen::Closed(scan.closed.iter().copied().collect())),
        (false, _) => Err(Unseen::NotPermitted),
    };
    // The larger blindness first: a namespace's edge hides more than a closed
    // directory.
    let complete = walked.and(complete).and(closed);
    let owners = std::mem::take(&mut scan.owners);
    OwnerScan {
        owners: owners.into_iter().map(|(inode, owners)| (inode, owners.into_iter().collect())).collect(),
        descriptors: std::mem::take(&mut scan.descriptors),
        complete,
        closed: std::mem::take(&mut scan.closed),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Threads {
    OfTheLeaderless,
    All,
}

/// Whose descriptor table is looked at.
#[derive(Clone, Copy)]
enum Whose {
    Leader,
    Thread,
}

struct Scan<'a> {
    owners: BTreeMap<SocketInode, BTreeSet<Tgid>>,
    descriptors: BTreeMap<SocketInode, (Tgid, RawFd)>,
    closed: BTreeSet<Tgid>,
    better_way: &'a dyn Fn() -> bool,
    broken_off: bool,
}

/// Which of `inodes` the process that has this number *now* holds a descriptor
/// for. Asked after the evidence on it was read, this closes the gap in which
/// the number could have been reused since the scan. One walk, whatever the
/// number of sockets; `None` as for [`owners_unless`].
pub fn owned_by_unless(
    tgid: Tgid,
    inodes: &BTreeSet<SocketInode>,
    better_way: &dyn Fn() -> bool,
) -> Option<BTreeSet<SocketInode>> {
    let mut scan = Scan::new(inodes, better_way);
    let (mut of_tasks, mut of_fds) = (entries_buffer(), entries_buffer());
    if let (Ok(name), Ok(proc)) = (std::ffi::CString::new(tgid.to_string()), open_proc()) {
        // Gone or closed to us: not shown to be an owner.
        let _looked = scan.process(proc.as_fd(), &name, tgid, Threads::All, &mut of_tasks, &mut of_fds);
    }
    let owned = scan.owners.into_iter().filter(|(_, owners)| !owners.is_empty()).map(|(inode, _)| inode);
    (!scan.broken_off).then(|| owned.collect())
}

/// Whether the process that has this number *now* has the socket `inode` at `fd`, in its leader's descriptor table.
/// Also false where its descriptors may not be seen.
pub fn has_socket_at(tgid: Tgid, fd: RawFd, inode: SocketInode) -> bool {
    let target = rustix::fs::readlink(format!("/proc/{tgid}/fd/{fd}"), Vec::new());
    target.is_ok_and(|target| socket_inode(target.to_bytes()) == Some(inode))
}

/// Room for the entries of a directory: about 1,000 numbers per system call.
const ENTRIES: usize = 32 * 1024;

type Entries = Box<[MaybeUninit<u8>]>;

fn entries_buffer() -> Entries {
    Box::new_uninit_slice(ENTRIES)
}

impl<'a> Scan<'a> {
    fn new(inodes: &BTreeSet<SocketInode>, better_way: &'a dyn Fn() -> bool) -> Self {
        Self {
            owners: inodes.iter().map(|&inode| (inode, BTreeSet::new())).collect(),
            descriptors: BTreeMap::new(),
            closed: BTreeSet::new(),
            better_way,
            broken_off: false,
        }
    }

    /// Unless there is a better way: then whatever comes of the scan is not looked at.
    fn go_on(&mut self) -> Result<(), Errno> {
        self.broken_off |= (self.better_way)();
        if self.broken_off { Err(Errno::CANCELED) } else { Ok(()) }
    }

    fn some_inode_has_no_owner(&self) -> bool {
        self.owners.values().any(BTreeSet::is_empty)
    }

    fn pass(&mut self, threads: Threads) -> Result<(), Unseen> {
        let proc = open_proc().map_err(|error| Unseen::Failed(error.to_string()))?;
        let (mut of_proc, mut of_tasks, mut of_fds) = (entries_buffer(), entries_buffer(), entries_buffer());
        let mut processes = RawDir::new(proc.as_fd(), &mut of_proc);
        while let Some(entry) = processes.next() {
            let entry = entry.map_err(|errno| Unseen::Failed(format!("reading /proc failed: {errno}")))?;
            let Some(tgid) = tgid_of_name(entry.file_name().to_bytes()) else { continue };
            self.go_on().map_err(|errno| Unseen::Failed(errno.to_string()))?;
            match self.process(proc.as_fd(), entry.file_name(), tgid, threads, &mut of_tasks, &mut of_fds) {
                Ok(()) => {}
                Err(errno) if is_gone(errno) => {}
                Err(Errno::ACCESS | Errno::PERM) => {
                    self.closed.insert(tgid);
                }
                Err(errno) => return Err(Unseen::Failed(format!("reading /proc/{tgid}/fd failed: {errno}"))),
            }
        }
        Ok(())
    }

    fn process(
        &mut self,
        proc: BorrowedFd<'_>,
        name: &CStr,
        tgid: Tgid,
        threads: Threads,
        of_tasks: &mut Entries,
        of_fds: &mut Entries,
    ) -> Result<(), Errno> {
        let dir = open_path(proc, name)?;
        let seen = self.table(dir.as_fd(), tgid, Whose::Leader, of_fds)?;
        if seen > 0 && threads == Threads::OfTheLeaderless {
            return Ok(());
        }
        let tasks = open_listing(dir.as_fd(), c"task")?;
        let mut threads = RawDir::new(tasks.as_fd(), of_tasks);
        while let Some(entry) = threads.next() {
            let entry = entry?;
            let is_leader = entry.file_name() == name;
            if is_leader || tgid_of_name(entry.file_name().to_bytes()).is_none() {
                continue;
            }
            match open_path(tasks.as_fd(), entry.file_name())
                .and_then(|task| self.table(task.as_fd(), tgid, Whose::Thread, of_fds))
            {
                Ok(_) => {}
                Err(errno) if is_gone(errno) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Looks at one descriptor table, and says how many descriptors it has.
    fn table(
        &mut self,
        dir: BorrowedFd<'_>,
        tgid: Tgid,
        whose: Whose,
        of_fds: &mut Entries,
    ) -> Result<usize, Errno> {
        let fds = open_listing(dir, c"fd")?;
        let mut entries = RawDir::new(fds.as_fd(), of_fds);
        let mut count = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if entry.file_name().to_bytes().starts_with(b".") {
                continue;
            }
            count += 1;
            self.go_on()?;
            // "socket:[4294967295]" and no longer; anything longer is a path.
            let mut target = [0_u8; 32];
            match readlinkat_raw(fds.as_fd(), entry.file_name(), &mut target) {
                Ok(length) => {
                    let Some(inode) = target.get(..length).and_then(socket_inode) else { continue };
                    let Some(owners) = self.owners.get_mut(&inode) else { continue };
                    owners.insert(tgid);
                    if let (Whose::Leader, Some(fd)) = (whose, descriptor_of_name(entry.file_name())) {
                        self.descriptors.entry(inode).or_insert((tgid, fd));
                    }
                }
                // The descriptor was closed meanwhile.
                Err(errno) if is_gone(errno) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(count)
    }
}

fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn open_listing(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn descriptor_of_name(name: &CStr) -> Option<RawFd> {
    name.to_str().ok()?.parse().ok()
}

/// The inode of `socket:[12345]`.
fn socket_inode(target: &[u8]) -> Option<SocketInode> {
    let digits = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    digits
        .iter()
        .try_fold(0_u64, |number, &digit| {
            let digit = digit.is_ascii_digit().then_some(u64::from(digit.wrapping_sub(b'0')))?;
            number.checked_mul(10)?.checked_add(digit)
        })
        .map(SocketInode)
}

#[cfg(test)]
mod tests;
