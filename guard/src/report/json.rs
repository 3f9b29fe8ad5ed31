//! The event stream: one JSON object a line.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use guard_core::gate::{Decision, Gate, Hint, JudgedHolder, Outcome, Rival};
use guard_core::model::{ExitStatus, Instant, Manager, ProcessId, Unit, Verdict};
use guard_core::policy::{Class, Judgement, Reason};
use guard_core::restart::UnitDetails;
use guard_core::timeline::Entry;
use serde::Serialize;

use self::lost_bind::{BindFailedBody, bind_failed};
use self::sockets::{BindBody, HolderBody, SocketBody, bind, holder, socket_body};
use super::notes::Note;
use super::unit::{self, UnitBody};
use super::words::{self, Context};
use crate::runtime::Tier;
use crate::runtime::{Sink, wall_clock};

mod lost_bind;
mod sockets;

/// The schema version of every event. A breaking change raises it.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Event<'a> {
    v: u32,
    seq: u64,
    time: String,
    mono_ns: u64,
    service: &'a str,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Body {
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
        detail: Detail,
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
}

#[derive(Serialize)]
struct Endpoint {
    address: IpAddr,
    port: u16,
    v6only: bool,
    reuse_address: bool,
    reuse_port: bool,
}

#[derive(Serialize)]
struct Snapshot {
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

#[derive(Serialize)]
struct EndpointVerdict {
    #[serde(flatten)]
    endpoint: Endpoint,
    verdict: &'static str,
    reason: Option<String>,
    binds: Vec<BindBody>,
}

/// What `free` would do about the holders.
#[derive(Serialize)]
struct DecisionBody {
    action: &'static str,
    processes: Vec<RefusedOwner>,
    detail: Option<String>,
}

#[derive(Serialize)]
struct Why {
    code: &'static str,
    /// What part of the process the evidence is about.
    kind: Option<&'static str>,
    /// What the process shows there.
    value: Option<String>,
    /// What it was held against.
    rule: Option<String>,
    text: String,
}

#[derive(Serialize)]
struct RefusedOwner {
    pid: u32,
    start: u64,
    class: Option<&'static str>,
    reasons: Vec<Why>,
}

#[derive(Serialize)]
struct RivalBody {
    pid: u32,
    start: u64,
    unit: Option<String>,
    /// Whose manager the unit belongs to; `None` is the system's.
    unit_of_user: Option<u32>,
    parent: Option<u32>,
    parent_comm: Option<String>,
}

#[derive(Serialize)]
struct How {
    exit_code: Option<u8>,
    signal: Option<u8>,
    core_dumped: Option<bool>,
}

#[derive(Serialize)]
struct ProofBody {
    kind: &'static str,
    probed_mono_ns: u64,
    endpoints: Vec<Endpoint>,
}

#[derive(Serialize, Default)]
struct Detail {
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
#[derive(Serialize)]
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
        let snapshot = snapshot(gate, gate.holders(), tier, None);
        self.write(at, Body::Snapshot(Box::new(snapshot)));
    }

    /// A step that happened outside of the gate.
    pub fn step(&mut self, at: Instant, step: &'static str, pid: Option<u32>, detail: Option<String>) {
        self.write(at, Body::RunStep { step, detail: Detail { pid, detail, ..Detail::default() } });
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
        let (unit, detail) = (Some(Box::new(unit::body(unit, details))), Some(detail));
        self.write(at, Body::RunStep { step, detail: Detail { unit, detail, ..Detail::default() } });
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
        self.write(at, Body::RunStep { step: "note", detail });
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
        let took_us = micros(at.since(began));
        self.write(at, Body::RunFinished { outcome, exit_code, detail, took_us, tier: tier.name() });
    }

