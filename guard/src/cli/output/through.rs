//! What a command says that goes through a sidecar.

use std::path::Path;
use std::time::Duration;

use guard_core::model::Instant;
use serde_json::{Value, json};

use super::Output;
use crate::report::{Exit, span};
use crate::runtime::now;

/// Which service of which sidecar, and since when.
pub(in crate::cli) struct Through {
    pub(in crate::cli) service: String,
    pub(in crate::cli) socket: String,
    pub(in crate::cli) tier: String,
    pub(in crate::cli) began: Instant,
}

impl Through {
    pub(in crate::cli) fn new(service: &str, socket: &Path, tier: &str) -> Self {
        Self {
            service: service.to_owned(),
            socket: socket.display().to_string(),
            tier: tier.to_owned(),
            began: now(),
        }
    }
}

impl Output {
    /// An event, for a program.
    pub(in crate::cli) fn relay(&mut self, through: &Through, at: Instant, event: Value) {
        if let Self::Json(json) = self {
            json.relay(at, &through.service, &through.socket, event);
        }
    }

    /// Lines, for a person.
    pub(in crate::cli) fn lines(&mut self, lines: impl IntoIterator<Item = String>) {
        if let Self::Human(human) = self {
            lines.into_iter().for_each(|line| human.line(&line));
        }
    }

    /// One line with its moment, for a person.
    pub(in crate::cli) fn moment(&mut self, at: Instant, text: &str) {
        if let Self::Human(human) = self {
            human.moment(at, text);
        }
    }

    /// The beginning, for a program.
    pub(in crate::cli) fn through_began(&mut self, through: &Through, command: &str, endpoints: Value) {
        let event = json!({ "type": "run_started", "command": command, "dry_run": false,
            "tier": through.tier, "endpoints": endpoints });
        self.relay(through, through.began, event);
    }

    /// The gate is open.
    pub(in crate::cli) fn through_opened(
        &mut self,
        through: &Through,
        endpoints: &str,
        specs: Value,
        probed: Instant,
        release_latency: Option<Duration>,
    ) {
        let waited = probed.since(through.began);
        let took = if probed <= through.began || waited < Duration::from_millis(1) {
            " already".to_owned()
        } else {
            format!(", after {}", span(waited))
        };
        let latency = release_latency
            .map(|latency| format!(", {} after the kernel released it", span(latency)))
            .unwrap_or_default();
        let tier = &through.tier;
        self.lines([format!("free: {endpoints} is bindable{took}{latency} ({tier} tier)")]);
        let event = json!({ "type": "gate_opened", "tier": tier,
            "proof": { "kind": "bind", "probed_mono_ns": probed.as_nanos(), "endpoints": specs },
            "release_latency_us": release_latency.map(|span| span.as_secs_f64() * 1e6) });
        self.relay(through, now(), event);
        self.through_ended(through, "opened", Exit::Done, None);
    }

    /// The end of the command, for a program.
    pub(in crate::cli) fn through_ended(
        &mut self,
        through: &Through,
        outcome: &str,
        exit: Exit,
        detail: Option<&str>,
    ) {
        let at = now();
        let event = json!({ "type": "run_finished", "outcome": outcome, "exit_code": exit.code(),
            "detail": detail, "took_us": at.since(through.began).as_secs_f64() * 1e6, "tier": through.tier });
        self.relay(through, at, event);
    }
}
