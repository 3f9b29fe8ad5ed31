//! The door to BPF: loads the programs, says what to watch, hands out events.
//!
//! This is the only module that names aya. It is synchronous and knows no
//! runtime: [`Bpf`] is a file descriptor that becomes readable when events are
//! waiting, and [`Bpf::drain`] takes them. Nothing is pinned, so whatever
//! becomes of this process, the kernel detaches and frees everything with its
//! descriptors.
//!
//! There is one file per hook, named as its counterpart in `guard-ebpf`.

mod alone;
mod bind_failed;
mod call;
mod error;
mod event;
mod hook;
mod inet_put_port;
mod inet_sock_set_state;
mod inet_twsk_kill;
mod iterator;
mod load;
mod loader;
mod log;
mod loss;
mod lost;
mod numbered;
#[cfg(test)]
pub(crate) mod refusal;
mod rehearsal;
mod rest;
mod sched_process_exit;
mod settings;
mod task_file;
mod tcp_destroy_sock;
#[cfg(test)]
pub(crate) mod tests;
mod tracefs;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::tp_btf::BtfTracePointLinkId;
use guard_common::{WatchKey, map, watch};
use guard_core::model::{NetnsInode, Port, Tgid};
use tracing::trace;

pub use bind_failed::{BindFailed, FailedBinds};
pub use error::{BpfError, Source};
pub use event::{Actor, Event, Exited, KernelSocket, Released, SkAddr, StateChanged};
pub use guard_common::LostReason;
pub use inet_twsk_kill::TimeWaitEnded;
pub use log::BpfLog;
pub use loss::Loss;
pub use lost::Lost;
pub use rehearsal::{may_hook_functions, tracefs};
pub use rest::KnownListener;
pub use task_file::{Descriptor, OwnerLookup};
pub use tracefs::TracefsError;

/// A port whose sockets are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Only sockets in this network namespace, as far as the kernel can tell them apart.
    pub netns: NetnsInode,
    /// Local port.
    pub port: Port,
    /// Report also the end of connections, not only what becomes of listeners.
    pub connections: bool,
}

/// Which kind of tracepoint to attach to. The events are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachBy {
    /// Raw tracepoints where the kernel's types tell enough and the kernel takes
    /// the programs, else classic ones.
    #[default]
    Auto,
    /// Raw tracepoints or nothing.
    Raw,
    /// Classic tracepoints or nothing.
    Classic,
}

/// Which kind of tracepoint the programs are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedBy {
    /// Raw tracepoints: they need the kernel's types (BTF) and no tracefs, and are
    /// detached in no time.
    Raw,
    /// Classic tracepoints: they need tracefs and no BTF, and detaching them is slow.
    Classic,
}

impl AttachedBy {
    /// A word for logs and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw tracepoints",
            Self::Classic => "classic tracepoints",
        }
    }
}

/// How to load the programs.
#[derive(Clone, Debug)]
pub struct BpfOptions {
    /// Which kind of tracepoint to attach to.
    pub attach: AttachBy,
    /// Ports that are watched from the first event on.
    pub ports: Vec<Watch>,
    /// Thread groups whose exit is reported from the first event on.
    pub owners: Vec<Tgid>,
    /// Size of the ring buffer: a power of two of at least one page. An event
    /// takes 104 bytes at most.
    pub ring_bytes: u32,
    /// Whether failed binds are reported; they need nothing else of these options
    /// but that their port is watched. Where they cannot be, that is a [`Loss`].
    pub failed_binds: FailedBinds,
    /// [`Bpf::rest`] shall be possible, which takes some 600 KiB of kernel memory.
    pub may_rest: bool,
    /// Let the programs of a development build log; see [`Bpf::take_log`].
    pub log: bool,
}

impl Default for BpfOptions {
    /// Raw tracepoints if possible, nothing watched, 256 KiB (about 2,500 events),
    /// no failed binds, no rest, no log.
    fn default() -> Self {
        Self {
            attach: AttachBy::Auto,
            ports: Vec::new(),
            owners: Vec::new(),
            ring_bytes: 256 * 1024,
            failed_binds: FailedBinds::Unseen,
            may_rest: false,
            log: false,
        }
    }
}

