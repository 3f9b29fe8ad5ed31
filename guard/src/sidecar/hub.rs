//! What is known and what happened, for clients: the state of each service,
//! the last runs and the last events. Bounded in every direction.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;

use guard_core::model::Instant;
use serde_json::Value;
use tokio::sync::watch;

use super::access::Profile;
use super::documents::{RunDocument, ServiceDocument, ServiceSummary};
use super::metrics::{Metrics, ServiceGauge};
use crate::report::{Body, Event};
use crate::runtime::engine::{Kind, RunNumber};
use crate::runtime::now;
use crate::runtime::spelling::Place;

/// The kept events take no more than this, however many they may be.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// Events that are kept of one run: of a usual one there are a few dozen.
const RUN_EVENTS: usize = 512;

/// Runs of each kind that are kept after their end: however many wait at gates,
/// what came of the last restarts stays known.
const FINISHED_RUNS: usize = 256;

/// What every look is told as.
const SNAPSHOT: &str = "snapshot";

/// What the last look said before there was one.
const UNKNOWN: &str = "unknown";

/// Something that happened, from an event loop.
#[derive(Debug)]
pub(super) struct Notice {
    pub(super) at: Instant,
    pub(super) service: Option<Arc<str>>,
    pub(super) what: What,
}

/// What happened.
#[derive(Debug)]
pub(super) enum What {
    /// In a run, with its command.
    Run(RunNumber, &'static str, Body),
    /// Outside of any run.
    Event(Body),
    /// A look at a service that nothing is under way for, and when it began.
    Looked(Instant, Body),
    /// The tier of these services, and why it is not a better one.
    Tier(&'static str, Option<Arc<str>>),
    /// The service is no longer guarded.
    Forgotten,
}

/// One kept event.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) seq: u64,
    pub(super) service: Option<Arc<str>>,
    pub(super) kind: &'static str,
    pub(super) json: Arc<str>,
}

/// What the last look at a service found.
#[derive(Debug)]
struct LastLook {
    began: Instant,
    /// When it was told.
    at: Instant,
    verdict: &'static str,
    /// The text of the event that first said the same: its body is found there, and the history has it too.
    event: Arc<str>,
}

#[derive(Debug, Default)]
struct ServiceState {
    looked: Option<LastLook>,
    restart: Option<RunNumber>,
    last_restart: Option<RunNumber>,
}

#[derive(Debug)]
struct RunState {
    service: Arc<str>,
    command: &'static str,
    events: Vec<Arc<str>>,
    left_out: u64,
    finished: Option<Body>,
    /// What it was asked for as, and the network namespace where it goes on.
    begun: Option<(Kind, Option<Place>)>,
}

impl RunState {
    fn new(service: &Arc<str>, command: &'static str) -> Self {
        Self {
            service: Arc::clone(service),
            command,
            events: Vec::new(),
            left_out: 0,
            finished: None,
            begun: None,
        }
    }
}

/// Everything that clients can be told.
#[derive(Debug)]
pub(super) struct Hub {
    epoch: String,
    seq: u64,
    history: VecDeque<Kept>,
    bytes: usize,
    most: usize,
    services: BTreeMap<Arc<str>, ServiceState>,
    tiers: BTreeMap<Arc<str>, (&'static str, Option<Arc<str>>)>,
    runs: BTreeMap<RunNumber, RunState>,
    /// By command, oldest first.
    finished: BTreeMap<&'static str, VecDeque<RunNumber>>,
    /// The newest of each kind that is kept no more.
    forgotten: BTreeMap<&'static str, RunNumber>,
    pub(super) metrics: Metrics,
    /// Looks that were told of, whether they said anything new or not.
    pub(super) looks: u64,
    head: watch::Sender<u64>,
    /// Takes the runs that have ended.
    #[cfg(feature = "otlp")]
    pub(super) traces: Option<super::otlp::Exporter>,
}

/// Where a reader is in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    /// It has everything up to this event.
    After(u64),
    /// It begins, or was away for too long: it needs snapshots.
    Fresh {
        /// What it missed; `None` when it begins, `Some(None)` when nobody knows.
        missed: Option<Option<u64>>,
    },
}

impl Hub {
    /// An empty hub; `epoch` tells this sidecar's events from those of the one before.
    pub(super) fn new(epoch: String, most: NonZeroUsize) -> Self {
        Self {
            epoch,
            seq: 0,
            history: VecDeque::new(),
            bytes: 0,
            most: most.get(),
            services: BTreeMap::new(),
            tiers: BTreeMap::new(),
            runs: BTreeMap::new(),
            finished: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            metrics: Metrics::default(),
            looks: 0,
            head: watch::Sender::new(0),
            #[cfg(feature = "otlp")]
            traces: None,
        }
    }

