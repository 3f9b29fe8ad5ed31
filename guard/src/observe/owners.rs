//! Who has a descriptor for which socket: asked of the BPF iterator over all
//! open files where there is one, else of `/proc`.
//!
//! Both give the same answer about a world that stands still. The iterator needs
//! a tenth of the time or less, and sees processes whose descriptors `/proc` does
//! not show to this user, or to anybody. What is known *about* an owner comes from
//! `/proc` in any case, and an owner counts only if it was seen to be one after
//! that was read: the number may have been given to another process meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_core::model::{Ancestor, Process, ProcessId, SocketInode, Tgid, Unseen};
use tracing::{debug, warn};

use crate::kernel::bpf::{BpfError, Descriptor, OwnerLookup};
use crate::kernel::procfs;

/// How often the iterator is asked at most, until nobody new turns up. The first
/// time finds the owners, the second one confirms them.
const PASSES: u32 = 5;

/// How much is made sure of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Somebody may be ended on its word: whoever came to have a socket behind the iterator's walk is looked for by
    /// another one.
    Acting,
    /// It is only shown. Where every socket has an owner, that these have it still is enough, which takes microseconds
    /// and not another walk through all files. A further sharer may be missed, as in `/proc`.
    Showing,
}

/// Who owns the sockets that were asked for.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    /// The confirmed owners of each, ascending. None for a socket that nobody was
    /// seen to own.
    pub(super) owners: BTreeMap<SocketInode, Vec<ProcessId>>,
    /// For a socket, an owner that has it in its leader's descriptor table, and
    /// the number there.
    pub(super) descriptors: BTreeMap<SocketInode, (Tgid, RawFd)>,
    /// Why there may be more.
    pub(super) unseen: Option<Unseen>,
}

/// What was read about processes.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Owners, and those who are also wanted.
    pub(super) processes: BTreeMap<Tgid, Process>,
    /// The ancestors of all.
    pub(super) ancestors: BTreeMap<Tgid, Ancestor>,
    /// One could not be read.
    unreadable: Option<Unseen>,
}

impl Evidence {
    /// Why something about somebody is not known.
    pub(super) fn unreadable(&self) -> Option<Unseen> {
        self.unreadable.clone()
    }

    /// Whether what was read under this process's number is about this process.
    fn is_of(&self, process: ProcessId) -> bool {
        self.processes.get(&process.tgid).is_some_and(|read| read.id == process)
    }

    /// Reads about a process and its ancestors. A supervisor explains its child;
    /// nothing is decided by a missing one.
    pub(super) fn read(&mut self, tgid: Tgid) -> Option<ProcessId> {
        let process = match procfs::process(tgid) {
            Ok(Some(process)) => process,
            Ok(None) => return None,
            Err(error) => {
                self.unreadable = Some(Unseen::Failed(error.to_string()));
                return None;
            }
        };
        let (id, parent) = (process.id, process.parent);
        self.processes.insert(tgid, process);
        if parent.is_some_and(|parent| self.ancestors.contains_key(&parent)) {
            // A sibling has shown them: there may be hundreds.
            return Some(id);
        }
        match procfs::ancestors(tgid) {
            Ok(ancestors) => {
                self.ancestors.extend(ancestors.seen.into_iter().map(|it| (it.id.tgid, it)));
            }
            Err(error) => debug!(%error, pid = tgid.0, "cannot see an owner's ancestors"),
        }
        Some(id)
    }
}

/// So many looks in a row fail before the iterator is given up: out of descriptors, say, one may fail today and the next
/// one not.
const FAILURES: u32 = 3;

/// A loaded iterator. The threads that look share it, and with it the kernel's view of
/// what is wanted: each pass is one thread's.
#[derive(Debug)]
struct Loaded {
    lookup: OwnerLookup,
    /// Looks in a row that it failed.
    failed: u32,
}

/// So long an expected iterator is waited for. To load it takes 6 to 10 ms of a processor; that it has to wait for one
/// as well must not hold up a look for ever.
const WORTH_WAITING: Duration = Duration::from_millis(50);

/// Where owners are looked up: in `/proc`, until an iterator is handed over.
#[derive(Clone, Debug, Default)]
pub struct OwnerSource(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    loaded: Mutex<Option<Arc<Mutex<Loaded>>>>,
    /// An expected iterator came, or will not come.
    settled: Condvar,
    /// Whether one is being loaded.
    expected: AtomicBool,
    /// Whether there is one, and whether an expected one is waited for: a walk through `/proc` asks that all the time.
    there: AtomicBool,
    awaited: AtomicBool,
    /// How long it is waited for.
    patience: Duration,
    #[cfg(test)]
    passes: std::sync::atomic::AtomicUsize,
    #[cfg(test)]
    walks: std::sync::atomic::AtomicUsize,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            loaded: Mutex::default(),
            settled: Condvar::new(),
            expected: AtomicBool::new(false),
            there: AtomicBool::new(false),
            awaited: AtomicBool::new(false),
            patience: WORTH_WAITING,
            #[cfg(test)]
            passes: std::sync::atomic::AtomicUsize::new(0),
            #[cfg(test)]
            walks: std::sync::atomic::AtomicUsize::new(0),
        }
    }
}

