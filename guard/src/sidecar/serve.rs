//! The life of the sidecar: start, reload, end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::access::Access;
use super::config::{ApiConfig, Config, ConfigError, MODE, ObserverConfig, OtlpConfig};
use super::engines::{Engines, NOTICES, Outlet};
use super::hub::{Hub, Notice};
use super::server::{self, Shared};
use crate::runtime::daemon::{self, Notify, SocketFile, UnixSocketError};
use crate::runtime::netns::NetnsError;
use crate::runtime::units::Units;
use crate::runtime::{RuntimeError, now, wall_clock};

/// So many looks leave behind what is worth being given back.
const MANY_LOOKS: u64 = 64;

/// Where nothing was told for so long after the start, what was under way is over.
const SETTLING: Duration = Duration::from_secs(2);

/// The same later: in the poll tier many looks never end.
const SETTLING_LATER: Duration = Duration::from_secs(8);

/// How long the event loops may take to tell of their end.
const FAREWELL: Duration = Duration::from_secs(2);

/// The sidecar cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The sources of facts cannot be had.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A network namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The services cannot be guarded as they are configured, in words.
    #[error("{0}")]
    Services(String),
    /// Nobody could ask.
    #[error(transparent)]
    Socket(#[from] UnixSocketError),
    /// A thread or its event loop cannot be had.
    #[error("cannot start an event loop: {0}")]
    Thread(#[source] std::io::Error),
    /// The sidecar's own descriptors failed.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration names a network namespace that the sidecar was not started for.
    #[error(
        "a reload cannot add the network namespace {}: the right to enter it (CAP_SYS_ADMIN) was given up after the \
         start; restart the sidecar",
        .0.display()
    )]
    NewNetns(PathBuf),
    /// Runs cannot be exported.
    #[cfg(feature = "otlp")]
    #[error(
        "cannot export runs as traces: {0}; see [otlp] in the configuration and the variables OTEL_EXPORTER_*"
    )]
    Otlp(String),
    /// An event loop has ended.
    #[error("an event loop has ended; see the log")]
    LoopEnded,
}

fn system(operation: &'static str) -> impl Fn(std::io::Error) -> SidecarError {
    move |source| SidecarError::System { operation, source }
}

/// Runs the sidecar until it is asked to stop. Needs a running tokio reactor
/// with timers.
///
/// # Errors
///
/// See [`SidecarError`].
pub async fn serve(path: &Path) -> Result<(), SidecarError> {
    let config = Config::load(path)?;
    if let Err(error) = daemon::raise_descriptor_limit() {
        warn!(%error, "keeping the soft limit on descriptors");
    }
    let manager = daemon::service_manager().map_err(system("find the service manager's socket"))?;
    let mut signals = Signals::new().map_err(system("handle signals"))?;
    let ApiConfig { socket, mode, group, clients, history } = config.api.clone();
    // Nobody is kept waiting at a socket that is not served: it comes before
    // the loading, and its backlog holds whoever comes early.
    let (listener, file) = daemon::listen(&socket, mode, group)?;
    if file.is_none() && (mode != MODE || group.is_some()) {
        warn!(
            "api.mode and api.group are not used: the service manager made the socket, see its .socket unit"
        );
    }
    let remove = Remove(file);
    let listener = UnixListener::from_std(listener).map_err(system("serve the socket"))?;
    // Its thread keeps what the others give up below.
    let units = Units::start().map_err(SidecarError::Thread)?;
    let access = Access::new(&config, daemon::own_user());
    let Config { observer, api, otlp, services } = config;
    let guarded = services.len();
    let (mut engines, outlet) = Engines::new(observer.clone(), units);
    engines.open(services).await?;
    if let Err(error) = daemon::give_up_capabilities() {
        warn!(%error, "keeping capabilities that are not needed");
    }
    let shared = Arc::new(Shared::new(Hub::new(epoch(), history), access, engines, clients.get()));
    let (mut broken, hub) = {
        let Outlet { notices, ends, overrun, broken } = outlet;
        (broken, tokio::spawn(feed(Arc::clone(&shared), notices, ends, overrun)))
    };
    #[cfg(feature = "otlp")]
    let exported = otlp.as_ref().map(super::otlp::start).transpose()?.map(|(exporter, exported)| {
        shared.hub().traces = Some(exporter);
        exported
    });
    let started = (observer, api, otlp);
    let path = path.to_owned();
    let mut sidecar = Sidecar { path, guarded, started, shared, manager };
    sidecar.tell(&format!("READY=1\nSTATUS={}", sidecar.status()));
    info!(services = sidecar.guarded, "serving");
    let watchdog = daemon::watchdog_interval();
    let mut feeding = watchdog.map(tokio::time::interval);
    let mut refused = false;
    loop {
        tokio::select! {
            stream = accept(&listener, &sidecar.shared, &mut refused) => server::take(&sidecar.shared, stream),
            _ = signals.reload.recv() => sidecar.reload().await,
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            () = tick(&mut feeding) => sidecar.feed_watchdog().await,
            Some(()) = broken.recv() => return Err(SidecarError::LoopEnded),
        }
    }
    sidecar.tell("STOPPING=1");
    info!("stopping");
    drop(remove);
    // The loops end when nobody can ask them any more, and tell what they leave.
    sidecar.shared.engines.write().await.close();
    let _late = tokio::time::timeout(FAREWELL, hub).await;
    #[cfg(feature = "otlp")]
    if let Some(exported) = exported {
        drop(sidecar.shared.hub().traces.take());
        let _later = tokio::time::timeout(super::otlp::FAREWELL, exported).await;
    }
    Ok(())
}

