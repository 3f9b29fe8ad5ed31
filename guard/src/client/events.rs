//! Events as this client reads them: what it shows of each, and nothing else.
//! A type or a field that it does not know is no error.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

/// One event.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Event {
    pub(super) seq: u64,
    pub(super) time: String,
    pub(super) mono_ns: u64,
    pub(super) service: Option<String>,
    #[serde(default)]
    pub(super) run: Option<String>,
    #[serde(flatten)]
    pub(super) what: What,
}

/// What happened, by type.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum What {
    RunStarted {
        command: String,
    },
    Snapshot(Box<Snapshot>),
    RunStep(Box<Step>),
    ListenerOpened {
        address: IpAddr,
        port: u16,
    },
    ListenerClosed {
        address: IpAddr,
        port: u16,
    },
    SocketReleased {
        address: Option<IpAddr>,
        port: u16,
    },
    BindFailed(Box<BindFailed>),
    OwnerExited {
        pid: u32,
        exit_code: Option<u8>,
        signal: Option<u8>,
        answered: Option<String>,
        answered_after_us: Option<f64>,
    },
    SignalSent {
        pid: u32,
        signal: String,
    },
    TierChanged {
        tier: String,
    },
    EventsLost {
        count: u64,
    },
    GateOpened {
        release_latency_us: Option<f64>,
    },
    GateRefused {
        refused: Vec<Judged>,
    },
    Duel {
        way_out: String,
    },
    Respawned {},
    RunFinished {
        outcome: String,
        exit_code: u8,
        detail: Option<String>,
        took_us: f64,
    },
    ServiceRemoved {},
    Lagged {
        count: Option<u64>,
    },
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Snapshot {
    pub(super) verdict: String,
    pub(super) reason: Option<String>,
    pub(super) tier: String,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) holders: Vec<Holder>,
    #[serde(default)]
    pub(super) holders_left_out: usize,
    #[serde(default)]
    pub(super) decision: Option<Decision>,
}

/// What a restart would do about the holders.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Decision {
    pub(super) action: String,
    pub(super) processes: Vec<Judged>,
    pub(super) detail: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    #[serde(default)]
    pub(super) v6only: bool,
    #[serde(default)]
    pub(super) reuse_address: bool,
    pub(super) verdict: String,
    pub(super) reason: Option<String>,
    #[serde(default)]
    pub(super) binds: Vec<Bind>,
}

/// What a bind of one kind would meet.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Bind {
    pub(super) reuse_address: bool,
    pub(super) expected: String,
    pub(super) blockers: BTreeMap<String, usize>,
    pub(super) clears_in_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Holder {
    pub(super) state: String,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) remote: Option<String>,
    pub(super) uid: u32,
    #[serde(default)]
    pub(super) conflict: String,
    pub(super) kernel_held: bool,
    pub(super) time_wait_remaining_ms: Option<u64>,
    pub(super) owners: Owners,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Owners {
    pub(super) visibility: String,
    pub(super) why: Option<String>,
    pub(super) processes: Vec<Owner>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Owner {
    pub(super) pid: u32,
    pub(super) uid: Option<u32>,
    pub(super) comm: Option<String>,
    pub(super) exe: Option<String>,
    pub(super) argv: Option<Vec<String>>,
    pub(super) cgroup: Option<String>,
    pub(super) class: String,
    pub(super) reasons: Vec<Reason>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Reason {
    pub(super) text: String,
}

/// A process and how it was judged.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Judged {
    pub(super) pid: u32,
    pub(super) class: Option<String>,
    #[serde(default)]
    pub(super) reasons: Vec<Reason>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Step {
    pub(super) step: String,
    pub(super) pid: Option<u32>,
    pub(super) signal: Option<String>,
    pub(super) outcomes: Option<Vec<String>>,
    pub(super) detail: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct BindFailed {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) attempts: u32,
    pub(super) pid: Option<u32>,
    pub(super) uid: u32,
    pub(super) comm: String,
    pub(super) unit: Option<String>,
}

impl Event {
    /// Reads one line of the stream; `None` when it is no event.
    pub(super) fn parse(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Body, Event as Written};
    use crate::runtime::Tier;
    use guard_core::model::Instant;
    use std::time::Duration;

    #[test]
    fn what_the_sidecar_writes_is_read() {
        let read = |body: &Body| {
            let event = Written::new(7, Instant::from_nanos(5), Some("web"), Some("e-1"), body);
            let json = serde_json::to_string(&event).expect("JSON");
            Event::parse(&json).unwrap_or_else(|| panic!("cannot be read: {json}"))
        };
        let finished = Body::finished(Duration::from_millis(3), Tier::Poll, "restarted", 0, None);
        let event = read(&finished);
        assert_eq!((event.seq, event.mono_ns, event.service.as_deref()), (7, 5, Some("web")));
        assert_eq!(event.run.as_deref(), Some("e-1"));
        let outcome = "restarted".to_owned();
        assert_eq!(event.what, What::RunFinished { outcome, exit_code: 0, detail: None, took_us: 3000.0 });
        let step = read(&Body::step("listening", Some(4), Some("it listens".to_owned())));
        assert!(matches!(step.what, What::RunStep(step) if step.pid == Some(4) && step.step == "listening"));
        assert_eq!(read(&Body::EventsLost { count: 3 }).what, What::EventsLost { count: 3 });
        assert_eq!(read(&Body::ServiceRemoved {}).what, What::ServiceRemoved {});
        assert_eq!(read(&Body::Lagged { count: None }).what, What::Lagged { count: None });
        assert_eq!(read(&Body::Respawned { by: Vec::new() }).what, What::Respawned {});
    }

    #[test]
    fn an_event_of_a_later_version_is_no_error() {
        let json = r#"{"v":2,"seq":1,"time":"t","mono_ns":0,"service":null,"type":"news","more":[1]}"#;
        assert_eq!(Event::parse(json).map(|event| event.what), Some(What::Unknown));
        assert_eq!(Event::parse("{}"), None);
    }
}
