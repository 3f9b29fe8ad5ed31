//! Which tier facts come from, and why not from a better one.

use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use guard_core::gate::Fact;
use guard_core::model::{Instant, Port, ProcessId, Snapshot, SocketCookie};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::ebpf::EbpfSource;
use super::help::{Help, hand_over_alone};
use super::losses::Losses;
use super::netlink::{NetlinkError, NetlinkSource};
use super::owners::OwnerSource;
use super::tuning::Tuning;
use crate::kernel::bpf::{Bpf, BpfError, BpfOptions, FailedBinds, KnownListener, Watch};
use crate::kernel::memory;
use crate::kernel::netns::{self, NetnsError};
use crate::kernel::sock_diag::SockDiagError;

/// Where facts come from. The verdicts are the same in all tiers, only the
/// latency differs. A better tier compares greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Bind probes at a fixed interval; the socket table and `/proc` on demand.
    Poll,
    /// The kernel announces destroyed sockets; probes follow.
    Netlink,
    /// BPF programs report every change on the port; probes follow.
    Ebpf,
}

impl Tier {
    /// The word used in options, events and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Netlink => "netlink",
            Self::Poll => "poll",
        }
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierChoice {
    /// The best that this machine gives; start on what is ready first.
    Auto,
    /// This one and no other.
    Only(Tier),
}

/// The tier that was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// The BPF programs cannot be used here.
    #[error("the ebpf tier is not available: {0}")]
    Ebpf(#[from] BpfError),
    /// The kernel's announcements cannot be had here.
    #[error("the netlink tier is not available: {0}")]
    Netlink(#[from] NetlinkError),
    /// A better tier was required than there is.
    #[error("the {} tier was required and only the {} tier is available: {why}", required.name(), available.name())]
    Required {
        /// What was asked for.
        required: Tier,
        /// What there is.
        available: Tier,
        /// Why not better.
        why: String,
        /// It is a matter of permission.
        denied: bool,
    },
    /// It is not known in which network namespace to look.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The thread that loads the programs broke down.
    #[error("the thread that loads the BPF programs ended early")]
    Loader,
    /// The event source could not be connected to the event loop.
    #[error("cannot wait for kernel events: {0}")]
    Reactor(#[from] std::io::Error),
}

impl TierError {
    /// It is a matter of permission.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Ebpf(error) => error.is_denied(),
            Self::Netlink(NetlinkError::Subscribe(SockDiagError::Denied { .. }))
            | Self::Netns(NetnsError::Denied { .. })
            | Self::Required { denied: true, .. } => true,
            _ => false,
        }
    }
}

/// The longest time without a look in the event-driven tiers: a safety net,
/// not a source of facts.
const EVENT_RECHECK: Duration = Duration::from_millis(250);

/// What reports events.
#[derive(Debug)]
enum Source {
    /// Nothing: the run's own deadlines are what drives it.
    Poll,
    Netlink(NetlinkSource),
    Ebpf(Box<EbpfSource>),
}

/// A load that runs on another thread.
type Loading = oneshot::Receiver<Result<Bpf, TierError>>;

/// A port that facts are wanted about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Local port.
    pub port: Port,
    /// Report the end of connections too: they block a strict bind.
    pub connections: bool,
}

/// The stream of facts about a few ports, from whichever tier there is.
#[derive(Debug)]
pub struct Observer {
    watched: Vec<Watched>,
    tuning: Tuning,
    losses: Losses,
    source: Source,
    loading: Option<Loading>,
    /// What is being loaded watches other ports than it should.
    outdated: bool,
    may_upgrade: bool,
    help: Help,
    owners: Vec<ProcessId>,
    owner_source: OwnerSource,
    ready: VecDeque<Fact>,
    /// Why the tier is not a better one.
    shortfall: Option<Shortfall>,
    /// How many sources fail, one after the other, as soon as facts are waited for.
    #[cfg(test)]
    pub(crate) breaks: u32,
}

/// Why a better tier cannot be had.
#[derive(Clone, Debug)]
struct Shortfall {
    why: String,
    denied: bool,
}

impl Shortfall {
    fn of(error: &TierError) -> Self {
        Self { why: error.to_string(), denied: error.is_denied() }
    }

    const fn because(why: String) -> Self {
        Self { why, denied: false }
    }
}

