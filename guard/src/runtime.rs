//! The one event loop: feeds facts to the gate, performs its actions, waits
//! for the next event or deadline. The only reader of the clock.

pub mod asker;
pub mod daemon;
mod doors;
pub mod engine;
pub mod netns;
pub mod preset;
mod restart;
pub mod spelling;
pub mod surroundings;
#[cfg(test)]
mod tests;
mod turns;
pub mod units;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, SystemTime};

use guard_core::follow::{Follow, follow};
use guard_core::gate::{Action, Fact, Gate, Goal, Hint, Plan};
use guard_core::model::{BindSpec, Instant, Port, ProcessId, StartTime, Tgid, Verdict};
use guard_core::timeline::Entry;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use self::doors::Doors;
pub use self::restart::{Plans, RestartSink, Restarted};
use self::turns::Turns;
pub use crate::act::systemd::{SystemdError, UnitDoor, ask_about, own_uid};
pub use crate::act::{Command, CommandError, probe, replace};
use crate::kernel::idle::Awake;
use crate::kernel::procfs;
use crate::kernel::scheduling::Urgent;
use crate::observe::{ExitWatch, LookError, Looker, Observer, Wanted, Watched, is_listened_on};
pub use crate::observe::{Tier, TierChoice, TierError, Tuning, listeners_of};