    fn write(&mut self, at: Instant, body: Body) {
        self.seq += 1;
        let event = Event {
            v: VERSION,
            seq: self.seq,
            time: humantime::format_rfc3339_micros(wall_clock(at)).to_string(),
            mono_ns: at.as_nanos(),
            service: &self.context.service,
            body,
        };
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
        let body = match entry {
            Entry::Began if std::mem::replace(&mut self.begun, true) => return,
            Entry::Began => Body::RunStarted {
                command: self.context.command,
                dry_run: self.context.dry_run,
                tier: tier.name(),
                endpoints: gate.plan().endpoints.iter().map(endpoint).collect(),
            },
            Entry::Looked { holders, left_out, took } => {
                if matches!(gate.plan().goal, guard_core::gate::Goal::Look) {
                    return;
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
            Entry::Event(Hint::ListenerOpened { address, port }) => {
                Body::ListenerOpened { address: *address, port: port.get() }
            }
            Entry::Event(Hint::ListenerClosed { address, port }) => {
                Body::ListenerClosed { address: *address, port: port.get() }
            }
            Entry::Event(Hint::SocketReleased { address, port }) => {
                Body::SocketReleased { address: Some(*address), port: port.get() }
            }
            Entry::Event(Hint::ConnectionReleased { port } | Hint::TimeWaitEnded { port }) => {
                Body::SocketReleased { address: None, port: port.get() }
            }
            Entry::Event(Hint::OwnerExiting { process, status }) => {
                let detail = Some(words::exit_status(*status));
                step("owner_exiting", Detail { detail, ..of(*process) })
            }
            Entry::BindFailed { bind, holders, looked } => {
                Body::BindFailed(Box::new(bind_failed(bind, holders, *looked)))
            }
            Entry::EventsLost(count) => Body::EventsLost { count: *count },
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
            Entry::Gone { process, status, answered } => Body::OwnerExited {
                pid: process.tgid.0,
                start: process.start.0,
                how: how(*status),
                answered: answered.map(|(signal, _)| words::signals(signal)),
                answered_after_us: answered.map(|(_, after)| micros(after)),
            },
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
            Entry::TierChanged(tier) => Body::TierChanged { tier },
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
            Entry::Ended(_) => return,
        };
        self.write(at, body);
    }
}

fn step(step: &'static str, detail: Detail) -> Body {
    Body::RunStep { step, detail }
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

fn endpoint(spec: &guard_core::model::BindSpec) -> Endpoint {
    Endpoint {
        address: spec.address,
        port: spec.port.get(),
        v6only: spec.v6only,
        reuse_address: spec.reuse_address,
        reuse_port: spec.reuse_port,
    }
}

fn snapshot(gate: &Gate, holders: &[JudgedHolder], tier: Tier, took: Option<Duration>) -> Snapshot {
    let verdicts = gate.verdicts();
    let whole = words::overall(&verdicts);
    let (reason, transient) = match whole {
        Verdict::Unknown { reason, .. } => (Some(words::unknown(reason)), Some(reason.is_transient())),
        Verdict::Busy { holders } if holders.is_empty() && gate.decision().is_some() => {
            (Some(super::human::NOBODY.to_owned()), None)
        }
        Verdict::Busy { .. } | Verdict::Free => (None, None),
    };
    let prospects = gate.prospects();
    let endpoints = gate
        .plan()
        .endpoints
        .iter()
        .zip(&verdicts)
        .enumerate()
        .map(|(index, (spec, verdict))| EndpointVerdict {
            binds: prospects.get(index).into_iter().flatten().map(bind).collect(),
            endpoint: endpoint(spec),
            verdict: words::verdict_word(verdict),
            reason: match verdict {
                Verdict::Unknown { reason, .. } => Some(words::unknown(reason)),
                Verdict::Busy { .. } | Verdict::Free => None,
            },
        })
        .collect();
    // The gate may have opened since this look: its holders were in the way then.
    let was_busy = matches!(whole, Verdict::Free) && holders.iter().any(|judged| judged.holder.certain);
    Snapshot {
        verdict: if was_busy { "busy" } else { words::verdict_word(whole) },
        reason,
        transient,
        tier: tier.name(),
        endpoints,
        holders: holders.iter().map(holder).collect(),
        holders_left_out: 0,
        decision: match whole {
            _ if gate.plan().goal == guard_core::gate::Goal::Wait => None,
            Verdict::Free => None,
            Verdict::Busy { .. } | Verdict::Unknown { .. } => gate.decision().map(decision),
        },
        took_us: took.map(micros),
    }
}

fn decision(decision: Decision) -> DecisionBody {
    let bare = |process: &ProcessId| RefusedOwner {
        pid: process.tgid.0,
        start: process.start.0,
        class: None,
        reasons: Vec::new(),
    };
    match decision {
        Decision::Wait => DecisionBody { action: "wait", processes: Vec::new(), detail: None },
        Decision::End(stale) => {
            DecisionBody { action: "end", processes: stale.iter().map(refused_owner).collect(), detail: None }
        }
        Decision::Evict(sockets) => {
            let sockets: Vec<String> = sockets.iter().map(words::socket).collect();
            DecisionBody { action: "evict", processes: Vec::new(), detail: Some(sockets.join("; ")) }
        }
        Decision::Refuse(refused) => DecisionBody {
            action: "refuse",
            processes: refused.iter().map(refused_owner).collect(),
            detail: None,
        },
        Decision::NotPermitted(processes) => DecisionBody {
            action: "not_permitted",
            processes: processes.iter().map(bare).collect(),
            detail: None,
        },
        Decision::CannotTell(reason) => DecisionBody {
            action: "cannot_tell",
            processes: Vec::new(),
            detail: Some(words::unknown(&reason)),
        },
    }
}

fn refused_owner((process, judgement): &(ProcessId, Judgement)) -> RefusedOwner {
    let class: Class = judgement.class;
    RefusedOwner {
        pid: process.tgid.0,
        start: process.start.0,
        class: Some(class.name()),
        reasons: whys(judgement),
    }
}

fn whys(judgement: &Judgement) -> Vec<Why> {
    let why = |reason: &Reason| Why {
        code: reason.code(),
        kind: reason.kind(),
        value: reason.value(),
        rule: reason.rule().map(str::to_owned),
        text: reason.to_string(),
    };
    judgement.reasons.iter().map(why).collect()
}

fn rival(rival: &Rival) -> RivalBody {
    let manager = rival.unit.as_ref().map(|unit| unit.manager);
    RivalBody {
        pid: rival.id.tgid.0,
        start: rival.id.start.0,
        unit: rival.unit.as_ref().map(|unit| unit.name.to_string()),
        unit_of_user: manager.and_then(|manager| match manager {
            Manager::System => None,
            Manager::User(uid) => Some(uid.0),
        }),
        parent: rival.parent.as_ref().map(|(pid, _)| pid.0),
        parent_comm: rival.parent.as_ref().map(|(_, comm)| comm.clone()),
    }
}

fn how(status: Option<ExitStatus>) -> How {
    match status {
        Some(ExitStatus::Code(code)) => How { exit_code: Some(code), signal: None, core_dumped: None },
        Some(ExitStatus::Signal { number, core_dumped }) => {
            How { exit_code: None, signal: Some(number), core_dumped: Some(core_dumped) }
        }
        None => How { exit_code: None, signal: None, core_dumped: None },
    }
}