    /// Resolves with each new event.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Keeps another number of events from now on.
    pub(super) fn keep(&mut self, most: NonZeroUsize) {
        self.most = most.get();
        self.shorten();
    }

    /// The services that a reader can still be told of: something of them is kept, or on its way here.
    pub(super) fn known(&self) -> BTreeSet<Arc<str>> {
        let kept = self.history.iter().filter_map(|kept| kept.service.as_ref());
        let runs = self.runs.values().map(|run| &run.service);
        kept.chain(runs).chain(self.tiers.keys()).cloned().collect()
    }

    /// No run is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.runs.values().all(|run| run.finished.is_some())
    }

    /// The public name of a run.
    pub(super) fn run_id(&self, number: RunNumber) -> String {
        format!("{}-{}", self.epoch, number.0)
    }

    /// The public name of the event `seq`.
    pub(super) fn event_id(&self, seq: u64) -> String {
        format!("{}-{seq}", self.epoch)
    }

    /// The public name of the newest event.
    pub(super) fn newest_event_id(&self) -> String {
        self.event_id(self.seq)
    }

    fn number(&self, id: &str) -> Option<u64> {
        let (epoch, number) = id.rsplit_once('-')?;
        if epoch == self.epoch { number.parse().ok() } else { None }
    }

    /// Takes in what happened.
    pub(super) fn take(&mut self, notice: Notice) {
        let Notice { at, service, what } = notice;
        match what {
            What::Run(number, command, body) => {
                if let Some(service) = &service {
                    self.run(at, service, number, command, body);
                }
            }
            What::Event(body) => drop(self.keep_event(at, service, None, &body)),
            What::Looked(began, body) => {
                let Some(service) = service else { return };
                self.looks += 1;
                let last = self.services.get(&service).and_then(|state| state.looked.as_ref());
                let event = match last.filter(|last| body.is_that_of(&last.event)) {
                    Some(last) => Arc::clone(&last.event),
                    None => self.keep_event(at, Some(Arc::clone(&service)), None, &body),
                };
                let verdict = body.verdict().unwrap_or(UNKNOWN);
                self.services.entry(service).or_default().looked =
                    Some(LastLook { began, at, verdict, event });
            }
            What::Tier(tier, shortfall) => {
                if let Some(service) = service {
                    self.tiers.insert(service, (tier, shortfall));
                }
            }
            What::Forgotten => {
                if let Some(service) = service {
                    self.services.remove(&service);
                    self.tiers.remove(&service);
                    self.keep_event(at, Some(service), None, &Body::ServiceRemoved {});
                }
            }
        }
    }

    /// So many notices were lost between an event loop and here.
    pub(super) fn overrun(&mut self, count: u64) {
        self.metrics.overrun += count;
        self.keep_event(now(), None, None, &Body::Lagged { count: Some(count) });
    }

    /// A client was told of this run, whose first event may still be on its way.
    pub(super) fn begun(&mut self, number: RunNumber, service: &Arc<str>, kind: Kind, place: Option<Place>) {
        let command = kind.name();
        let is_new = || self.forgotten.get(command).is_none_or(|forgotten| number > *forgotten);
        if !self.runs.contains_key(&number) && !is_new() {
            // It has ended, and so many after it that it is kept no more.
            return;
        }
        let run = self.runs.entry(number).or_insert_with(|| RunState::new(service, command));
        run.begun = Some((kind, place));
    }

    /// A run that ends holders of this service, was asked for in another network namespace than this, and has not
    /// ended.
    pub(super) fn under_way_elsewhere(
        &self,
        service: &str,
        place: Option<&Place>,
    ) -> Option<(RunNumber, Kind)> {
        let unfinished =
            self.runs.iter().filter(|(_, run)| &*run.service == service && run.finished.is_none());
        unfinished
            .filter_map(|(number, run)| run.begun.as_ref().map(|(kind, of)| (*number, *kind, of.as_ref())))
            .find(|(_, kind, of)| *kind != Kind::Gate && *of != place)
            .map(|(number, kind, _)| (number, kind))
    }