/// The loaded and attached programs.
///
/// Dropping it detaches them. From raw tracepoints that takes well under a
/// millisecond. From classic ones it is slow: for each hook the kernel waits until
/// no CPU can be in the tracepoint any more, about 80 ms each on 6.18, and the end
/// of the process and `execve` wait as well. [`Bpf::attached_by`] tells.
pub struct Bpf {
    events: RingBuf<MapData>,
    watched: HashMap<MapData, Plain<WatchKey>, u32>,
    ports: Array<MapData, u64>,
    known: HashMap<MapData, u64, Plain<WatchKey>>,
    owners: HashMap<MapData, u32, u32>,
    lost: PerCpuArray<MapData, [u64; LostReason::ALL.len()]>,
    misses: Vec<lost::Misses>,
    malformed: u64,
    /// What `watched` holds: the kernel's copy is never read back.
    watches: BTreeMap<WatchKey, u32>,
    /// The cookies in `known`.
    entered: BTreeSet<u64>,
    /// The programs can tell network namespaces apart.
    namespaces: bool,
    /// [`Bpf::rest`] is possible here.
    may_rest: bool,
    /// By which the program on state changes is attached, where it can be detached.
    state_link: Option<BtfTracePointLinkId>,
    losses: Vec<Loss>,
    attached_by: AttachedBy,
    why_classic: Option<String>,
    log: Option<BpfLog>,
    owner_lookup: Option<OwnerLookup>,
    ebpf: Ebpf,
}

impl Bpf {
    /// Loads the programs, enters the options' ports and owners, then attaches.
    ///
    /// Events that happen after this returned are reported; take a snapshot of
    /// the socket table afterwards to learn what was there before.
    ///
    /// Where classic tracepoints are used and tracefs is not mounted, a thread
    /// mounts it for itself alone. Takes some tens of milliseconds, most of them
    /// in aya.
    ///
    /// # Errors
    ///
    /// [`BpfError::Stub`], [`BpfError::Denied`], [`BpfError::Unsupported`], [`BpfError::Tracefs`] and
    /// [`BpfError::NeitherWay`] mean that this machine or build has no ebpf tier,
    /// with the reason; [`BpfError::Rejected`] and [`BpfError::Failed`] that something else went wrong.
    pub fn load(options: &BpfOptions) -> Result<Self, BpfError> {
        load::load(options)
    }

    /// What this kernel does not tell the programs, fixed at load.
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// Which kind of tracepoint the programs are attached to.
    pub fn attached_by(&self) -> AttachedBy {
        self.attached_by
    }

    /// Why [`AttachBy::Auto`] did not take raw tracepoints; `None` when it did, or
    /// when classic ones were asked for.
    pub fn why_classic(&self) -> Option<&str> {
        self.why_classic.as_deref()
    }

    /// Reports the sockets of a port from now on, or changes what is reported.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the entry, e.g. because there are too many.
    pub fn watch(&mut self, watch: Watch) -> Result<(), BpfError> {
        let key = self.key(watch.netns, watch.port);
        let flags = if watch.connections { watch::LISTENERS | watch::CONNECTIONS } else { watch::LISTENERS };
        self.watched
            .insert(Plain(key), flags, 0)
            .map_err(|error| BpfError::map("write", map::WATCHED, error))?;
        self.watches.insert(key, flags);
        self.publish(watch.port)
    }

    /// Reports the sockets of a port no longer. Events already in the ring
    /// buffer still come.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; a port that was not watched is no error.
    pub fn unwatch(&mut self, netns: NetnsInode, port: Port) -> Result<(), BpfError> {
        let key = self.key(netns, port);
        if self.watches.remove(&key).is_none() {
            return Ok(());
        }
        self.publish(port)?;
        absent_is_fine(self.watched.remove(&Plain(key)))
            .map_err(|error| BpfError::map("write", map::WATCHED, error))
    }

    /// Reports the exit of a thread group, once. Whoever begins to listen on a
    /// watched port is entered by the programs themselves.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the entry, e.g. because there are too many.
    pub fn own(&mut self, owner: Tgid) -> Result<(), BpfError> {
        self.owners.insert(owner.0, 1, 0).map_err(|error| BpfError::map("write", map::OWNERS, error))
    }

    /// Reports the exit of a thread group no longer.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; a thread group that was not entered is no error.
    pub fn disown(&mut self, owner: Tgid) -> Result<(), BpfError> {
        absent_is_fine(self.owners.remove(&owner.0))
            .map_err(|error| BpfError::map("write", map::OWNERS, error))
    }

