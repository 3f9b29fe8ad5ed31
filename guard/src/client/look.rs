//! What a look of the sidecar found, as `portguard status` shows it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use guard_core::model::{Port, Tgid};
use serde_json::Value;

use super::events::{Bind, Decision, Endpoint, Holder, Snapshot};
use super::words::{holder, judged, judgement, owner};
use crate::report::{Exit, and_more, printable, span};

/// More sockets than this are only counted.
const MOST_HOLDERS: usize = 12;

/// A snapshot, as it was sent and as it was understood.
#[derive(Debug)]
pub struct Look {
    /// The fields of a `snapshot` event.
    pub value: Value,
    snapshot: Snapshot,
}

impl Look {
    pub(super) fn new(value: Value) -> Option<Self> {
        let snapshot: Snapshot = serde_json::from_value(value.clone()).ok()?;
        Some(Self { value, snapshot })
    }

    /// How a command that only looks ends; `None` for a verdict that this version does not know.
    pub fn exit(&self) -> Option<Exit> {
        match self.snapshot.verdict.as_str() {
            "free" => Some(Exit::Done),
            "busy" => Some(Exit::StillBusy),
            "unknown" => Some(Exit::Unknown),
            _ => None,
        }
    }

    /// It is in use and nobody is seen there: whoever looks from here can say more.
    pub fn is_unexplained(&self) -> bool {
        self.snapshot.verdict == "unknown"
            || (self.snapshot.verdict == "busy" && self.snapshot.holders.is_empty())
    }

    /// Who has a socket in the way.
    pub fn owners(&self) -> impl Iterator<Item = Tgid> {
        self.snapshot.holders.iter().flat_map(|one| &one.owners.processes).map(|owner| Tgid(owner.pid))
    }

    /// The ports that were looked at.
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        self.snapshot.endpoints.iter().filter_map(|endpoint| Port::new(endpoint.port))
    }

    /// `127.0.0.1:18789 and [::1]:18789`
    pub fn endpoints(&self) -> String {
        let endpoints: Vec<String> = self.snapshot.endpoints.iter().map(place).collect();
        endpoints.join(" and ")
    }

    /// Verdicts, holders, owners, and what the service's restart would do about them.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for endpoint in &self.snapshot.endpoints {
            let place = place(endpoint);
            lines.push(match (endpoint.verdict.as_str(), &endpoint.reason) {
                ("free", _) => format!("{place} is free: a bind probe succeeded"),
                (verdict, Some(reason)) => format!("{place} is {verdict}: {reason}"),
                (verdict, None) => format!("{place} is {verdict}"),
            });
            if endpoint.binds.iter().any(|bind| bind.expected != "success") {
                lines.extend(endpoint.binds.iter().map(|bind| format!("  {}", prospect(bind))));
            }
        }
        lines.extend(self.holders(true));
        if self.snapshot.verdict != "free"
            && let Some(decision) = &self.snapshot.decision
        {
            lines.extend(plan(decision));
        }
        lines.iter().map(|line| printable(line)).collect()
    }

    /// The sockets in the way with their owners, and why each would or would not be ended.
    pub fn holders(&self, judges: bool) -> Vec<String> {
        let (mut claims, mut lingering): (Vec<&Holder>, Vec<&Holder>) =
            self.snapshot.holders.iter().partition(|one| one.conflict == "certain");
        if self.snapshot.verdict != "free" && claims.is_empty() {
            // Nothing else explains it.
            std::mem::swap(&mut claims, &mut lingering);
        }
        let (listed, left_out) = claims.split_at(claims.len().min(MOST_HOLDERS));
        let mut lines = Vec::new();
        for one in listed {
            lines.push(format!("  {}", holder(one)));
            for process in &one.owners.processes {
                lines.push(format!("    {}", owner(process)));
                if judges {
                    lines.push(format!("      {}", judgement(process)));
                }
            }
        }
        if !left_out.is_empty() {
            lines.push(format!("  and {}", by_state(left_out)));
        }
        let more = self.snapshot.holders_left_out;
        if lingering.is_empty() && more > 0 {
            lines.push(format!("  and {more} more"));
        }
        if !lingering.is_empty() {
            let counted = and_more(&by_state(&lingering), more);
            lines.push(format!("  besides {counted}, which block only a bind without SO_REUSEADDR"));
        }
        lines
    }
}

fn place(endpoint: &Endpoint) -> String {
    let mut flags = Vec::new();
    if !endpoint.reuse_address {
        flags.push("strict");
    }
    if endpoint.v6only {
        flags.push("v6only");
    }
    let place = SocketAddr::new(endpoint.address, endpoint.port);
    if flags.is_empty() { place.to_string() } else { format!("{place} ({})", flags.join(", ")) }
}

/// `3 ESTABLISHED and 1 TIME_WAIT`
fn by_state(holders: &[&Holder]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for holder in holders {
        *counts.entry(&holder.state).or_default() += 1;
    }
    let counts: Vec<String> = counts.into_iter().map(|(state, count)| format!("{count} {state}")).collect();
    counts.join(" and ")
}

fn prospect(bind: &Bind) -> String {
    let kind = if bind.reuse_address { "with" } else { "without" };
    let blockers: Vec<String> =
        bind.blockers.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let blockers = blockers.join(" and ");
    let until =
        bind.clears_in_ms.map(|left| format!(", the last expires in {}", span(Duration::from_millis(left))));
    let until = until.unwrap_or_default();
    let answer = match bind.expected.as_str() {
        "success" => "would succeed".to_owned(),
        "failure" if blockers.is_empty() => "would fail, and nobody is seen in its way".to_owned(),
        "failure" => format!("would fail: {blockers}{until}"),
        _ => format!("may fail: {blockers}{until}; whether they set SO_REUSEADDR too cannot be seen"),
    };
    format!("a bind {kind} SO_REUSEADDR {answer}")
}

/// What a restart by the sidecar would do.
fn plan(decision: &Decision) -> Vec<String> {
    let pids: Vec<String> = decision.processes.iter().map(|one| format!("pid {}", one.pid)).collect();
    let pids = pids.join(" and ");
    let detail = decision.detail.as_deref().unwrap_or_default();
    let mut lines = Vec::new();
    if decision.action == "refuse" {
        lines.extend(decision.processes.iter().map(|one| format!("  {}", judged(one))));
    }
    lines.push(match decision.action.as_str() {
        "wait" => "the sidecar's restart would signal nobody and wait for the port".to_owned(),
        "end" => format!(
            "the sidecar's restart would send SIGTERM to {pids}, and SIGKILL to whoever is left after the drain budget"
        ),
        "evict" => format!("the sidecar's restart would signal nobody and destroy {detail}"),
        "refuse" => {
            format!("the sidecar's restart would refuse and signal nobody: {pids} may not be ended")
        }
        "not_permitted" => {
            format!("the sidecar's restart would refuse and signal nobody: it may not signal {pids}")
        }
        _ => format!("the sidecar's restart would signal nobody: {detail}"),
    });
    lines
}