    fn run(&mut self, at: Instant, service: &Arc<str>, number: RunNumber, command: &'static str, body: Body) {
        let json = self.keep_event(at, Some(Arc::clone(service)), Some((number, command)), &body);
        #[cfg(feature = "otlp")]
        let id = self.run_id(number);
        let run = self.runs.entry(number).or_insert_with(|| RunState::new(service, command));
        let last = matches!(body, Body::RunFinished { .. });
        if run.events.len() < RUN_EVENTS || last {
            run.events.push(json);
        } else {
            run.left_out += 1;
        }
        let restart = command == "restart";
        let state = self.services.entry(Arc::clone(service)).or_default();
        // What did not fit into the queue may come after the end.
        let over = run.finished.is_some();
        if over {
            return;
        }
        if restart && !last {
            state.restart = Some(number);
        }
        if last {
            if restart {
                state.restart = state.restart.filter(|running| *running != number);
                state.last_restart = Some(number);
            }
            run.finished = Some(body);
            #[cfg(feature = "otlp")]
            if let Some(traces) = &self.traces {
                traces.take(id, service, command, run.events.clone());
            }
            let finished = self.finished.entry(command).or_default();
            finished.push_back(number);
            if finished.len() > FINISHED_RUNS
                && let Some(oldest) = finished.pop_front()
            {
                self.runs.remove(&oldest);
                let forgotten = self.forgotten.entry(command).or_insert(oldest);
                *forgotten = (*forgotten).max(oldest);
            }
        }
    }

    fn keep_event(
        &mut self,
        at: Instant,
        service: Option<Arc<str>>,
        run: Option<(RunNumber, &'static str)>,
        body: &Body,
    ) -> Arc<str> {
        self.seq += 1;
        let counted = run.map(|(number, command)| (number.0, command));
        self.metrics.count(service.as_ref(), counted, at.as_nanos(), body);
        let run = run.map(|(number, _)| self.run_id(number));
        let json: Arc<str> = Event::new(self.seq, at, service.as_deref(), run.as_deref(), body).text().into();
        self.bytes += json.len();
        self.history.push_back(Kept { seq: self.seq, service, kind: body.kind(), json: Arc::clone(&json) });
        self.shorten();
        self.head.send_replace(self.seq);
        json
    }

    fn shorten(&mut self) {
        while self.history.len() > self.most || (self.bytes > MOST_BYTES && self.history.len() > 1) {
            let Some(oldest) = self.history.pop_front() else { return };
            self.bytes -= oldest.json.len();
        }
    }

    /// Where a reader is who says that it has everything up to the event `id`.
    pub(super) fn cursor(&self, id: Option<&str>) -> Cursor {
        let Some(id) = id else { return Cursor::Fresh { missed: None } };
        match self.number(id) {
            Some(seq) if seq <= self.seq => Cursor::After(seq),
            _ => Cursor::Fresh { missed: Some(None) },
        }
    }

    /// What a reader gets next: at most `most` events, and where it is then.
    pub(super) fn read(
        &mut self,
        cursor: &Cursor,
        most: usize,
        may_see: impl Fn(&str) -> bool,
    ) -> (Vec<Kept>, Cursor) {
        let after = match cursor {
            Cursor::Fresh { missed } => return (self.fresh(*missed, may_see), Cursor::After(self.seq)),
            Cursor::After(seq) => *seq,
        };
        let oldest = self.history.front().map_or(self.seq + 1, |kept| kept.seq);
        if after + 1 < oldest {
            let missed = self.seq - after;
            self.metrics.lagged += missed;
            return (self.fresh(Some(Some(missed)), may_see), Cursor::After(self.seq));
        }
        // Sequence numbers have no gaps, so the place is known.
        let skip = usize::try_from(after + 1 - oldest).unwrap_or(usize::MAX);
        let mut last = after;
        let mut events = Vec::new();
        for kept in self.history.iter().skip(skip).take(most) {
            last = kept.seq;
            if kept.service.as_deref().is_none_or(&may_see) {
                events.push(kept.clone());
            }
        }
        (events, Cursor::After(last))
    }

    /// What begins a stream, or goes on after a gap.
    fn fresh(&self, missed: Option<Option<u64>>, may_see: impl Fn(&str) -> bool) -> Vec<Kept> {
        let seq = self.seq;
        let lagged = missed.map(|count| {
            let body = Body::Lagged { count };
            let json = Event::new(seq, now(), None, None, &body).text().into();
            Kept { seq, service: None, kind: body.kind(), json }
        });
        let snapshots = self.services.iter().filter(|(name, _)| may_see(name)).filter_map(|(name, state)| {
            let last = state.looked.as_ref()?;
            let json = Event::told_again(&last.event, seq, last.at, name).into();
            Some(Kept { seq, service: Some(Arc::clone(name)), kind: SNAPSHOT, json })
        });
        lagged.into_iter().chain(snapshots).collect()
    }

    /// A service in short.
    pub(super) fn summary(&self, name: &str, profile: Profile) -> ServiceSummary {
        let state = self.services.get(name);
        let looked = state.and_then(|state| state.looked.as_ref());
        let tier = self.tiers.get(name);
        let run = |number: RunNumber| self.run_id(number);
        ServiceSummary {
            name: name.to_owned(),
            verdict: self.verdict(name).to_owned(),
            tier: tier.map_or("poll", |(tier, _)| tier).to_owned(),
            shortfall: tier.and_then(|(_, shortfall)| shortfall.as_deref()).map(str::to_owned),
            looked_mono_ns: looked.map(|last| last.began.as_nanos()),
            endpoints: profile.endpoints,
            netns: profile.netns,
            can_restart: profile.can_restart,
            unit: profile.unit,
            run: state.and_then(|state| state.restart).map(run),
            last_run: state.and_then(|state| state.last_restart).map(run),
        }
    }

    fn verdict(&self, name: &str) -> &'static str {
        let looked = self.services.get(name).and_then(|state| state.looked.as_ref());
        looked.map_or(UNKNOWN, |last| last.verdict)
    }

