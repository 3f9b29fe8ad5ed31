//! The ebpf tier: what the BPF programs report, as facts.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use guard_core::gate::{Fact, Hint};
use guard_core::model::{Instant, ProcessId, Tgid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, trace, warn};

use super::MOST_AT_ONCE;
use super::losers::Losers;
use crate::kernel::bpf::{Bpf, BpfError, BpfLog, Event, Lost};

/// The loaded programs and their ring buffer.
pub(super) struct EbpfSource {
    bpf: AsyncFd<BpfFd>,
    /// Log of the programs of a development build.
    log: Option<BpfLog>,
    /// Programs report a PID; facts speak of processes.
    owners: BTreeMap<Tgid, ProcessId>,
    losers: Losers,
    lost: u64,
    /// Nothing came yet, or events came since the last full count of what was lost.
    unchecked: bool,
    /// A release is near, and what it takes to read of it may be out of the processor's caches.
    cold: bool,
    /// More may be waiting than was taken at once.
    behind: bool,
    /// It could not rest when it last tried.
    restless: bool,
}

struct BpfFd(Bpf);

impl AsRawFd for BpfFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl std::fmt::Debug for EbpfSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EbpfSource")
            .field("owners", &self.owners)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl EbpfSource {
    /// Needs a running tokio reactor.
    pub(super) fn new(mut bpf: Bpf) -> io::Result<Self> {
        for loss in bpf.losses() {
            if loss.is_minor() {
                debug!(%loss, "the ebpf tier does without");
            } else {
                warn!(%loss, "the ebpf tier does without");
            }
        }
        let log = bpf.take_log();
        // SAFETY: the ring buffer owns its descriptor, keeps it for its whole life and always names the same one.
        let bpf = unsafe { AsyncFd::register_with_interest(BpfFd(bpf), Interest::READABLE) }?;
        Ok(Self {
            bpf,
            log,
            owners: BTreeMap::new(),
            losers: Losers::new(),
            lost: 0,
            unchecked: true,
            cold: true,
            behind: false,
            restless: false,
        })
    }

    /// The programs, to be told what to watch.
    pub(super) fn bpf(&mut self) -> &mut Bpf {
        &mut self.bpf.get_mut().0
    }

    /// Whether [`Bpf::rest`] would change anything.
    pub(super) fn may_rest(&self) -> bool {
        let bpf = &self.bpf.get_ref().0;
        bpf.may_rest() && !bpf.rests() && !self.restless
    }

    /// It cannot rest, and is not to try again before it has been woken up.
    pub(super) const fn stay_awake(&mut self) {
        self.restless = true;
    }

    /// Everything is to be told again.
    pub(super) fn wake(&mut self) -> Result<(), BpfError> {
        self.restless = false;
        self.bpf().wake()
    }

    /// This process is gone.
    pub(super) fn forget_owner(&mut self, process: ProcessId) {
        if self.owners.get(&process.tgid) == Some(&process) {
            self.owners.remove(&process.tgid);
        }
        if let Err(error) = self.bpf().disown(process.tgid) {
            // The entry stays until there are too many: then exits are told by pidfds alone.
            debug!(%error, pid = process.tgid.0, "the programs still report this process's exit");
        }
    }

    /// Reports the beginning of this process's exit too.
    pub(super) fn watch_owner(&mut self, process: ProcessId) {
        self.owners.insert(process.tgid, process);
        if let Err(error) = self.bpf.get_mut().0.own(process.tgid) {
            // Its pidfd tells of its end all the same.
            debug!(%error, pid = process.tgid.0, "the programs will not report this process's exit");
        }
    }

    /// Waits for events and appends them as facts. Cancel safe.
    pub(super) async fn fill(
        &mut self,
        facts: &mut VecDeque<Fact>,
        now: fn() -> Instant,
    ) -> Result<(), FillError> {
        let Self { bpf, log, owners, losers, lost, unchecked, cold, behind, restless: _ } = self;
        if std::mem::take(unchecked) {
            // The last facts are dealt with: now there is time to ask what was lost,
            // which is slow to read. Before the first event, all that is slow for the
            // first time only is done here (pages that are touched, CPUs that are
            // counted), and not when a gate waits.
            let source = &mut bpf.get_mut().0;
            *behind =
                source.drain(MOST_AT_ONCE, |event| take_in(event, owners, losers, facts)) == MOST_AT_ONCE;
            report_lost(source.lost(), lost, facts)?;
            if !facts.is_empty() {
                return Ok(());
            }
            if std::mem::take(cold) {
                rehearse(owners, losers);
            }
        }
        tokio::select! {
            biased;
            // Cleared first: what arrives during the drain makes it ready again.
            ready = bpf.readable_mut(), if !*behind => ready.map_err(FillError::Wait)?.clear_ready(),
            Some(loser) = losers.next() => {
                facts.push_back(loser);
                return Ok(());
            }
            () = std::future::ready(()), if *behind => {}
        }
        let source = &mut bpf.get_mut().0;
        *behind = source.drain(MOST_AT_ONCE, |event| take_in(event, owners, losers, facts)) == MOST_AT_ONCE;
        // What was lost is asked for once these are dealt with: a gate may be waiting for them.
        *unchecked = true;
        *cold |= facts.iter().any(exiting);
        if let Some(log) = log {
            log.flush();
        }
        trace!(at = now().as_nanos(), facts = facts.len(), "ring buffer drained");
        Ok(())
    }
}