/// How long nobody is accepted when that failed and no client goes.
const PAUSE: Duration = Duration::from_millis(250);

/// The next client. Cancel safe. Out of descriptors, it waits until a client has
/// gone: whoever waits meanwhile is in the socket's queue, which stays readable.
async fn accept(listener: &UnixListener, shared: &Shared, refused: &mut bool) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                *refused = false;
                return stream;
            }
            Err(error) => {
                if !std::mem::replace(refused, true) {
                    warn!(%error, "cannot accept connections; trying again when a client has gone");
                }
                let _nobody_went = tokio::time::timeout(PAUSE, shared.a_client_goes()).await;
            }
        }
    }
}

/// What tells this sidecar's events from those of the one before.
fn epoch() -> String {
    let since = wall_clock(now()).duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", since.as_millis())
}

/// Takes what the event loops tell to the hub, until the last of them has ended.
async fn feed(
    shared: Arc<Shared>,
    mut notices: tokio::sync::mpsc::Receiver<Notice>,
    mut ends: tokio::sync::mpsc::UnboundedReceiver<Notice>,
    overrun: Arc<std::sync::atomic::AtomicU64>,
) {
    // The file was read, and BPF may have been loaded. Many looks follow upon a reload or a loss of events.
    let mut tidying = tokio::spawn(tidy_up(Arc::clone(&shared), SETTLING));
    let mut tidied = 0;
    // An end that did not fit comes after what was in the queue then, so after no more than a full one.
    let mut taken = 0;
    loop {
        let notice = tokio::select! {
            biased;
            Some(notice) = notices.recv(), if taken < NOTICES => {
                taken += 1;
                notice
            }
            Some(end) = ends.recv() => end,
            () = std::future::ready(()), if taken >= NOTICES => {
                taken = 0;
                continue;
            }
            else => return,
        };
        let lost = overrun.swap(0, Ordering::Relaxed);
        {
            let mut hub = shared.hub();
            if lost > 0 {
                hub.overrun(lost);
            }
            hub.take(notice);
            if hub.looks - tidied >= MANY_LOOKS && tidying.is_finished() {
                tidied = hub.looks;
                tidying = tokio::spawn(tidy_up(Arc::clone(&shared), SETTLING_LATER));
            }
        }
        if lost > 0 {
            shared.engines.read().await.refresh();
        }
    }
}

/// Gives the kernel back what nobody needs any more, once nothing was told for that long. While a run that the hub has
/// heard of is under way, its event loop is not to wait for the allocator.
async fn tidy_up(shared: Arc<Shared>, settling: Duration) {
    let mut news = shared.hub().news();
    loop {
        while let Ok(told) = tokio::time::timeout(settling, news.changed()).await {
            if told.is_err() {
                return;
            }
        }
        if shared.hub().is_quiet() {
            return daemon::give_back();
        }
        // The next moment that may be quiet is after the next event.
        if news.changed().await.is_err() {
            return;
        }
    }
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// The socket that this sidecar made goes with it.
struct Remove(Option<SocketFile>);

impl Drop for Remove {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(SocketFile::remove) {
            warn!(%error, "the socket stays behind; the next sidecar replaces it");
        }
    }
}