    /// A service with what the last look found.
    pub(super) fn service(&self, name: &str, profile: Profile) -> ServiceDocument {
        let looked = self.services.get(name).and_then(|state| state.looked.as_ref());
        ServiceDocument {
            summary: self.summary(name, profile),
            snapshot: looked.and_then(|last| Body::in_event(&last.event)),
        }
    }

    /// A run, unless it is unknown or may not be seen.
    pub(super) fn run_document(&self, id: &str, may_see: impl Fn(&str) -> bool) -> Option<RunDocument> {
        let run = self.runs.get(&RunNumber(self.number(id)?)).filter(|run| may_see(&run.service))?;
        let mut document = RunDocument {
            run: id.to_owned(),
            service: run.service.to_string(),
            command: run.command.to_owned(),
            state: "running".to_owned(),
            outcome: None,
            exit_code: None,
            detail: None,
            took_us: None,
            // It was made from a value a moment ago.
            events: run.events.iter().filter_map(|json| serde_json::from_str::<Value>(json).ok()).collect(),
            events_left_out: run.left_out,
        };
        if let Some(Body::RunFinished { outcome, exit_code, detail, took_us, .. }) = &run.finished {
            "finished".clone_into(&mut document.state);
            document.outcome = Some((*outcome).to_owned());
            document.exit_code = Some(*exit_code);
            document.detail.clone_from(detail);
            document.took_us = Some(*took_us);
        }
        Some(document)
    }

    /// The text of `GET /metrics`.
    pub(super) fn metrics_text(&self, names: &[Arc<str>], clients: usize, sees_all: bool) -> String {
        let gauges: Vec<ServiceGauge<'_>> = names
            .iter()
            .map(|name| ServiceGauge {
                name,
                verdict: self.verdict(name),
                tier: self.tiers.get(name).map_or("poll", |(tier, _)| tier),
            })
            .collect();
        self.metrics.text(&gauges, clients, sees_all)
    }

    /// The lowest tier of all services.
    pub(super) fn lowest_tier(&self) -> &'static str {
        let has = |wanted: &str| self.tiers.values().any(|(tier, _)| *tier == wanted);
        ["poll", "netlink"].into_iter().find(|tier| has(tier)).unwrap_or(if has("ebpf") {
            "ebpf"
        } else {
            "poll"
        })
    }
}