impl Observer {
    /// Starts observing `ports` in the caller's network namespace. `Auto`
    /// returns at once, in the best tier that needs no loading: see
    /// [`Observer::upgrade`].
    ///
    /// Also returns where to look up owners: as soon as BPF is loaded, it is by BPF.
    pub fn start(
        choice: TierChoice,
        watched: &[Watched],
        tuning: Tuning,
    ) -> Result<(Self, OwnerSource), TierError> {
        let owner_source = OwnerSource::default();
        let mut observer = Self {
            watched: watched.to_vec(),
            tuning,
            losses: Losses::default(),
            source: Source::Poll,
            loading: None,
            outdated: false,
            may_upgrade: choice == TierChoice::Auto,
            help: Help::new(owner_source.clone(), choice == TierChoice::Auto),
            owners: Vec::new(),
            owner_source: owner_source.clone(),
            ready: VecDeque::new(),
            shortfall: None,
            #[cfg(test)]
            breaks: 0,
        };
        match choice {
            TierChoice::Only(Tier::Ebpf) => {
                observer.source = Source::Ebpf(Box::new(EbpfSource::new(load(
                    &observer.watches()?,
                    &observer.owner_source,
                    tuning,
                )?)?));
            }
            TierChoice::Only(Tier::Netlink) => observer.source = Source::Netlink(observer.netlink()?),
            TierChoice::Only(Tier::Poll) => {}
            TierChoice::Auto => observer.take_netlink(),
        }
        if let TierChoice::Only(tier @ (Tier::Netlink | Tier::Poll)) = choice {
            observer.shortfall = Some(Shortfall::because(format!("--tier {} was asked for", tier.name())));
        }
        Ok((observer, owner_source))
    }

    fn netlink(&self) -> Result<NetlinkSource, NetlinkError> {
        NetlinkSource::new(&self.watched, self.tuning.event_buffer)
    }

    /// What the BPF programs shall report: they see every network namespace.
    fn watches(&self) -> Result<Vec<Watch>, TierError> {
        let netns = netns::current()?;
        let watch = |&Watched { port, connections }: &Watched| Watch { netns, port, connections };
        Ok(self.watched.iter().map(watch).collect())
    }

    /// The netlink tier if it can be had, else polling.
    fn take_netlink(&mut self) {
        self.source = match self.netlink() {
            Ok(netlink) => Source::Netlink(netlink),
            Err(error) => {
                info!(%error, "no netlink tier");
                self.shortfall = Some(Shortfall::of(&error.into()));
                Source::Poll
            }
        };
    }

    /// Begins to load the BPF programs beside the run, when `Auto` was asked
    /// for. A run that is soon over never needs them.
    pub fn upgrade(&mut self) {
        if !std::mem::take(&mut self.may_upgrade) {
            return;
        }
        let watches = match self.watches() {
            Ok(watches) => watches,
            Err(error) => {
                self.shortfall = Some(Shortfall::of(&error));
                return;
            }
        };
        let (sender, receiver) = oneshot::channel();
        let owners = self.owner_source.clone();
        let tuning = self.tuning;
        let loader = thread::Builder::new().name("load-bpf".to_owned()).spawn(move || {
            let loaded = load(&watches, &owners, tuning);
            let without_ebpf = loaded.is_err();
            // The run may be over already: then the programs go with the value.
            let _unneeded = sender.send(loaded);
            if without_ebpf && !owners.is_loaded() {
                hand_over_alone(&owners);
                memory::give_back();
            }
        });
        match loader {
            Ok(_) => {
                self.loading = Some(receiver);
                // It comes with the programs.
                self.help.is_not_needed();
            }
            Err(error) => {
                let why = format!("cannot start a thread to load BPF: {error}");
                self.shortfall = Some(Shortfall::because(why));
            }
        }
    }

    /// How long after the beginning of a look [`Observer::help_look`] pays; `None` where it would do nothing. `in_use`
    /// says whether the port is known to be: then the look will ask for owners.
    pub fn help_look_after(&mut self, in_use: impl FnOnce() -> bool) -> Option<Duration> {
        self.help.is_due_after(in_use)
    }

    /// How often the iterator was asked for owners.
    #[cfg(test)]
    pub(crate) fn passes(&self) -> usize {
        self.owner_source.passes()
    }

    /// Does what helps a look that takes long, when `Auto` was asked for: loads the iterator over open files, and nothing
    /// else, beside it. There may be more to do later.
    pub fn help_look(&mut self) {
        self.help.go_on();
    }

    /// Loads the BPF programs now, when `Auto` was asked for, and stays in the
    /// lower tier when that fails.
    pub async fn upgrade_now(&mut self) {
        self.upgrade();
        if self.loading.is_some() {
            let loaded = loaded(&mut self.loading).await;
            self.loading = None;
            self.settle(loaded);
            // No run has begun yet that would have to be told.
            self.ready.clear();
        }
    }

