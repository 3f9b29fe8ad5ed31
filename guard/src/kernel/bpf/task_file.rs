//! User side of the iterator `task_file`: who has a descriptor for a socket,
//! of all processes in one pass.
//!
//! The kernel walks the descriptor tables itself, so it does not matter who may
//! look into whose `/proc/PID/fd`. It numbers processes in the PID namespace of
//! whoever asks and shows no others.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixDatagram;

use aya::maps::{self, Map, MapData};
use aya::programs::Iter;
use aya::{Btf, Ebpf};
use guard_common::{OWNER_IS_LEADER, OwnerOffsets, OwnerRecord, WANTED_ENTRIES, map, program, symbol};
use guard_core::model::{ProcessId, SocketInode, Tgid};

use super::error::missing_capabilities;
use super::event::{Malformed, Wire, copy};
use super::iterator::Iterator;
use super::numbered::Named;
use super::settings::KernelTypes;
use super::{BpfError, Plain, absent_is_fine, alone, load};
use crate::kernel::btf::{Found, Member, Types};
use crate::kernel::procfs::{self, BootOffset};

/// The members that the program reads, in the order in which [`OwnerTypes`] takes them apart.
const MEMBERS: [Member; 13] = [
    Member { structure: "file", path: &["f_inode"] },
    Member { structure: "inode", path: &["i_mode"] },
    Member { structure: "inode", path: &["i_ino"] },
    Member { structure: "inode", path: &["i_sb"] },
    Member { structure: "super_block", path: &["s_magic"] },
    Member { structure: "task_struct", path: &["pid"] },
    Member { structure: "task_struct", path: &["tgid"] },
    Member { structure: "task_struct", path: &["group_leader"] },
    // "real_start_time" before 5.5.
    Member { structure: "task_struct", path: &["start_boottime"] },
    Member { structure: "task_struct", path: &["thread_pid"] },
    Member { structure: "pid", path: &["level"] },
    Member { structure: "pid", path: &["numbers"] },
    Member { structure: "upid", path: &["nr"] },
];

/// The function whose place the program takes in the kernel.
const TARGET: &str = "bpf_iter_task_file";

const WHAT: &str = "the program on the iterator task_file";

/// What the running kernel tells about the iterator.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnerTypes {
    pub(super) offsets: OwnerOffsets,
    target: u32,
}

impl OwnerTypes {
    /// What [`OwnerTypes::of`] takes from the kernel's types.
    pub(super) const WANTED: (&'static [Member; MEMBERS.len()], &'static [&'static str; 1]) =
        (&MEMBERS, &[TARGET]);

    /// `None` where something that the program needs is missing.
    pub(super) fn of(types: &Types<'_>, found: Found<{ MEMBERS.len() }, 1>) -> Option<Self> {
        let [
            Some(file_inode),
            Some(inode_mode),
            Some(inode_number),
            Some(inode_super_block),
            Some(super_block_magic),
            Some(task_pid),
            Some(task_tgid),
            Some(task_leader),
            Some(task_start),
            Some(task_thread_pid),
            Some(pid_level),
            Some(pid_numbers),
            Some(upid_number),
        ] = found.offsets
        else {
            return None;
        };
        let offsets = OwnerOffsets {
            file_inode,
            inode_mode,
            inode_number,
            inode_super_block,
            super_block_magic,
            task_pid,
            task_tgid,
            task_leader,
            task_start,
            task_thread_pid,
            pid_level,
            pid_numbers,
            upid_size: types.size("upid")?,
            upid_number,
        };
        Some(Self { offsets, target: found.numbers[0]? })
    }

    /// The function whose place the program takes, and its number.
    pub(super) const fn target(&self) -> (Named, u32) {
        (Named::Function(TARGET), self.target)
    }

    /// As the program needs them in this process's PID namespace.
    pub(super) fn here(self) -> OwnerOffsets {
        // A namespace that cannot be told is taken for a child: then the numbers
        // are looked up, which is right in the initial one too.
        let upid_size = match procfs::in_initial_pid_namespace() {
            Ok(true) => 0,
            Ok(false) | Err(_) => self.offsets.upid_size,
        };
        OwnerOffsets { upid_size, ..self.offsets }
    }
}

/// A process has a descriptor for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Descriptor {
    /// The socket.
    pub inode: SocketInode,
    /// Who has it.
    pub process: ProcessId,
    /// Its number.
    pub fd: RawFd,
    /// It is in the table of the thread group leader, so that it can be reached
    /// by the process's number.
    pub of_leader: bool,
}

/// The loaded iterator. It needs no other program of the ebpf tier, and stays
/// when those are dropped.
pub struct OwnerLookup {
    iterator: Iterator,
    wanted: maps::HashMap<MapData, u64, u32>,
    /// What `wanted` holds: the kernel's copy is never read back.
    entered: BTreeSet<u64>,
}

impl OwnerLookup {
    /// Whether the capabilities are there that loading it takes. Those of a user namespace do not count.
    pub fn may_be_loaded() -> bool {
        missing_capabilities().is_empty() && procfs::in_initial_user_namespace().unwrap_or(true)
    }

    /// Loads this program and no other.
    ///
    /// # Errors
    ///
    /// As [`Bpf::load`](super::Bpf::load).
    pub fn load() -> Result<Self, BpfError> {
        load::owner_lookup(&KernelTypes::read())
    }

