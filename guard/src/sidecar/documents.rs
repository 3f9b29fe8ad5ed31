//! What is answered, as JSON.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::report::Body;

/// `GET /v1/services`
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceList {
    pub(super) services: Vec<ServiceSummary>,
}

/// One service, in short.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceSummary {
    pub(super) name: String,
    /// `free`, `busy` or `unknown`, as of the last look.
    pub(super) verdict: String,
    /// Where facts come from.
    pub(super) tier: String,
    /// Why the tier is not a better one.
    pub(super) shortfall: Option<String>,
    /// `CLOCK_MONOTONIC` of the last look; `null` before the first.
    pub(super) looked_mono_ns: Option<u64>,
    /// The configuration says how it is started.
    pub(super) can_restart: bool,
    /// The restart that is under way.
    pub(super) run: Option<String>,
    /// The last restart that ended.
    pub(super) last_run: Option<String>,
}

/// `GET /v1/services/{name}`
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceDocument {
    #[serde(flatten)]
    pub(super) summary: ServiceSummary,
    /// What the last look found: the fields of a `snapshot` event.
    pub(super) snapshot: Option<Body>,
}

/// `POST /v1/services/{name}/restart`
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RestartAccepted {
    pub(super) service: String,
    /// The run, to be asked for under `/v1/runs/` and found in the events.
    pub(super) run: String,
    /// It was under way already.
    pub(super) joined: bool,
}

/// `GET /v1/runs/{id}`
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RunDocument {
    pub(super) run: String,
    pub(super) service: String,
    /// `restart` or `gate`.
    pub(super) command: String,
    /// `running` or `finished`.
    pub(super) state: String,
    /// As in `run_finished`; `null` while it runs.
    pub(super) outcome: Option<String>,
    /// As the commands would exit; `null` while it runs.
    pub(super) exit_code: Option<u8>,
    pub(super) detail: Option<String>,
    pub(super) took_us: Option<f64>,
    /// Its events so far, as they were sent.
    pub(super) events: Vec<Value>,
    /// How many more there were.
    pub(super) events_left_out: u64,
}

/// `GET /v1/gate/{name}`, when it opened.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GateDocument {
    pub(super) service: String,
    pub(super) run: String,
    /// Always `true`: anything else is an error.
    pub(super) open: bool,
    /// When the bind that succeeded began, on `CLOCK_MONOTONIC`.
    pub(super) probed_mono_ns: u64,
    /// From the kernel's last event about the release to the opening.
    pub(super) release_latency_us: Option<f64>,
}

/// `GET /healthz`
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Health {
    /// `ok`, or `degraded` when an event loop has ended.
    pub(super) status: String,
    pub(super) version: String,
    pub(super) tier: String,
    pub(super) services: usize,
}

/// Any answer that is no success.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Problem {
    /// A stable word.
    pub(super) error: &'static str,
    /// A sentence.
    pub(super) message: String,
}