    /// The tier that facts come from now.
    pub const fn tier(&self) -> Tier {
        match self.source {
            Source::Ebpf(_) => Tier::Ebpf,
            Source::Netlink(_) => Tier::Netlink,
            Source::Poll => Tier::Poll,
        }
    }

    /// Why the tier is not a better one, when something is known about that.
    pub fn shortfall(&self) -> Option<&str> {
        self.shortfall.as_ref().map(|shortfall| shortfall.why.as_str())
    }

    /// Makes sure of a tier that is no lower than `wanted`, waiting for its
    /// programs to load if need be.
    ///
    /// # Errors
    ///
    /// [`TierError::Required`] when it cannot be had.
    pub async fn require(&mut self, wanted: Tier) -> Result<(), TierError> {
        if self.tier() < wanted {
            self.upgrade_now().await;
        }
        if self.tier() >= wanted {
            return Ok(());
        }
        let Shortfall { why, denied } = self
            .shortfall
            .clone()
            .unwrap_or_else(|| Shortfall::because("nothing is known about why".to_owned()));
        Err(TierError::Required { required: wanted, available: self.tier(), why, denied })
    }

    /// The longest time between two looks without an event.
    pub const fn recheck(&self) -> Duration {
        match self.tier() {
            Tier::Ebpf | Tier::Netlink => EVENT_RECHECK,
            Tier::Poll => self.tuning.poll_interval,
        }
    }

    /// Wants facts about these ports from now on, and no others. What is watched
    /// before and after is watched without a gap.
    ///
    /// # Errors
    ///
    /// When the tier's source refuses; then some of the ports may not be watched.
    pub fn watch(&mut self, watched: &[Watched]) -> Result<(), TierError> {
        let old = std::mem::replace(&mut self.watched, watched.to_vec());
        if self.loading.is_some() {
            // What is being loaded knows the old ports: it is told when it comes.
            self.outdated = true;
        }
        let netns = netns::current()?;
        match &mut self.source {
            Source::Ebpf(ebpf) => {
                for &Watched { port, connections } in watched.iter().filter(|new| !old.contains(new)) {
                    ebpf.bpf().watch(Watch { netns, port, connections })?;
                }
                for gone in old.iter().filter(|old| watched.iter().all(|new| new.port != old.port)) {
                    ebpf.bpf().unwatch(netns, gone.port)?;
                }
            }
            Source::Netlink(netlink) => netlink.watch(watched)?,
            Source::Poll => {}
        }
        Ok(())
    }

    /// Whether [`Observer::rest`] would change anything.
    pub fn may_rest(&self) -> bool {
        matches!(&self.source, Source::Ebpf(ebpf) if ebpf.may_rest())
    }

    /// On the watched ports only the end of these listeners is worth a fact, until [`Observer::wake`]: the connections
    /// of the whole machine cost less then.
    pub fn rest(&mut self, listeners: &[(SocketCookie, Port)]) {
        let Source::Ebpf(ebpf) = &mut self.source else { return };
        let rested = netns::current().map_err(TierError::from).and_then(|netns| {
            let known = |&(cookie, port): &(SocketCookie, Port)| KnownListener { cookie, netns, port };
            Ok(ebpf.bpf().rest(&listeners.iter().map(known).collect::<Vec<_>>())?)
        });
        if let Err(error) = rested {
            debug!(%error, "every connection goes on costing what it does");
            ebpf.stay_awake();
        }
    }

    /// Everything is worth a fact again. Looks that begin afterwards show what none told of.
    pub fn wake(&mut self) {
        let Source::Ebpf(ebpf) = &mut self.source else { return };
        if let Err(error) = ebpf.wake() {
            self.step_down(error.to_string());
        }
    }

    /// This process is gone: nothing more is wanted about it.
    pub fn forget_owner(&mut self, process: ProcessId) {
        self.owners.retain(|owner| *owner != process);
        if let Source::Ebpf(ebpf) = &mut self.source {
            ebpf.forget_owner(process);
        }
    }

    /// Reports the beginning of this process's exit too, where the tier can.
    pub fn watch_owner(&mut self, process: ProcessId) {
        if self.owners.contains(&process) {
            return;
        }
        self.owners.push(process);
        if let Source::Ebpf(ebpf) = &mut self.source {
            ebpf.watch_owner(process);
        }
    }

