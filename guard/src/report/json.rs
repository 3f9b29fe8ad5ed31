//! The event stream: one JSON object a line.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use guard_core::gate::{Gate, Hint, Outcome};
use guard_core::model::{Instant, ProcessId, Unit};
use guard_core::policy::Reason;
use guard_core::restart::UnitDetails;
use guard_core::timeline::Entry;
use schemars::JsonSchema;
use serde::Serialize;

use self::judged::{how, refused_owner, rival, whys};
use self::looked::{endpoint, snapshot};
use self::lost_bind::{BindFailedBody, bind_failed};
use self::sockets::{BindBody, HolderBody, SocketBody, socket_body};
use super::notes::Note;
use super::unit::{self, UnitBody};
use super::words::{self, Context};
use crate::runtime::Tier;
use crate::runtime::{Sink, wall_clock};

mod judged;
mod looked;
mod lost_bind;
mod relay;
mod sockets;
mod text;

/// The schema version of every event. A breaking change raises it.
const VERSION: u32 = 1;

/// One event, as it is sent.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Event<'a> {
    /// Schema version.
    v: u32,
    /// Grows with each event of a stream. What is made for one reader alone (`lagged`, and the
    /// snapshots that begin a stream) repeats the number of the last event that it covers.
    seq: u64,
    /// RFC 3339.
    time: String,
    /// `CLOCK_MONOTONIC`.
    mono_ns: u64,
    /// `null`: it concerns all of them.
    service: Option<&'a str>,
    /// The run that it is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a str>,
    /// The socket of the sidecar that a command went through. A sidecar's own stream has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    through: Option<&'a str>,
    #[serde(flatten)]
    body: &'a Body,
}

impl<'a> Event<'a> {
    /// `body` happened at `at`.
    pub fn new(
        seq: u64,
        at: Instant,
        service: Option<&'a str>,
        run: Option<&'a str>,
        body: &'a Body,
    ) -> Self {
        let time = humantime::format_rfc3339_micros(wall_clock(at)).to_string();
        Self { v: VERSION, seq, time, mono_ns: at.as_nanos(), service, run, through: None, body }
    }
}