struct Signals {
    reload: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

struct Sidecar {
    path: PathBuf,
    /// How many services.
    guarded: usize,
    /// What was taken up at the start, and is not again.
    started: (ObserverConfig, ApiConfig, Option<OtlpConfig>),
    shared: Arc<Shared>,
    manager: Option<Notify>,
}

impl Sidecar {
    fn tell(&self, lines: &str) {
        if let Some(Err(error)) = self.manager.as_ref().map(|manager| manager.send(lines)) {
            warn!(%error, "the service manager was not told");
        }
    }

    fn status(&self) -> String {
        let count = self.guarded;
        let plural = if count == 1 { "" } else { "s" };
        format!("guards {count} service{plural}")
    }

    /// A loop that hangs does not answer, and then the watchdog is not fed.
    async fn feed_watchdog(&self) {
        if self.shared.engines.read().await.all_alive() {
            self.tell("WATCHDOG=1");
        }
    }

    /// Takes up the configuration again. When it cannot be used, the old one holds.
    async fn reload(&mut self) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now().as_nanos() / 1000));
        match self.try_reload().await {
            Ok(()) => {
                info!(services = self.guarded, "the configuration was taken up again");
                self.tell(&format!("READY=1\nSTATUS={}", self.status()));
            }
            Err(error) => {
                error!(%error, "the configuration was not taken up, the old one holds");
                self.tell(&format!(
                    "READY=1\nSTATUS={}; the new configuration is wrong: {error}",
                    self.status()
                ));
            }
        }
    }

    async fn try_reload(&mut self) -> Result<(), SidecarError> {
        let new = Config::load(&self.path)?;
        let (observer, api, otlp) = &self.started;
        let mut unheeded = unheeded((observer, api), (&new.observer, &new.api));
        if *otlp != new.otlp {
            unheeded.push("otlp.endpoint");
        }
        if !unheeded.is_empty() {
            let keys = unheeded.join(", ");
            warn!(keys, "changed in the configuration, and taken up only by a restart of the sidecar");
        }
        let access = Access::new(&new, daemon::own_user());
        let guarded = new.services.len();
        self.shared.engines.write().await.configure(new.services).await?;
        self.shared.set_access(access, new.api.clients.get());
        self.shared.hub().keep(new.api.history);
        self.guarded = guarded;
        Ok(())
    }
}

/// The keys that differ from what the sidecar was started with, and that a reload does not take up.
fn unheeded(
    (observer, api): (&ObserverConfig, &ApiConfig),
    (new_observer, new_api): (&ObserverConfig, &ApiConfig),
) -> Vec<&'static str> {
    [
        ("tier", observer.tier != new_observer.tier),
        ("require-tier", observer.require != new_observer.require),
        ("poll-interval", observer.poll_interval != new_observer.poll_interval),
        ("event-buffer", observer.event_buffer != new_observer.event_buffer),
        ("api.socket", api.socket != new_api.socket),
        ("api.mode", api.mode != new_api.mode),
        ("api.group", api.group != new_api.group),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reload_does_not_take_up_is_named() {
        let config = |head: &str| {
            Config::parse(&format!("{head}\n[service.web]\nendpoints = [80]\n")).expect("a configuration")
        };
        let old = config("");
        let named = |new: &Config| unheeded((&old.observer, &old.api), (&new.observer, &new.api));
        assert!(named(&old).is_empty());
        assert!(named(&config("[api]\nclients = 7\nhistory = 7")).is_empty(), "these are taken up");
        let new = config(
            "tier = \"poll\"\npoll-interval = \"7ms\"\nevent-buffer = \"4M\"\n[api]\nsocket = \"/x\"\nmode = \"0600\"\ngroup = 7",
        );
        assert_eq!(
            named(&new),
            ["tier", "poll-interval", "event-buffer", "api.socket", "api.mode", "api.group"]
        );
        assert_eq!(named(&config("require-tier = \"ebpf\"")), ["require-tier"]);
    }
}