    /// Tells the tier what a look at these ports found; none means all that are watched.
    pub fn look(&mut self, snapshot: &Snapshot, ports: &[Port]) {
        if let Source::Netlink(netlink) = &mut self.source {
            netlink.look(snapshot, ports);
        }
    }

    /// The next fact. Cancel safe. Without an event source it never resolves.
    pub async fn next(&mut self, now: fn() -> Instant) -> Fact {
        loop {
            if let Some(fact) = self.ready.pop_front() {
                self.losses.note(&fact, self.tier());
                return fact;
            }
            #[cfg(test)]
            if let Some(left) = self.breaks.checked_sub(1) {
                self.breaks = left;
                self.step_down("broken by the test".to_owned());
                continue;
            }
            tokio::select! {
                biased;
                // First: it comes once, and a source may never have a pause.
                loaded = loaded(&mut self.loading) => {
                    self.loading = None;
                    self.settle(loaded);
                }
                filled = fill(&mut self.source, &mut self.ready, now) => {
                    if let Err(why) = filled {
                        self.step_down(why);
                    } else if self.ready.is_empty() {
                        // What was read concerns nobody, and there may be no end of it: the caller has others to ask.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    /// A source failed for good: the next lower tier takes over.
    fn step_down(&mut self, why: String) {
        let failed = self.tier();
        warn!(%why, tier = failed.name(), "the event source failed: stepping down");
        if failed == Tier::Ebpf {
            self.take_netlink();
        } else {
            self.source = Source::Poll;
        }
        self.shortfall = Some(Shortfall::because(why));
        self.ready.push_back(self.tier_changed());
    }

    fn settle(&mut self, loaded: Result<Bpf, TierError>) {
        let outdated = std::mem::take(&mut self.outdated);
        let up_to_date = |mut bpf: Bpf| {
            if outdated {
                for watch in self.watches()? {
                    bpf.watch(watch)?;
                }
            }
            Ok(EbpfSource::new(bpf)?)
        };
        let source = loaded.and_then(up_to_date);
        match source {
            Ok(mut ebpf) => {
                for &owner in &self.owners {
                    ebpf.watch_owner(owner);
                }
                self.source = Source::Ebpf(Box::new(ebpf));
                self.ready.push_back(self.tier_changed());
            }
            Err(error) => {
                info!(%error, tier = self.tier().name(), "staying in the lower tier");
                self.shortfall = Some(Shortfall::of(&error));
            }
        }
    }

    fn tier_changed(&self) -> Fact {
        Fact::TierChanged { tier: self.tier().name(), recheck: self.recheck() }
    }
}

async fn fill(source: &mut Source, facts: &mut VecDeque<Fact>, now: fn() -> Instant) -> Result<(), String> {
    match source {
        Source::Ebpf(ebpf) => ebpf.fill(facts, now).await.map_err(|error| error.to_string()),
        Source::Netlink(netlink) => netlink.fill(facts, now).await.map_err(|error| error.to_string()),
        Source::Poll => std::future::pending().await,
    }
}

async fn loaded(loading: &mut Option<Loading>) -> Result<Bpf, TierError> {
    match loading {
        Some(loading) => loading.await.unwrap_or(Err(TierError::Loader)),
        None => std::future::pending().await,
    }
}

fn load(watches: &[Watch], owners: &OwnerSource, tuning: Tuning) -> Result<Bpf, TierError> {
    let defaults = BpfOptions::default();
    // The kernel takes powers of two only.
    let ring_bytes = tuning
        .event_buffer
        .map_or(defaults.ring_bytes, |bytes| bytes.checked_next_power_of_two().unwrap_or(1 << 31));
    let options = BpfOptions {
        ports: watches.to_vec(),
        failed_binds: if tuning.standing { FailedBinds::WhereCheap } else { FailedBinds::AtAnyCost },
        ring_bytes,
        log: cfg!(debug_assertions),
        may_rest: tuning.standing,
        ..defaults
    };
    // The C library keeps some of what a thread has freed for that thread, until it ends.
    let mut bpf = thread::scope(|scope| {
        let loader = thread::Builder::new().name("load-bpf".to_owned());
        match loader.spawn_scoped(scope, || Bpf::load(&options)) {
            Ok(loader) => Ok(loader.join().map_err(|_| TierError::Loader)??),
            Err(error) => {
                debug!(%error, "no thread to load BPF on: more memory stays in use");
                Ok::<_, TierError>(Bpf::load(&options)?)
            }
        }
    })?;
    if let Some(lookup) = bpf.take_owner_lookup() {
        owners.hand_over(lookup);
    }
    memory::give_back();
    Ok(bpf)
}