/// An iterator is being loaded. Whoever loads it keeps this until it is handed over or known not to come.
#[derive(Debug)]
pub(super) struct Expected(Arc<Shared>);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.settle();
    }
}

impl Shared {
    /// Nobody waits any longer.
    fn settle(&self) {
        // Under the lock: whoever is about to wait has either seen this or is woken.
        let _loaded = locked(&self.loaded);
        self.expected.store(false, Ordering::Release);
        self.awaited.store(false, Ordering::Release);
        self.settled.notify_all();
    }
}

impl OwnerSource {
    /// Owners are looked up by this iterator from now on, by looks that are under way too.
    pub(super) fn hand_over(&self, lookup: OwnerLookup) {
        debug!("owners are looked up by BPF from now on");
        let new = Arc::new(Mutex::new(Loaded { lookup, failed: 0 }));
        let mut loaded = locked(&self.0.loaded);
        let _closed_unlocked = loaded.replace(new);
        self.0.there.store(true, Ordering::Release);
        self.0.settled.notify_all();
        drop(loaded);
    }

    /// An iterator is about to be loaded: one at a time.
    pub(super) fn expect(&self) -> Expected {
        let another = self.0.expected.swap(true, Ordering::AcqRel);
        debug_assert!(!another, "the first one to come would settle both");
        Expected(Arc::clone(&self.0))
    }

    /// Looks, also those that are under way, do not ask `/proc` while an iterator is being loaded, but wait for it.
    pub(super) fn wait_for_expected(&self) {
        // Under the lock: what is settled is not waited for.
        let _loaded = locked(&self.0.loaded);
        self.0.awaited.store(self.0.expected.load(Ordering::Acquire), Ordering::Release);
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.0.awaited.load(Ordering::Acquire)
    }

