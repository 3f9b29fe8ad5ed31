//! The event loops: one thread for each network namespace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use super::config::{ObserverConfig, Restart, ServiceConfig};
use super::hub::{Notice, What};
use super::serve::SidecarError;
use super::teller::Teller;
use crate::runtime::engine::{Engine, Request, Service, Sources, Start, UnitStart};
use crate::runtime::spelling::Place;
use crate::runtime::units::Units;
use crate::runtime::{daemon, netns, now};

/// Requests that wait for an event loop.
const REQUESTS: usize = 1024;

/// Notices that wait for the hub: an event loop never does.
pub(super) const NOTICES: usize = 16_384;

/// All event loops.
#[derive(Debug)]
pub(super) struct Engines {
    observer: ObserverConfig,
    by_netns: BTreeMap<Option<Place>, mpsc::Sender<Request>>,
    /// Of network namespaces that no service is in any more: they end with their last runs, and
    /// leave them when this goes.
    retired: Vec<mpsc::Sender<Request>>,
    by_service: BTreeMap<Arc<str>, Option<Place>>,
    numbers: Arc<AtomicU64>,
    units: Units,
    notices: mpsc::Sender<Notice>,
    ends: mpsc::UnboundedSender<Notice>,
    overrun: Arc<AtomicU64>,
    broken: mpsc::Sender<()>,
}

/// What comes out of the event loops.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) notices: mpsc::Receiver<Notice>,
    /// Ends of runs that did not fit there, and of services: none shall seem to go on for ever.
    pub(super) ends: mpsc::UnboundedReceiver<Notice>,
    /// Notices that did not fit.
    pub(super) overrun: Arc<AtomicU64>,
    /// Resolves when an event loop has broken down.
    pub(super) broken: mpsc::Receiver<()>,
}

impl Engines {
    /// No event loop yet.
    pub(super) fn new(observer: ObserverConfig, units: Units) -> (Self, Outlet) {
        let (notices, inbox) = mpsc::channel(NOTICES);
        let (ends, late) = mpsc::unbounded_channel();
        let (broken, breakdowns) = mpsc::channel(1);
        let overrun = Arc::new(AtomicU64::new(0));
        let engines = Self {
            observer,
            by_netns: BTreeMap::new(),
            retired: Vec::new(),
            by_service: BTreeMap::new(),
            numbers: Arc::new(AtomicU64::new(1)),
            units,
            notices,
            ends,
            overrun: Arc::clone(&overrun),
            broken,
        };
        (engines, Outlet { notices: inbox, ends: late, overrun, broken: breakdowns })
    }

    /// Begins with what the configuration names.
    pub(super) async fn open(&mut self, services: Vec<ServiceConfig>) -> Result<(), SidecarError> {
        let places = places(&services);
        for (place, services) in by_place(services) {
            let requests = self.begin(place.clone(), services).await?;
            self.by_netns.insert(place, requests);
        }
        self.learn(places);
        Ok(())
    }

    /// Guards what the configuration names, from now on. What it named before
    /// goes on without a gap. When anything of it cannot be had, nothing has changed.
    pub(super) async fn configure(&mut self, services: Vec<ServiceConfig>) -> Result<(), SidecarError> {
        let places = places(&services);
        let mut wanted = by_place(services);
        if let Some(place) = wanted.keys().find(|place| !self.by_netns.contains_key(*place)) {
            let place = place.as_ref().map_or_else(|| "portguard's own".into(), |place| place.0.clone());
            return Err(SidecarError::NewNetns(place));
        }
        for (place, requests) in &self.by_netns {
            let services = wanted.remove(place).unwrap_or_default();
            let (reply, answer) = oneshot::channel();
            let services = Box::new(move || resolve(&services));
            let sent = requests.send(Request::Prepare { services, reply }).await;
            match (sent, answer.await) {
                (Ok(()), Ok(Ok(()))) => {}
                (Ok(()), Ok(Err(why))) => return Err(SidecarError::Services(why)),
                _ => return Err(SidecarError::LoopEnded),
            }
        }
        for requests in self.by_netns.values() {
            let (reply, answer) = oneshot::channel();
            if requests.send(Request::Commit { reply }).await.is_err() || answer.await.is_err() {
                return Err(SidecarError::LoopEnded);
            }
        }
        self.retire(|place| !places.values().any(|wanted| wanted == place)).await;
        self.learn(places);
        Ok(())
    }

    /// Asks these event loops nothing any more. What they began goes on: a restart that ended half
    /// way would leave its service stopped.
    async fn retire(&mut self, is_over: impl Fn(&Option<Place>) -> bool) {
        self.retired.retain(|requests| !requests.is_closed());
        for (_, requests) in self.by_netns.extract_if(.., |place, _| is_over(place)) {
            // One that has ended by itself has no runs.
            if requests.send(Request::Retire).await.is_ok() {
                self.retired.push(requests);
            }
        }
    }

    /// Knows where each service is, and tells which ones there are no more.
    fn learn(&mut self, places: BTreeMap<Arc<str>, Option<Place>>) {
        let before = std::mem::replace(&mut self.by_service, places);
        let gone = before.into_keys().filter(|name| !self.by_service.contains_key(name));
        for service in gone {
            let notice = Notice { at: now(), service: Some(service), what: What::Forgotten };
            // Nobody listens any more: the sidecar is on its way out.
            let _gone = self.ends.send(notice);
        }
    }

    /// Asks every event loop to tell anew how everything is.
    pub(super) fn refresh(&self) {
        for requests in self.by_netns.values() {
            // One that has too much to do tells it with the next loss.
            let _busy = requests.try_send(Request::Refresh);
        }
    }

