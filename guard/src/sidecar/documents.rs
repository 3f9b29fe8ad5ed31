//! What is answered, as JSON: written by the sidecar, read by its client.

use std::borrow::Cow;
use std::net::IpAddr;

use guard_core::model::{Manager, UnitName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::report::Body;

/// `GET /v1/services`
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ServiceList {
    pub(crate) services: Vec<ServiceSummary>,
}

/// One service, in short.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ServiceSummary {
    pub(crate) name: String,
    /// `free`, `busy` or `unknown`, as of the last look.
    pub(crate) verdict: String,
    /// Where facts come from.
    pub(crate) tier: String,
    /// Why the tier is not a better one.
    pub(crate) shortfall: Option<String>,
    /// `CLOCK_MONOTONIC` of when the last look began; `null` before the first.
    pub(crate) looked_mono_ns: Option<u64>,
    /// What must be bindable, all of it at once.
    pub(crate) endpoints: Vec<EndpointDocument>,
    /// The inode of its network namespace; `null` when that is not the sidecar's own.
    pub(crate) netns: Option<u64>,
    /// The configuration says how it is started.
    pub(crate) can_restart: bool,
    /// The unit by whose manager it is stopped and started; `null` when it is none.
    pub(crate) unit: Option<UnitDocument>,
    /// The restart that is under way.
    pub(crate) run: Option<String>,
    /// The last restart that ended.
    pub(crate) last_run: Option<String>,
}

/// A systemd unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct UnitDocument {
    pub(crate) name: String,
    /// `system`, or the number of the user whose manager it is.
    pub(crate) manager: String,
}

impl UnitDocument {
    pub(crate) fn new(manager: Manager, name: &UnitName) -> Self {
        let manager = match manager {
            Manager::System => "system".to_owned(),
            Manager::User(uid) => uid.to_string(),
        };
        Self { name: name.to_string(), manager }
    }
}

/// An address and a port, and how the service binds them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct EndpointDocument {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) v6only: bool,
    pub(crate) reuse_address: bool,
    /// The interface of a link-local address, by name or number.
    pub(crate) interface: Option<String>,
}

/// `GET /v1/services/{name}`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ServiceDocument {
    #[serde(flatten)]
    pub(crate) summary: ServiceSummary,
    /// What the last look found: the fields of a `snapshot` event.
    #[schemars(with = "Option<Body>")]
    pub(crate) snapshot: Option<Value>,
}

/// `POST /v1/services/{name}/restart` and `POST /v1/services/{name}/free`
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct RunAccepted {
    pub(crate) service: String,
    /// The run, to be asked for under `/v1/runs/` and found in the events.
    pub(crate) run: String,
    /// It was under way already.
    pub(crate) joined: bool,
    /// The last event before the request: with it as `Last-Event-ID`, the stream tells everything that follows from it.
    #[serde(default)]
    pub(crate) after: String,
}

/// `GET /v1/runs/{id}`
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct RunDocument {
    pub(crate) run: String,
    pub(crate) service: String,
    /// `restart`, `free` or `gate`.
    pub(crate) command: String,
    /// `running` or `finished`.
    pub(crate) state: String,
    /// As in `run_finished`; `null` while it runs.
    pub(crate) outcome: Option<String>,
    /// As the commands would exit; `null` while it runs.
    pub(crate) exit_code: Option<u8>,
    pub(crate) detail: Option<String>,
    pub(crate) took_us: Option<f64>,
    /// Its events so far, as they were sent.
    pub(crate) events: Vec<Value>,
    /// How many more there were.
    pub(crate) events_left_out: u64,
}

/// `GET /v1/gate/{name}`, when it opened.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GateDocument {
    pub(crate) service: String,
    pub(crate) run: String,
    /// Always `true`: anything else is an error.
    pub(crate) open: bool,
    /// When the bind that succeeded began, on `CLOCK_MONOTONIC`.
    pub(crate) probed_mono_ns: u64,
    /// From the kernel's last event about the release to the opening.
    pub(crate) release_latency_us: Option<f64>,
}

/// `GET /healthz`
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Health {
    /// `ok`, or `degraded` when an event loop has ended.
    pub(crate) status: String,
    pub(crate) version: String,
    pub(crate) tier: String,
    pub(crate) services: usize,
}

/// Any answer that is no success.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Problem {
    /// A stable word.
    pub(crate) error: Cow<'static, str>,
    /// A sentence.
    pub(crate) message: String,
}