    /// Loads it without aya's loader, in less than half the time.
    ///
    /// # Errors
    ///
    /// As of [`alone::iterator`], without advice.
    pub(super) fn alone(object: &[u8], target: u32, offsets: Plain<OwnerOffsets>) -> io::Result<Self> {
        let globals = (symbol::OWNER_OFFSETS, offsets.bytes());
        let (program, wanted) = alone::iterator(object, program::TASK_FILE, target, map::WANTED, globals)?;
        let wanted = maps::HashMap::try_from(Map::HashMap(wanted)).map_err(io::Error::other)?;
        Ok(Self { iterator: Iterator::of(program)?, wanted, entered: BTreeSet::new() })
    }

    /// Takes the program and its map out of the loaded object; `numbers` has [`OwnerTypes::target`].
    pub(super) fn take(ebpf: &mut Ebpf, numbers: &Btf) -> Result<Self, BpfError> {
        let wanted = load::take(ebpf, map::WANTED)?;
        let name = program::TASK_FILE;
        let program = ebpf.program_mut(name).ok_or(BpfError::missing("program", name))?;
        let program: &mut Iter = program.try_into().map_err(|error| BpfError::sort("use", WHAT, error))?;
        program.load("task_file", numbers).map_err(|error| BpfError::sort("load", WHAT, error))?;
        let fd = program.fd().map_err(|error| BpfError::sort("use", WHAT, error))?;
        let iterator = Iterator::of(fd).map_err(|error| BpfError::failed("attach", WHAT, error))?;
        Ok(Self { iterator, wanted, entered: BTreeSet::new() })
    }

    /// Every descriptor of every process for one of `inodes`, in no order.
    ///
    /// It is a walk, and the world moves during it: what is forked or passed on
    /// behind the cursor is missed, and a process that is seen may be gone when
    /// this returns. Sockets in flight over a Unix socket and files registered with
    /// io_uring are in no descriptor table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the map's entries or breaks the pass off.
    pub fn descriptors(&mut self, inodes: &BTreeSet<SocketInode>) -> Result<Vec<Descriptor>, BpfError> {
        let boot = procfs::boot_offset()
            .map_err(|error| BpfError::failed("read", "the offset of this time namespace", error))?;
        let inodes: Vec<u64> = inodes.iter().map(|inode| inode.0).collect();
        let mut found = Vec::new();
        for part in inodes.chunks(WANTED_ENTRIES as usize) {
            self.want(part.iter().copied().collect())?;
            let mut malformed = Ok(());
            let passed = self.iterator.pass(|output| {
                let records = output.chunks(size_of::<OwnerRecord>());
                for record in records.map(|bytes| decode(bytes, boot)) {
                    match record {
                        Ok(descriptor) => found.extend(descriptor),
                        Err(error) => malformed = Err(error),
                    }
                }
            });
            passed.map_err(|error| BpfError::failed("read", WHAT, error))?;
            malformed.map_err(|Malformed| {
                let source = io::Error::from(io::ErrorKind::InvalidData);
                BpfError::failed("understand", WHAT, source)
            })?;
        }
        Ok(found)
    }

    /// Looks for the owner of a socket that this process makes for it.
    ///
    /// # Errors
    ///
    /// As [`OwnerLookup::descriptors`], and when this process is not found.
    pub fn rehearse(&mut self) -> Result<(), BpfError> {
        let failed = |source| BpfError::failed("rehearse", WHAT, source);
        let socket = UnixDatagram::unbound().map_err(failed)?;
        let inode = rustix::fs::fstat(&socket).map_err(|errno| failed(errno.into()))?.st_ino;
        let tgid = Tgid(std::process::id());
        let start = procfs::start_time(tgid).map_err(|error| failed(io::Error::other(error)))?;
        let found = self.descriptors(&BTreeSet::from([SocketInode(inode)]))?;
        let own = |it: &Descriptor| it.process.tgid == tgid && Some(it.process.start) == start;
        if found.iter().any(own) {
            return Ok(());
        }
        Err(failed(io::Error::other("it does not show portguard's own socket as portguard's")))
    }

    /// Makes the map hold exactly these.
    fn want(&mut self, inodes: BTreeSet<u64>) -> Result<(), BpfError> {
        let refused = |error| BpfError::map("write", map::WANTED, error);
        let stale: Vec<u64> = self.entered.difference(&inodes).copied().collect();
        for inode in stale {
            absent_is_fine(self.wanted.remove(&inode)).map_err(refused)?;
            self.entered.remove(&inode);
        }
        let fresh: Vec<u64> = inodes.difference(&self.entered).copied().collect();
        for inode in fresh {
            self.wanted.insert(inode, 1, 0).map_err(refused)?;
            self.entered.insert(inode);
        }
        Ok(())
    }
}

impl fmt::Debug for OwnerLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerLookup").field("entered", &self.entered).finish_non_exhaustive()
    }
}

/// `None` for a process that is being reaped and has no number any more.
fn decode(bytes: &[u8], boot: BootOffset) -> Result<Option<Descriptor>, Malformed> {
    let record: OwnerRecord = copy(bytes)?;
    let fd = RawFd::try_from(record.fd).map_err(|_| Malformed)?;
    let process = ProcessId { tgid: Tgid(record.tgid), start: boot.start_time(record.start_ns) };
    Ok((record.tgid != 0).then_some(Descriptor {
        inode: SocketInode(record.inode),
        process,
        fd,
        of_leader: record.flags & OWNER_IS_LEADER != 0,
    }))
}

// SAFETY: integers without padding, asserted in guard-common.
unsafe impl Wire for OwnerRecord {}
