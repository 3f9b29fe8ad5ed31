//! Runs as traces, posted to a collector by OTLP over HTTP.
//!
//! A thread of its own makes the spans and posts them. Nobody waits for it: a run that does not fit
//! into its queue is counted and left out, and what a collector does not take is not tried again.

mod post;
mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, RetryPolicy, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{RandomIdGenerator, SpanExporter as _};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use self::post::Post;
use super::config::OtlpConfig;
use super::serve::SidecarError;

/// Runs that wait for being exported: while a collector hangs, no more than these are kept.
const WAITING: usize = 256;

/// Runs that are posted together.
const TOGETHER: usize = 64;

/// How long a collector may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long what waits at the end of the sidecar may take.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// A run that has ended.
#[derive(Debug)]
struct Ended {
    id: String,
    service: Arc<str>,
    command: &'static str,
    /// Its events, as they were sent, the end last.
    events: Vec<Arc<str>>,
}

/// Takes runs that have ended. When it is dropped, those that wait are exported still.
#[derive(Debug)]
pub(super) struct Exporter {
    runs: mpsc::Sender<Ended>,
    left_out: Arc<AtomicU64>,
}

impl Exporter {
    /// Never waits: what does not fit is counted.
    pub(super) fn take(&self, id: String, service: &Arc<str>, command: &'static str, events: Vec<Arc<str>>) {
        let run = Ended { id, service: Arc::clone(service), command, events };
        if self.runs.try_send(run).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Starts the thread; the receiver resolves at its end.
pub(super) fn start(config: &OtlpConfig) -> Result<(Exporter, oneshot::Receiver<()>), SidecarError> {
    let post = Arc::new(Post::new(ANSWER));
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_shared_http_client(Arc::clone(&post) as _)
        .with_endpoint(&config.url)
        .with_protocol(Protocol::HttpJson)
        .with_timeout(ANSWER)
        .with_retry_policy(RetryPolicy::disabled())
        .build()
        .map_err(|error| SidecarError::Otlp(error.to_string()))?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    exporter
        .set_resource(&Resource::builder().with_service_name("portguard").with_attribute(version).build());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SidecarError::Thread)?;
    let (runs, mut inbox) = mpsc::channel(WAITING);
    let (ended, exported) = oneshot::channel();
    let left_out = Arc::new(AtomicU64::new(0));
    let mut trouble = Trouble { url: config.url.clone(), left_out: Arc::clone(&left_out), begun: false };
    let work = async move {
        let ids = RandomIdGenerator::default();
        let mut together = Vec::new();
        while inbox.recv_many(&mut together, TOGETHER).await > 0 {
            let runs = together.len();
            let batch = together.drain(..).flat_map(|run| spans::of_run(&run, &ids)).collect();
            match exporter.export(batch).await {
                // Else it has not caught up yet.
                Ok(()) if inbox.is_empty() => trouble.over(),
                Ok(()) => {}
                Err(error) => trouble.met(runs, &post.why().unwrap_or_else(|| error.to_string())),
            }
        }
        // Whoever waited for it may have gone.
        let _gone = ended.send(());
    };
    let body = move || runtime.block_on(work);
    thread::Builder::new().name("otlp".to_owned()).spawn(body).map_err(SidecarError::Thread)?;
    Ok((Exporter { runs, left_out }, exported))
}

/// A collector that is away for a day is told of once, and once when it is back.
struct Trouble {
    url: String,
    left_out: Arc<AtomicU64>,
    begun: bool,
}

impl Trouble {
    fn met(&mut self, runs: usize, why: &str) {
        self.left_out.fetch_add(u64::try_from(runs).unwrap_or(u64::MAX), Ordering::Relaxed);
        if !std::mem::replace(&mut self.begun, true) {
            warn!(url = self.url, why, "runs are not exported as traces until the collector takes them");
        }
    }

    fn over(&mut self) {
        self.begun = false;
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            warn!(url = self.url, left_out, "runs are exported as traces again; some were left out");
        }
    }
}