    /// Where requests about this service go.
    pub(super) fn of(&self, service: &str) -> Option<&mpsc::Sender<Request>> {
        self.by_netns.get(self.by_service.get(service)?)
    }

    /// The network namespace that this service is in.
    pub(super) fn place_of(&self, service: &str) -> Option<Place> {
        self.by_service.get(service).cloned().flatten()
    }

    /// Asks nothing any more: every event loop ends what it does, and itself.
    pub(super) fn close(&mut self) {
        self.by_netns.clear();
        self.retired.clear();
        self.by_service.clear();
        // Its copies are the loops' own: the hub ends with the last of them.
        self.notices = mpsc::channel(1).0;
        self.ends = mpsc::unbounded_channel().0;
    }

    /// Every event loop still serves.
    pub(super) fn all_alive(&self) -> bool {
        self.by_netns.values().all(|requests| !requests.is_closed())
    }

    async fn begin(
        &self,
        place: Option<Place>,
        services: Vec<ServiceConfig>,
    ) -> Result<mpsc::Sender<Request>, SidecarError> {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let (ready, answer) = oneshot::channel();
        let sources = Sources {
            choice: self.observer.tier,
            require: self.observer.require,
            poll_interval: self.observer.poll_interval,
            event_buffer: self.observer.event_buffer,
        };
        let numbers = Arc::clone(&self.numbers);
        let names: Vec<Arc<str>> = services.iter().map(|service| Arc::clone(&service.name)).collect();
        let (notices, ends) = (self.notices.clone(), self.ends.clone());
        let teller = Teller { names, notices, ends, overrun: Arc::clone(&self.overrun) };
        let units = self.units.clone();
        let setup = Setup { sources, inbox, numbers, units, teller };
        let broken = self.broken.clone();
        let body = move || {
            let outcome = open_and_serve(place.as_ref(), services, setup, ready);
            if let Err(error) = outcome {
                error!(%error, "an event loop has ended");
                // One such word is enough.
                let _told = broken.try_send(());
            }
        };
        thread::Builder::new().name("engine".to_owned()).spawn(body).map_err(SidecarError::Thread)?;
        answer.await.unwrap_or(Err(SidecarError::LoopEnded))?;
        Ok(requests)
    }
}

/// What an event loop begins with.
struct Setup {
    sources: Sources,
    inbox: mpsc::Receiver<Request>,
    numbers: Arc<AtomicU64>,
    units: Units,
    teller: Teller,
}

fn open_and_serve(
    place: Option<&Place>,
    services: Vec<ServiceConfig>,
    setup: Setup,
    ready: oneshot::Sender<Result<(), SidecarError>>,
) -> Result<(), SidecarError> {
    let open = async {
        let resolved = resolve(&services).map_err(SidecarError::Services)?;
        // A sidecar lives for weeks, and the configuration is needed no more.
        drop(services);
        let settled = || {
            if let Err(error) = daemon::give_up_capabilities() {
                warn!(%error, "keeping capabilities that are not needed");
            }
        };
        let Setup { sources, inbox, numbers, units, teller } = setup;
        Ok(Engine::open(sources, resolved, inbox, numbers, units, teller, settled).await?)
    };
    // Before the runtime: what it starts inherits the namespace.
    let runtime = place
        .map_or(Ok(()), |place| netns::enter(&place.0).map(drop))
        .map_err(SidecarError::from)
        .and_then(|()| {
            // One thread: the path from an event to the open gate crosses no other.
            tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(SidecarError::Thread)
        });
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            // Nobody waits any more: the sidecar is on its way out.
            let _gone = ready.send(Err(error));
            return Ok(());
        }
    };
    runtime.block_on(async {
        match open.await {
            Ok(engine) => {
                let _gone = ready.send(Ok(()));
                Ok(engine.serve().await?)
            }
            Err(error) => {
                let _gone = ready.send(Err(error));
                Ok(())
            }
        }
    })
}

/// The services of each network namespace.
fn by_place(services: Vec<ServiceConfig>) -> BTreeMap<Option<Place>, Vec<ServiceConfig>> {
    let mut places: BTreeMap<Option<Place>, Vec<ServiceConfig>> = BTreeMap::new();
    for service in services {
        places.entry(service.netns.clone()).or_default().push(service);
    }
    places
}

/// Where each service is.
fn places(services: &[ServiceConfig]) -> BTreeMap<Arc<str>, Option<Place>> {
    services.iter().map(|service| (Arc::clone(&service.name), service.netns.clone())).collect()
}

/// What the engine guards, in the calling thread's network namespace.
fn resolve(services: &[ServiceConfig]) -> Result<Vec<Service>, String> {
    services.iter().map(service).collect()
}

fn service(config: &ServiceConfig) -> Result<Service, String> {
    let recognise = config.recognise.clone();
    let start = config.restart.clone().map(|restart| match restart {
        Restart::Command(argv) => Start::Command(argv.into_iter().map(Into::into).collect()),
        Restart::Unit { manager, name, already_running } => {
            Start::Unit(UnitStart { manager, name, already_running })
        }
    });
    Ok(Service {
        name: Arc::clone(&config.name),
        endpoints: config.bind_specs().map_err(|error| format!("service {}: {error}", config.name))?,
        rules: Arc::new(move || recognise.rules()),
        drain: config.budget.drain,
        timeout: config.budget.timeout,
        port_only: config.port_only,
        evict: config.evict,
        start,
        start_budget: config.budget.start,
    })
}