/// Why a run could not be started or carried on.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The tier that was asked for cannot be had.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// The thread that looks could not be started.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The event loop's own descriptors failed.
    #[error("cannot {operation}: {source}")]
    Loop {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn in_loop(operation: &'static str) -> impl Fn(io::Error) -> RuntimeError {
    move |source| RuntimeError::Loop { operation, source }
}

/// The moment on `CLOCK_MONOTONIC`.
pub fn now() -> Instant {
    Instant::from_nanos(nanos(ClockId::CLOCK_MONOTONIC))
}

/// This moment on the scale of process start times: clock ticks of
/// `CLOCK_BOOTTIME`, as in field 22 of `/proc/PID/stat`.
pub fn request_tick() -> StartTime {
    let per_second = u128::from(procfs::clock_ticks_per_second());
    let ticks = u128::from(nanos(ClockId::CLOCK_BOOTTIME)) * per_second / 1_000_000_000;
    StartTime(u64::try_from(ticks).unwrap_or(u64::MAX))
}

/// The wall clock's reading at `at`, judged by the two clocks' distance now.
pub fn wall_clock(at: Instant) -> SystemTime {
    SystemTime::now() - now().since(at)
}

fn nanos(clock: ClockId) -> u64 {
    // These clocks exist on every kernel that the guard runs on and the call
    // has no other way to fail.
    let time = clock_gettime(clock).unwrap_or(TimeSpec::new(0, 0));
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
}

/// So long after a signal, or after an owner has begun to exit, the processors are
/// kept awake for the release. Most processes have ended by then.
const AWAKE: Duration = Duration::from_millis(500);

/// The processors stay awake a little longer than the last run, for those who were waiting for it.
const AWAKE_AFTER: Duration = Duration::from_millis(5);

/// Whether the calling thread waits for a port: then it goes before ordinary
/// ones, where that is allowed. When the port's release is near, no processor
/// goes to sleep before it.
#[derive(Debug, Default)]
struct Haste {
    hurries: bool,
    _urgent: Option<Urgent>,
    awake: Option<Awake>,
    /// Until when the processors are kept awake, or would be if that were allowed.
    awake_until: Option<Instant>,
    /// When they were last allowed to sleep again.
    rested_at: Option<Instant>,
}

impl Haste {
    fn set(&mut self, hurries: bool) {
        if self.hurries == hurries {
            return;
        }
        self.hurries = hurries;
        if !hurries {
            self.awake_until = self.awake_until.map(|until| until.min(now() + AWAKE_AFTER));
        }
        self._urgent = if hurries { begin() } else { None };

        fn begin() -> Option<Urgent> {
            Urgent::begin().unwrap_or_else(|error| {
                debug!(%error, "not a real-time thread: on a busy machine the gate may open late");
                None
            })
        }
    }

    /// An owner was told to end.
    fn owner_was_told(&mut self) {
        if self.hurries {
            self.stay_awake();
        }
    }

    /// An owner has begun to exit. Whoever exits again and again keeps the
    /// processors awake half of the time at most.
    fn owner_exits(&mut self) {
        let rested = self.rested_at.is_none_or(|at| at + AWAKE <= now());
        if self.hurries && self.awake_until.is_none() && rested {
            self.stay_awake();
        }
    }

    fn stay_awake(&mut self) {
        let before = self.awake_until.replace(now() + AWAKE);
        if before.is_none() {
            let failed = |error: &io::Error| debug!(%error, "processors may sleep: the gate may open late by the time it takes to wake one");
            self.awake = Awake::begin().inspect_err(failed).ok();
        }
    }

    /// When [`Haste::rest`] is due.
    fn next_deadline(&self) -> Option<Instant> {
        self.awake_until
    }

    /// The processors may sleep again, once it is time.
    fn rest(&mut self) {
        if let Some(until) = self.awake_until.filter(|&until| until <= now()) {
            self.rested_at = Some(until);
            self.awake_until = None;
            self.awake = None;
        }
    }
}

/// The owner of whom the kernel says that it has begun to exit.
const fn exiting(fact: &Fact) -> Option<ProcessId> {
    match fact {
        Fact::Hinted { hint: Hint::OwnerExiting { process, .. }, .. } => Some(*process),
        _ => None,
    }
}

/// A run that lasts as long waits for somebody, and a better tier is worth loading.
/// For one that is over sooner the loading would take longer than the run, and
/// take the processor from whoever is to exit.
const A_BETTER_TIER_PAYS: Duration = Duration::from_millis(25);

/// How long to wait for an event that tells of a new listener, `waited` after the service was started.
/// `reading`: the time that the last reading took, of the table and of who owns a listener.
///
/// Only the ebpf tier has such events. In the others the table is read again and again, ever less
/// often: what a service needs to start is known late by an eighth of it at most, unless reading
/// would take more than an eighth of the time. What seems to have taken very long was an interruption.
fn follow_pause(tier: Tier, recheck: Duration, waited: Duration, reading: Duration) -> Duration {
    const SHORTEST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(50);
    match tier {
        Tier::Ebpf => recheck,
        Tier::Netlink | Tier::Poll => {
            (waited / 8).clamp(SHORTEST, LONGEST).max((reading * 7).min(5 * LONGEST))
        }
    }
}

/// Who wants to know what happens in a run.
pub trait Sink {
    /// Called for each new entry of the run's timeline, in order.
    fn entry(&mut self, gate: &Gate, tier: Tier, at: Instant, entry: &Entry);
}

/// A wake-up at an absolute moment, with the kernel's resolution: the timers of
/// the async runtime only count milliseconds.
#[derive(Debug)]
struct Alarm(AsyncFd<AlarmFd>);

#[derive(Debug)]
struct AlarmFd(TimerFd);

impl AsRawFd for AlarmFd {
    fn as_raw_fd(&self) -> RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

impl Alarm {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(TimerClock::CLOCK_MONOTONIC, flags)?;
        // SAFETY: the timer owns its descriptor, keeps it for its whole life and always names the same one.
        Ok(Self(unsafe { AsyncFd::register_with_interest(AlarmFd(timer), Interest::READABLE) }?))
    }

    fn set(&self, at: Instant) -> io::Result<()> {
        // Zero would disarm the timer.
        let at = Duration::from_nanos(at.as_nanos().max(1));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(at));
        Ok(self.0.get_ref().0.set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
    }

    /// Resolves when the set moment has come. Cancel safe.
    async fn rings(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

/// Everything that a few runs on the same endpoints share.
#[derive(Debug)]
pub struct Session {
    doors: Doors,
    looker: Looker,
    alarm: Alarm,
    ports: Vec<Port>,
    endpoints: Vec<BindSpec>,
    /// How long it took when it was last asked whether somebody listens, and then who.
    reading: Duration,
    /// Nobody will be ended on the word of its looks.
    only_shows: bool,
}

impl Session {
    /// Opens the sources of facts, in the network namespace of the caller.
    /// Needs a running tokio reactor.
    pub fn open(
        choice: TierChoice,
        endpoints: &[BindSpec],
        tuning: impl Into<Tuning>,
    ) -> Result<Self, RuntimeError> {
        let mut ports: Vec<Port> = endpoints.iter().map(|spec| spec.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let connections = endpoints.iter().any(|spec| !spec.reuse_address);
        let watched: Vec<Watched> = ports.iter().map(|&port| Watched { port, connections }).collect();
        let (observer, owners) = Observer::start(choice, &watched, tuning.into())?;
        let exits = ExitWatch::new().map_err(in_loop("watch processes for their exit"))?;
        Ok(Self {
            doors: Doors::new(observer, exits),
            looker: Looker::start(ports.clone(), owners, now)?,
            alarm: Alarm::new().map_err(in_loop("set up a timer"))?,
            ports,
            endpoints: endpoints.to_vec(),
            reading: Duration::ZERO,
            only_shows: false,
        })
    }

    /// Promises that nobody will be ended, by whomever, on the word of what is seen from now on: looks take half the time
    /// among many processes.
    pub const fn only_show(&mut self) {
        self.only_shows = true;
    }

    /// The tier that facts come from.
    pub const fn tier(&self) -> Tier {
        self.doors.observer.tier()
    }

    /// Why the tier is not a better one.
    pub fn shortfall(&self) -> Option<&str> {
        self.doors.observer.shortfall()
    }

    /// The longest time between two looks without an event.
    pub const fn recheck(&self) -> Duration {
        self.doors.observer.recheck()
    }

    /// Waits until the best tier is ready instead of starting on what is ready first.
    pub async fn settle(&mut self) {
        self.doors.observer.upgrade_now().await;
    }

    /// Makes sure of a tier that is no lower than `wanted`.
    ///
    /// # Errors
    ///
    /// [`TierError::Required`] when it cannot be had.
    pub async fn require(&mut self, wanted: Tier) -> Result<(), RuntimeError> {
        Ok(self.doors.observer.require(wanted).await?)
    }

    /// Carries out one run to its end.
    pub async fn run(&mut self, plan: Plan, sink: &mut dyn Sink) -> Result<Gate, RuntimeError> {
        // Whoever only looks is in no hurry.
        let mut haste = Haste::default();
        haste.set(plan.goal != Goal::Look);
        let mut gate = Gate::new(plan, now());
        let mut turns = Turns::default();
        let mut told = 0;
        loop {
            while let Some(action) = gate.next_action() {
                if let Some(fact) = self.perform(action) {
                    gate.observe(fact, now());
                    self.doors.taken_in();
                    for gone in self.doors.watch_again() {
                        gate.observe(gone, now());
                    }
                }
            }
            for (at, entry) in &gate.timeline().entries()[told..] {
                sink.entry(&gate, self.doors.observer.tier(), *at, entry);
            }
            told = gate.timeline().entries().len();
            if self.doors.signalled() {
                haste.owner_was_told();
            }
            haste.rest();
            if gate.outcome().is_some() {
                return Ok(gate);
            }
            let deadlines = [gate.next_deadline(), haste.next_deadline(), self.load_what_pays(&gate)];
            if let Some(at) = deadlines.into_iter().flatten().min() {
                self.alarm.set(at).map_err(in_loop("set a timer"))?;
            }
            // Events before deadlines: what happened in time counts as in time.
            let events_next = turns.events_next().await;
            if !events_next {
                // The alarm was set a moment ago, and may not have had the time to ring for what is due already.
                gate.on_deadline(now());
            }
            tokio::select! {
                biased;
                fact = turns.take(self.doors.observer.next(now)), if events_next => {
                    if exiting(&fact).is_some() {
                        haste.owner_exits();
                    }
                    gate.observe(fact, now());
                }
                gone = self.doors.exits.next() => {
                    for (process, status) in gone.map_err(in_loop("wait for processes to exit"))? {
                        gate.observe(Fact::OwnerGone { process, status }, now());
                    }
                }
                fact = self.looker.next() => {
                    if let Fact::SnapshotTaken(snapshot) = &fact {
                        self.doors.observer.look(snapshot, &[]);
                    }
                    gate.observe(fact, now());
                }
                rang = self.alarm.rings() => {
                    rang.map_err(in_loop("wait for a timer"))?;
                    gate.on_deadline(now());
                }
                () = std::future::ready(()), if !events_next => {}
            }
        }
    }

    /// Begins to load what is worth it by now, and lets a look wait for it where that is. Returns when something more will
    /// be.
    fn load_what_pays(&mut self, gate: &Gate) -> Option<Instant> {
        let at = now();
        let observer = &mut self.doors.observer;
        let of_tier = (gate.plan().goal != Goal::Look).then(|| gate.timeline().began() + A_BETTER_TIER_PAYS);
        if of_tier.is_some_and(|due| due <= at) {
            observer.upgrade();
        }
        let looked_since = self.looker.waits_since();
        let in_use = || gate.verdicts().iter().any(|verdict| matches!(verdict, Verdict::Busy { .. }));
        let help_due = |observer: &mut Observer| Some(looked_since? + observer.help_look_after(in_use)?);
        let mut of_lookup = help_due(observer);
        while of_lookup.is_some_and(|due| due <= at) {
            observer.help_look();
            of_lookup = help_due(observer);
        }
        [of_tier, of_lookup].into_iter().flatten().filter(|&due| due > at).min()
    }

    /// Follows a started command until it, or what it starts, listens. Returns
    /// what was found, or how the command ended before.
    pub async fn follow(&mut self, command: &mut Command) -> Result<Followed, RuntimeError> {
        let Some(pid) = command.pid() else { return Ok(Followed::Nothing) };
        // A service takes seconds to listen, and only the best tier tells when it does.
        self.doors.observer.upgrade();
        let since = now();
        let mut turns = Turns::default();
        loop {
            // That is cheap to see; who owns a listener is asked when there is one.
            if self.somebody_listens() {
                self.looker.request(Wanted::default())?;
                let fact = tokio::select! {
                    biased;
                    fact = self.looker.next() => fact,
                    ended = command.wait() => return Ok(Followed::Ended(ended)),
                };
                match fact {
                    Fact::SnapshotTaken(snapshot) => match follow(&snapshot, &self.endpoints, Tgid(pid)) {
                        Follow::NotYet => self.reading += snapshot.ended.since(snapshot.begun),
                        found => return Ok(Followed::Found { found, at: snapshot.ended }),
                    },
                    other => debug!(?other, "the look for the successor failed"),
                }
            }
            // The next look follows an event on the port, or the safety net.
            let at = now();
            let next_look = at + self.follow_pause(since, at);
            self.alarm.set(next_look).map_err(in_loop("set a timer"))?;
            loop {
                let events_next = turns.events_next().await;
                tokio::select! {
                    biased;
                    fact = turns.take(self.doors.observer.next(now)), if events_next => match fact {
                        Fact::Hinted { hint: Hint::ListenerOpened { .. }, .. } | Fact::EventsLost { .. } => break,
                        _ => {}
                    },
                    ended = command.wait() => return Ok(Followed::Ended(ended)),
                    rang = self.alarm.rings() => {
                        rang.map_err(in_loop("wait for a timer"))?;
                        break;
                    }
                    () = std::future::ready(()), if !events_next => {
                        if next_look <= now() {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Unless the table says that nobody does.
    fn somebody_listens(&mut self) -> bool {
        let began = now();
        let listening = is_listened_on(&self.ports).unwrap_or(true);
        self.reading = now().since(began);
        listening
    }

    /// How long to wait for an event that tells of a new listener, after a start at `since`.
    fn follow_pause(&self, since: Instant, at: Instant) -> Duration {
        follow_pause(self.tier(), self.recheck(), at.since(since), self.reading)
    }

    /// Whether the table shows that somebody listens on one of these ports.
    pub fn is_listened_on(endpoints: &[BindSpec]) -> bool {
        let ports: Vec<Port> = endpoints.iter().map(|spec| spec.port).collect();
        is_listened_on(&ports).unwrap_or(false)
    }

    fn perform(&mut self, action: Action) -> Option<Fact> {
        match action {
            Action::TakeSnapshot { also, learn, everybody } => {
                let only_shown = self.only_shows;
                let wanted = Wanted { also, learn, everybody, only_shown, ..Wanted::default() };
                let error = self.looker.request(wanted).err()?;
                Some(Fact::SnapshotFailed(error.to_string()))
            }
            action => self.doors.perform(action, &self.endpoints, &self.ports),
        }
    }
}

/// How following a command ended.
#[derive(Debug)]
pub enum Followed {
    /// Somebody listens.
    Found {
        /// Who.
        found: Follow,
        /// When it was seen.
        at: Instant,
    },
    /// The command ended before anybody listened.
    Ended(Result<std::process::ExitStatus, CommandError>),
    /// The command had ended before it could be followed.
    Nothing,
}