    /// The iterator, if need be after waiting for it.
    fn iterator(&self) -> Option<Arc<Mutex<Loaded>>> {
        if self.is_awaited() && !self.is_loaded() {
            debug!("the iterator over open files is waited for");
        }
        let outstanding = |loaded: &mut Option<_>| loaded.is_none() && self.is_awaited();
        let loaded = locked(&self.0.loaded);
        let waited = self.0.settled.wait_timeout_while(loaded, self.0.patience, outstanding);
        let (loaded, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        let found = loaded.clone();
        if waited.timed_out() {
            self.0.awaited.store(false, Ordering::Release);
            drop(loaded);
            debug!("the iterator over open files takes long to load");
        }
        found
    }

    /// This iterator is asked no more; another one that came meanwhile is.
    fn give_up(&self, failed: &Arc<Mutex<Loaded>>) {
        let mut loaded = locked(&self.0.loaded);
        if loaded.as_ref().is_some_and(|loaded| Arc::ptr_eq(loaded, failed)) {
            *loaded = None;
            self.0.there.store(false, Ordering::Release);
        }
    }

    /// How often an iterator was asked.
    #[cfg(test)]
    pub(super) fn passes(&self) -> usize {
        self.0.passes.load(Ordering::Relaxed)
    }

    /// Whether owners are looked up by an iterator.
    pub(super) fn is_loaded(&self) -> bool {
        self.0.there.load(Ordering::Acquire)
    }

    /// Who owns `inodes`, by the best that there is. `/proc` is not read to its end where an iterator comes before, or is to
    /// be waited for ([`OwnerSource::wait_for_expected`]).
    pub(super) fn owners(
        &self,
        inodes: &BTreeSet<SocketInode>,
        evidence: &mut Evidence,
        care: Care,
    ) -> Ownership {
        if inodes.is_empty() {
            // Nothing that anybody could have open: nobody's files are looked at.
            return Ownership::default();
        }
        let mut failed = false;
        loop {
            if !failed && let Some(loaded) = self.iterator() {
                let pass = || {
                    #[cfg(test)]
                    self.0.passes.fetch_add(1, Ordering::Relaxed);
                    locked(&loaded).lookup.descriptors(inodes)
                };
                let enough = |found: &[Descriptor]| care == Care::Showing && all_have_still(inodes, found);
                let answer = by_iterator(pass, evidence, enough);
                if let Some(ownership) = self.noted(&loaded, answer) {
                    return ownership;
                }
                failed = true;
            }
            #[cfg(test)]
            self.0.walks.fetch_add(1, Ordering::Relaxed);
            let better_way = || !failed && (self.is_loaded() || self.is_awaited());
            if let Some(ownership) = through_proc(inodes, evidence, &better_way) {
                return ownership;
            }
            debug!("what is left of /proc is not read");
        }
    }

    /// The iterator's answer. Without one it may be given up.
    fn noted(&self, loaded: &Arc<Mutex<Loaded>>, answer: Result<Ownership, BpfError>) -> Option<Ownership> {
        let failed = {
            let mut loaded = locked(loaded);
            loaded.failed = if answer.is_ok() { 0 } else { loaded.failed + 1 };
            loaded.failed
        };
        match answer {
            Ok(ownership) => {
                debug!("owners were looked up by BPF");
                return Some(ownership);
            }
            Err(error) if failed < FAILURES => debug!(%error, "owners are looked up in /proc this time"),
            Err(error) => {
                warn!(%error, "owners are looked up in /proc from now on");
                self.give_up(loaded);
            }
        }
        None
    }
}

/// A thread that broke down while it asked left nothing behind that matters to the next one.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many descriptors are asked for one by one: more take as long as another pass through all files.
const FEW: usize = 256;

/// Whether these are few, every socket has an owner among them, and each is there still.
fn all_have_still(inodes: &BTreeSet<SocketInode>, found: &[Descriptor]) -> bool {
    let owned = || found.iter().map(|it| it.inode).collect::<BTreeSet<_>>();
    found.len() <= FEW && inodes.is_subset(&owned()) && found.iter().all(has_still)
}

/// Whether the process that has this number now has this socket there. A thread's own descriptor table is not looked
/// into.
fn has_still(descriptor: &Descriptor) -> bool {
    let Descriptor { inode, process, fd, of_leader } = *descriptor;
    of_leader && procfs::has_socket_at(process.tgid, fd, inode)
}

/// `enough` is asked about the first pass after the evidence was read, and spares another one.
fn by_iterator(
    mut pass: impl FnMut() -> Result<Vec<Descriptor>, BpfError>,
    evidence: &mut Evidence,
    enough: impl Fn(&[Descriptor]) -> bool,
) -> Result<Ownership, BpfError> {
    let mut read: BTreeSet<ProcessId> = BTreeSet::new();
    let mut passes = 0;
    let found: Vec<Descriptor> = loop {
        let found = pass()?;
        passes += 1;
        let fresh: BTreeSet<ProcessId> =
            found.iter().map(|it| it.process).filter(|process| !read.contains(process)).collect();
        // Also "nobody" is believed only when it was seen twice: somebody may have
        // passed the socket on behind the walk.
        if (fresh.is_empty() && passes > 1) || passes == PASSES {
            break found;
        }
        for process in fresh {
            let _found_below = evidence.read(process.tgid);
            read.insert(process);
        }
        if passes == 1 && found.iter().all(|it| evidence.is_of(it.process)) && enough(&found) {
            break found;
        }
    };

    let mut owners: BTreeMap<SocketInode, BTreeSet<ProcessId>> = BTreeMap::new();
    let mut descriptors = BTreeMap::new();
    let mut unexplained = None;
    for Descriptor { inode, process, fd, of_leader } in found {
        if of_leader {
            descriptors.entry(inode).or_insert((process.tgid, fd));
        }
        if read.contains(&process) && evidence.is_of(process) {
            owners.entry(inode).or_default().insert(process);
        } else {
            unexplained = Some(process.tgid);
        }
    }
    let unseen = outside().or_else(|| unexplained.map(|tgid| unexplained_owner(tgid, evidence)));
    let owners = owners.into_iter().map(|(inode, owners)| (inode, owners.into_iter().collect())).collect();
    Ok(Ownership { owners, descriptors, unseen })
}

/// The iterator shows everybody who has a number in this PID namespace.
fn outside() -> Option<Unseen> {
    match procfs::in_initial_pid_namespace() {
        Ok(true) => None,
        Ok(false) => Some(Unseen::OtherPidNamespace),
        Err(error) => Some(Unseen::Failed(error.to_string())),
    }
}

/// The iterator shows an owner and `/proc` shows nothing of it.
fn unexplained_owner(tgid: Tgid, evidence: &Evidence) -> Unseen {
    match (&evidence.unreadable, procfs::what_is_unseen()) {
        (_, Ok(Some(hidden))) => hidden,
        (Some(unreadable), _) => unreadable.clone(),
        (None, _) => Unseen::Failed(format!("it shows nothing of process {tgid}, which has the socket")),
    }
}

/// `None` when there is a better way before the end.
fn through_proc(
    inodes: &BTreeSet<SocketInode>,
    evidence: &mut Evidence,
    better_way: &dyn Fn() -> bool,
) -> Option<Ownership> {
    let scan = procfs::owners_unless(inodes, better_way)?;
    let mut owners: BTreeMap<SocketInode, Vec<ProcessId>> = BTreeMap::new();
    for tgid in scan.owners.values().flatten().copied().collect::<BTreeSet<_>>() {
        // Gone since the scan: it owns nothing any more.
        let Some(process) = evidence.read(tgid) else { continue };
        for inode in procfs::owned_by_unless(tgid, inodes, better_way)? {
            owners.entry(inode).or_default().push(process);
        }
    }
    let unseen = scan.complete.err().or_else(|| evidence.unreadable.clone());
    Some(Ownership { owners, descriptors: scan.descriptors, unseen })
}

#[cfg(test)]
mod tests;