/// What happened, by type.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are the wire format: the types of the core explain them")]
pub enum Body {
    RunStarted {
        command: &'static str,
        dry_run: bool,
        tier: &'static str,
        endpoints: Vec<Endpoint>,
    },
    Snapshot(Box<Snapshot>),
    RunStep {
        step: &'static str,
        #[serde(flatten)]
        detail: Box<Detail>,
    },
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
    BindFailed(Box<BindFailedBody>),
    OwnerExited {
        pid: u32,
        start: u64,
        #[serde(flatten)]
        how: How,
        /// The last signal that this run sent it.
        answered: Option<&'static str>,
        answered_after_us: Option<f64>,
    },
    SignalSent {
        pid: u32,
        start: u64,
        signal: &'static str,
        class: &'static str,
        reasons: Vec<Why>,
    },
    TierChanged {
        tier: &'static str,
    },
    EventsLost {
        count: u64,
    },
    GateOpened {
        proof: ProofBody,
        release_latency_us: Option<f64>,
        tier: &'static str,
    },
    GateRefused {
        refused: Vec<RefusedOwner>,
        /// Processes that were sent SIGTERM before, and are alive.
        pending: Vec<u32>,
    },
    /// Newcomers keep taking the port.
    Duel {
        rivals: Vec<RivalBody>,
        way_out: String,
    },
    /// The service's own unit has started again.
    Respawned {
        by: Vec<RivalBody>,
    },
    RunFinished {
        outcome: &'static str,
        exit_code: u8,
        detail: Option<String>,
        took_us: f64,
        tier: &'static str,
    },
    /// A reload has dropped this service. A run that is under way for it goes on.
    ServiceRemoved {},
    /// This reader was too slow: so many events were not sent to it. Snapshots follow.
    Lagged {
        /// `null`: it is not known how many, because the sidecar was restarted meanwhile.
        count: Option<u64>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Endpoint {
    address: IpAddr,
    port: u16,
    v6only: bool,
    reuse_address: bool,
    reuse_port: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Snapshot {
    verdict: &'static str,
    reason: Option<String>,
    transient: Option<bool>,
    tier: &'static str,
    endpoints: Vec<EndpointVerdict>,
    holders: Vec<HolderBody>,
    /// Connections and TIME_WAIT sockets that are not listed.
    holders_left_out: usize,
    decision: Option<DecisionBody>,
    took_us: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct EndpointVerdict {
    #[serde(flatten)]
    endpoint: Endpoint,
    verdict: &'static str,
    reason: Option<String>,
    binds: Vec<BindBody>,
}

/// What `free` would do about the holders.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct DecisionBody {
    action: &'static str,
    processes: Vec<RefusedOwner>,
    detail: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Why {
    code: &'static str,
    /// What part of the process the evidence is about.
    kind: Option<&'static str>,
    /// What the process shows there.
    value: Option<String>,
    /// What it was held against.
    rule: Option<String>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RefusedOwner {
    pid: u32,
    start: u64,
    class: Option<&'static str>,
    reasons: Vec<Why>,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RivalBody {
    pid: u32,
    start: u64,
    unit: Option<String>,
    /// Whose manager the unit belongs to; `None` is the system's.
    unit_of_user: Option<u32>,
    parent: Option<u32>,
    parent_comm: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct How {
    exit_code: Option<u8>,
    signal: Option<u8>,
    core_dumped: Option<bool>,
    /// The kernel's OOM killer struck in its memory cgroup, and nothing else explains its end.
    out_of_memory: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ProofBody {
    kind: &'static str,
    probed_mono_ns: u64,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Detail {
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcomes: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<SocketBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<Box<UnitBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(flatten)]
    note: Option<Box<NoteBody>>,
}

/// What a note adds to a step.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct NoteBody {
    /// What was checked, or what else there is to know.
    details: Vec<String>,
    /// What to run.
    commands: Vec<String>,
}

/// Writes events to a stream, one a line.
#[derive(Debug)]
pub struct Json<W> {
    context: Context,
    out: W,
    seq: u64,
    /// `run_started` was told: a command may take several runs of the gate.
    begun: bool,
    /// One line; kept for the next one.
    line: BytesMut,
}

impl<W: Write> Json<W> {
    /// Events about `context` to `out`.
    pub fn new(context: Context, out: W) -> Self {
        Self { context, out, seq: 0, begun: false, line: BytesMut::new() }
    }

    /// The last words of a look: what was found, and what would be done.
    pub fn looked(&mut self, gate: &Gate, tier: Tier, at: Instant) {
        self.write(at, &Body::looked(gate, tier));
    }

    /// A step that happened outside of the gate.
    pub fn step(&mut self, at: Instant, step: &'static str, pid: Option<u32>, detail: Option<String>) {
        self.write(at, &Body::step(step, pid, detail));
    }

    /// A step that shows a unit.
    pub fn unit(
        &mut self,
        at: Instant,
        step: &'static str,
        unit: &Unit,
        details: &UnitDetails,
        detail: String,
    ) {
        self.write(at, &Body::unit(step, unit, details, detail));
    }

    /// What there is to add.
    pub fn note(&mut self, at: Instant, note: &Note) {
        let more = NoteBody { details: note.details.clone(), commands: note.commands.clone() };
        let detail = Detail {
            code: Some(note.code),
            detail: Some(note.text.clone()),
            note: Some(Box::new(more)),
            ..Detail::default()
        };
        self.write(at, &Body::RunStep { step: "note", detail: Box::new(detail) });
    }

    /// The end of the whole command.
    pub fn finished(
        &mut self,
        at: Instant,
        began: Instant,
        tier: Tier,
        outcome: &'static str,
        exit_code: u8,
        detail: Option<String>,
    ) {
        self.write(at, &Body::finished(at.since(began), tier, outcome, exit_code, detail));
    }

    fn write(&mut self, at: Instant, body: &Body) {
        self.seq += 1;
        let event = Event::new(self.seq, at, Some(&self.context.service), None, body);
        // A reader that went away must not stop a run half way: the exit code
        // still tells how it ended.
        self.line.clear();
        if serde_json::to_writer((&mut self.line).writer(), &event).is_ok() {
            self.line.put_u8(b'\n');
            let _reader_gone = self.out.write_all(&self.line).and_then(|()| self.out.flush());
        }
    }
}

impl<W: Write> Sink for Json<W> {
    fn entry(&mut self, gate: &Gate, tier: Tier, at: Instant, entry: &Entry) {
        if matches!(entry, Entry::Began) && std::mem::replace(&mut self.begun, true) {
            return;
        }
        if let Some(body) = Body::of_entry(self.context.command, self.context.dry_run, gate, tier, entry) {
            self.write(at, &body);
        }
    }
}

impl Body {
    /// What a look found, and what would be done.
    pub fn looked(gate: &Gate, tier: Tier) -> Self {
        Self::Snapshot(Box::new(snapshot(gate, gate.holders(), tier, None)))
    }

    /// The word of `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::RunStarted { .. } => "run_started",
            Self::Snapshot(_) => "snapshot",
            Self::RunStep { .. } => "run_step",
            Self::ListenerOpened { .. } => "listener_opened",
            Self::ListenerClosed { .. } => "listener_closed",
            Self::SocketReleased { .. } => "socket_released",
            Self::OwnerExited { .. } => "owner_exited",
            Self::SignalSent { .. } => "signal_sent",
            Self::TierChanged { .. } => "tier_changed",
            Self::EventsLost { .. } => "events_lost",
            Self::GateOpened { .. } => "gate_opened",
            Self::GateRefused { .. } => "gate_refused",
            Self::Duel { .. } => "duel",
            Self::Respawned { .. } => "respawned",
            Self::RunFinished { .. } => "run_finished",
            Self::BindFailed(_) => "bind_failed",
            Self::ServiceRemoved {} => "service_removed",
            Self::Lagged { .. } => "lagged",
        }
    }

    /// The verdict of a snapshot.
    pub fn verdict(&self) -> Option<&'static str> {
        match self {
            Self::Snapshot(snapshot) => Some(snapshot.verdict),
            _ => None,
        }
    }

    /// A step that happened outside of a gate.
    pub fn step(step: &'static str, pid: Option<u32>, detail: Option<String>) -> Self {
        Self::RunStep { step, detail: Box::new(Detail { pid, detail, ..Detail::default() }) }
    }

    /// A step that shows a unit.
    pub fn unit(step: &'static str, unit: &Unit, details: &UnitDetails, detail: String) -> Self {
        let (unit, detail) = (Some(Box::new(unit::body(unit, details))), Some(detail));
        Self::RunStep { step, detail: Box::new(Detail { unit, detail, ..Detail::default() }) }
    }

    /// The end of a run that took this long.
    pub fn finished(
        took: Duration,
        tier: Tier,
        outcome: &'static str,
        exit_code: u8,
        detail: Option<String>,
    ) -> Self {
        Self::RunFinished { outcome, exit_code, detail, took_us: micros(took), tier: tier.name() }
    }

    /// An entry of a run's timeline, when it is worth an event.
    pub fn of_entry(
        command: &'static str,
        dry_run: bool,
        gate: &Gate,
        tier: Tier,
        entry: &Entry,
    ) -> Option<Self> {
        Some(match entry {
            Entry::Began => Body::RunStarted {
                command,
                dry_run,
                tier: tier.name(),
                endpoints: gate.plan().endpoints.iter().map(endpoint).collect(),
            },
            Entry::Looked { holders, left_out, took } => {
                if matches!(gate.plan().goal, guard_core::gate::Goal::Look) {
                    return None;
                }
                let snapshot =
                    Snapshot { holders_left_out: *left_out, ..snapshot(gate, holders, tier, Some(*took)) };
                Body::Snapshot(Box::new(snapshot))
            }
            Entry::LookFailed(why) => {
                step("look_failed", Detail { detail: Some(why.clone()), ..Detail::default() })
            }
            Entry::Probed { outcomes, took } => step(
                "probed",
                Detail {
                    outcomes: Some(outcomes.iter().map(words::bind_outcome).collect()),
                    took_us: Some(micros(*took)),
                    ..Detail::default()
                },
            ),
            Entry::Signalled { process, signal, judgement } => Body::SignalSent {
                pid: process.tgid.0,
                start: process.start.0,
                signal: words::signals(*signal),
                class: judgement.class.name(),
                reasons: whys(judgement),
            },
            Entry::SignalFailed { process, signal, failure } => step(
                "signal_failed",
                Detail {
                    signal: Some(words::signals(*signal)),
                    code: Some(words::signal_failure(failure).0),
                    detail: Some(words::signal_failure(failure).1.to_owned()),
                    ..of(*process)
                },
            ),
            Entry::Evicted(socket) => {
                step("evicted", Detail { socket: Some(socket_body(socket)), ..Detail::default() })
            }
            Entry::EvictionFailed { socket, failure } => step(
                "eviction_failed",
                Detail {
                    socket: Some(socket_body(socket)),
                    detail: Some(words::eviction_failure(failure).to_owned()),
                    ..Detail::default()
                },
            ),
            Entry::Held { process, state, wait_channel } => {
                let detail = Some(words::held(*state, wait_channel.as_deref()));
                step("held", Detail { detail, ..of(*process) })
            }
            Entry::CgroupNotKilled(why) => {
                step("cgroup_not_killed", Detail { detail: Some(why.clone()), ..Detail::default() })
            }
            Entry::Spared { process, judgement } => {
                let reasons: Vec<String> = judgement.reasons.iter().map(Reason::to_string).collect();
                step("spared", Detail { detail: Some(reasons.join("; ")), ..of(*process) })
            }
            Entry::Unkillable { process, wait_channel } => {
                step("unkillable", Detail { detail: wait_channel.clone(), ..of(*process) })
            }
            Entry::Ended(Outcome::Opened(proof)) => Body::GateOpened {
                proof: ProofBody {
                    kind: "bind",
                    probed_mono_ns: proof.probed.as_nanos(),
                    endpoints: proof.endpoints.iter().map(endpoint).collect(),
                },
                release_latency_us: proof.release_latency.map(micros),
                tier: tier.name(),
            },
            Entry::Ended(Outcome::Refused(refused)) => {
                let pending = gate.pending().iter().map(|process| process.tgid.0).collect();
                Body::GateRefused { refused: refused.iter().map(refused_owner).collect(), pending }
            }
            Entry::Ended(Outcome::Duel(rivals)) => {
                Body::Duel { rivals: rivals.iter().map(rival).collect(), way_out: words::way_out(rivals) }
            }
            Entry::Ended(Outcome::Respawned(rivals)) => {
                Body::Respawned { by: rivals.iter().map(rival).collect() }
            }
            Entry::Event(_)
            | Entry::BindFailed { .. }
            | Entry::EventsLost(_)
            | Entry::Gone { .. }
            | Entry::TierChanged(_) => {
                return Self::happened(entry);
            }
            Entry::Ended(_) => return None,
        })
    }

    /// Something that happened outside of any run.
    pub fn happened(entry: &Entry) -> Option<Self> {
        Some(match entry {
            Entry::Event(Hint::ListenerOpened { address, port }) => {
                Body::ListenerOpened { address: *address, port: port.get() }
            }
            Entry::Event(Hint::ListenerClosed { address, port }) => {
                Body::ListenerClosed { address: *address, port: port.get() }
            }
            Entry::Event(Hint::SocketReleased { address, port }) => {
                Body::SocketReleased { address: Some(*address), port: port.get() }
            }
            Entry::Event(
                Hint::ConnectionReleased { port }
                | Hint::ConnectionAborted { port }
                | Hint::TimeWaitEnded { port },
            ) => Body::SocketReleased { address: None, port: port.get() },
            Entry::Event(Hint::OwnerExiting { process, status }) => {
                let detail = Some(words::exit_status(*status));
                step("owner_exiting", Detail { detail, ..of(*process) })
            }
            Entry::BindFailed { bind, holders, looked } => {
                Body::BindFailed(Box::new(bind_failed(bind, holders, *looked)))
            }
            Entry::EventsLost(count) => Body::EventsLost { count: *count },
            Entry::Gone { process, status, answered } => Body::OwnerExited {
                pid: process.tgid.0,
                start: process.start.0,
                how: how(*status),
                answered: answered.map(|(signal, _)| words::signals(signal)),
                answered_after_us: answered.map(|(_, after)| micros(after)),
            },
            Entry::TierChanged(tier) => Body::TierChanged { tier },
            _ => return None,
        })
    }
}

fn step(step: &'static str, detail: Detail) -> Body {
    Body::RunStep { step, detail: Box::new(detail) }
}

fn of(process: ProcessId) -> Detail {
    Detail { pid: Some(process.tgid.0), start: Some(process.start.0), ..Detail::default() }
}

fn micros(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e9).round() / 1e3
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