/// Reads of a release that is none, and forgets it.
fn rehearse(owners: &BTreeMap<Tgid, ProcessId>, losers: &mut Losers) {
    let mut facts = VecDeque::with_capacity(2);
    Bpf::rehearse(|event| take_in(event, owners, losers, &mut facts));
    std::hint::black_box(facts);
}

fn exiting(fact: &Fact) -> bool {
    matches!(fact, Fact::Hinted { hint: Hint::OwnerExiting { .. }, .. })
}

// One copy of the code, for the rehearsal as well.
#[inline(never)]
fn take_in(
    event: Event,
    owners: &BTreeMap<Tgid, ProcessId>,
    losers: &mut Losers,
    facts: &mut VecDeque<Fact>,
) {
    match event {
        Event::BindFailed(failed) => losers.add(failed),
        event => facts.extend(fact(&event, owners)),
    }
}

/// The counts only grow.
fn report_lost(
    counted: Result<Lost, BpfError>,
    known: &mut u64,
    facts: &mut VecDeque<Fact>,
) -> Result<(), FillError> {
    let total = counted.map_err(FillError::Lost)?.of_the_port();
    if total > *known {
        facts.push_back(Fact::EventsLost { count: total - *known });
        *known = total;
    }
    Ok(())
}

/// The stream of events broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum FillError {
    #[error("cannot wait for the ring buffer: {0}")]
    Wait(#[source] io::Error),
    #[error("cannot read the counters of lost events: {0}")]
    Lost(#[source] BpfError),
}

fn fact(event: &Event, owners: &BTreeMap<Tgid, ProcessId>) -> Option<Fact> {
    let (hint, at) = match event {
        Event::StateChanged(change) if change.opens_listener() => {
            (Hint::ListenerOpened { address: change.socket.local, port: change.socket.port }, change.at)
        }
        Event::StateChanged(change) if change.closes_listener() => {
            (Hint::ListenerClosed { address: change.socket.local, port: change.socket.port }, change.at)
        }
        // No program reports it: a connection's way through its states changes nothing until its end.
        Event::StateChanged(_) => return None,
        Event::Released(released) if released.was_listener => {
            (Hint::SocketReleased { address: released.socket.local, port: released.socket.port }, released.at)
        }
        // Neither a listener nor connected: a bind probe, its own or another
        // guard's. Two guards on one port would keep each other awake.
        Event::Released(released) if released.socket.remote.is_none() => return None,
        Event::Released(released) => (Hint::ConnectionReleased { port: released.socket.port }, released.at),
        Event::TimeWaitEnded(ended) => (Hint::TimeWaitEnded { port: ended.port }, ended.at),
        Event::Exited(exited) => {
            let process = *owners.get(&exited.tgid)?;
            (Hint::OwnerExiting { process, status: exited.status }, exited.at)
        }
        Event::BindFailed(_) | Event::Unknown { .. } => return None,
    };
    Some(Fact::Hinted { hint, at })
}