    /// What the programs could not report until now.
    ///
    /// Not every loss makes the descriptor readable: ask after each
    /// [`drain`](Self::drain), once its events are dealt with. Costs some microseconds,
    /// most of them for the runs that the kernel skipped.
    ///
    /// # Errors
    ///
    /// When the counters cannot be read; then assume the worst.
    pub fn lost(&self) -> Result<Lost, BpfError> {
        let mut lost = self.lost_quick()?;
        lost.skipped = self.misses.iter().filter_map(lost::Misses::read).sum();
        Ok(lost)
    }

    /// As [`lost`](Self::lost), but without `skipped`, which is 0.
    fn lost_quick(&self) -> Result<Lost, BpfError> {
        let failed = |error| BpfError::map("read", map::LOST, error);
        let mut lost = Lost { malformed: self.malformed, ..Lost::default() };
        for cpu in self.lost.get(&0, 0).map_err(failed)?.iter() {
            for (total, count) in lost.counted.iter_mut().zip(cpu) {
                *total += count;
            }
        }
        Ok(lost)
    }

    /// Takes waiting events, oldest first, at most `most` of them, and says how many it took.
    ///
    /// Never blocks. Where it took fewer than `most`, the descriptor becomes readable again with the
    /// next event.
    pub fn drain(&mut self, most: usize, mut sink: impl FnMut(Event)) -> usize {
        let mut count = 0;
        while count < most
            && let Some(record) = self.events.next()
        {
            match Event::decode(&record) {
                Ok(event) => {
                    trace!(?event, "kernel event");
                    sink(event);
                }
                Err(event::Malformed) => self.malformed += 1,
            }
            count += 1;
        }
        count
    }

    /// Shows `sink` what [`drain`](Self::drain) would of a listener that closes. It is made up: nothing may follow from it.
    pub fn rehearse(sink: impl FnMut(Event)) {
        Event::rehearse(sink);
    }

    /// The programs' own log, once: of a development build, when
    /// [`BpfOptions::log`] asked for it.
    pub fn take_log(&mut self) -> Option<BpfLog> {
        self.log.take()
    }

    /// The lookup of owners, once; `None` where [`Loss::OwnersFromProc`] says why.
    /// It goes on working when this value is dropped.
    pub fn take_owner_lookup(&mut self) -> Option<OwnerLookup> {
        self.owner_lookup.take()
    }

    fn key(&self, netns: NetnsInode, port: Port) -> WatchKey {
        // nsfs inode numbers are 32 bits in the kernel.
        let inode = if self.namespaces { u32::try_from(netns.0).unwrap_or(u32::MAX) } else { 0 };
        WatchKey::new(inode, port.get())
    }

    /// Sets the port's word of the bitmap from the watches, and the bit of port 0,
    /// by which the programs know that the end of connections is reported.
    fn publish(&mut self, port: Port) -> Result<(), BpfError> {
        let word = port.get() / 64;
        self.publish_word(word)?;
        if word == 0 { Ok(()) } else { self.publish_word(0) }
    }

    fn publish_word(&mut self, word: u16) -> Result<(), BpfError> {
        let watched = self.watches.keys().map(|key| key.port).filter(|port| port / 64 == word);
        let mut bits = watched.fold(0u64, |bits, port| bits | 1 << (port % 64));
        if word == 0 {
            bits |= u64::from(self.watches.values().any(|flags| flags & watch::CONNECTIONS != 0));
        }
        self.ports.set(u32::from(word), bits, 0).map_err(|error| BpfError::map("write", map::PORTS, error))
    }
}

/// Removing what is not there was the wish.
fn absent_is_fine(outcome: Result<(), MapError>) -> Result<(), MapError> {
    match outcome {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

impl AsFd for Bpf {
    /// The ring buffer: readable when events are waiting.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl AsRawFd for Bpf {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

impl fmt::Debug for Bpf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bpf")
            .field("watches", &self.watches)
            .field("losses", &self.losses)
            .field("attached_by", &self.attached_by)
            .finish_non_exhaustive()
    }
}

/// A struct of guard-common as aya takes keys and globals: as bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

impl<T> Plain<T>
where
    Self: aya::Pod,
{
    fn bytes(&self) -> &[u8] {
        // SAFETY: as long as the value, which has no padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(&self.0).cast(), size_of::<T>()) }
    }
}

// SAFETY: integers without padding, asserted in guard-common.
unsafe impl aya::Pod for Plain<WatchKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<guard_common::Settings> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<guard_common::OwnerOffsets> {}
