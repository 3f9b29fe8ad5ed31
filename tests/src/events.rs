//! The one place that knows the names of fields in portguard's JSON lines.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::process::Proc;

/// One JSON line of portguard.
#[derive(Clone, Debug)]
pub struct Event(pub Value);

/// The verdict of a `snapshot` event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `free`
    Free,
    /// `busy`
    Busy,
    /// `unknown`
    Unknown,
}

/// One of the `endpoints` of a `snapshot` event.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a>(pub &'a Value);

/// A holder in a `snapshot` event.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a>(pub &'a Value);

/// A process in a holder's `owners`.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a>(pub &'a Value);

/// What a `snapshot` says of one kind of bind.
#[derive(Clone, Debug)]
pub struct Bind {
    /// `expected`: `success`, `unclear` or `failure`.
    pub expected: String,
    /// `blockers`: how many sockets are in its way, by state.
    pub blockers: BTreeMap<String, u64>,
    /// `clears_in_ms`
    pub clears_in_ms: Option<u64>,
}

impl Bind {
    fn of(value: &Value) -> Self {
        let blockers = value["blockers"].as_object().into_iter().flatten();
        Self {
            expected: text(value, "expected").to_owned(),
            blockers: blockers
                .map(|(state, count)| (state.clone(), count.as_u64().unwrap_or_default()))
                .collect(),
            clears_in_ms: value["clears_in_ms"].as_u64(),
        }
    }
}

impl Event {
    /// `line` as an event: a JSON object with a `type`. Stand-ins' lines have none.
    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        value.get("type")?.as_str()?;
        Some(Self(value))
    }

    /// `type`
    pub fn kind(&self) -> &str {
        text(&self.0, "type")
    }

    /// Whether it is this `run_step`.
    pub fn is_step(&self, step: &str) -> bool {
        self.kind() == "run_step" && text(&self.0, "step") == step
    }

    /// Whether it is a `run_step` that adds this note.
    pub fn is_note(&self, code: &str) -> bool {
        self.is_step("note") && text(&self.0, "code") == code
    }

    /// `details` of a note.
    pub fn details(&self) -> Vec<&str> {
        self.0["details"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// `commands` of a note.
    pub fn commands(&self) -> Vec<&str> {
        self.0["commands"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// `count` of an `events_lost`.
    pub fn count(&self) -> u64 {
        number(&self.0, "count")
    }

    /// `seq`
    pub fn seq(&self) -> u64 {
        number(&self.0, "seq")
    }

    /// `v`, the schema's version.
    pub fn version(&self) -> u64 {
        number(&self.0, "v")
    }

    /// `mono_ns`: `CLOCK_MONOTONIC` in nanoseconds.
    pub fn mono_ns(&self) -> u64 {
        number(&self.0, "mono_ns")
    }

    /// `verdict` of a `snapshot`.
    pub fn verdict(&self) -> Verdict {
        verdict(&self.0)
    }

    /// `reason` of an `unknown` verdict or of a refused gate; empty when there is none.
    pub fn reason(&self) -> &str {
        self.0["reason"].as_str().unwrap_or_default()
    }

    /// `holders` of a `snapshot`.
    pub fn holders(&self) -> Vec<Holder<'_>> {
        self.0["holders"]
            .as_array()
            .unwrap_or_else(|| panic!("no holders in {self}"))
            .iter()
            .map(Holder)
            .collect()
    }

    /// `decision.action` of a `snapshot`: what `free` would do; empty when there is nothing to do.
    pub fn decision(&self) -> &str {
        self.0["decision"]["action"].as_str().unwrap_or_default()
    }

    /// The processes that `decision` is about.
    pub fn decided(&self) -> Vec<Proc> {
        self.0["decision"]["processes"].as_array().into_iter().flatten().map(process).collect()
    }

    /// `tier`, of events that carry it.
    pub fn tier(&self) -> Option<&str> {
        self.0["tier"].as_str()
    }

    /// `pid` and `start` of a `signal_sent` or `owner_exited`.
    pub fn process(&self) -> Proc {
        process(&self.0)
    }

    /// `signal` of a `signal_sent`.
    pub fn signal(&self) -> &str {
        text(&self.0, "signal")
    }

    /// `pid` of a `bind_failed`.
    pub fn pid(&self) -> i32 {
        i32::try_from(number(&self.0, "pid")).expect("a PID")
    }

    /// `comm` of a `bind_failed`.
    pub fn comm(&self) -> &str {
        text(&self.0, "comm")
    }

    /// `port` of a `bind_failed`.
    pub fn port(&self) -> u16 {
        u16::try_from(number(&self.0, "port")).expect("a port")
    }

    /// `probe` of a `bind_failed`: by its name it is another portguard.
    pub fn is_probe(&self) -> bool {
        self.0["probe"].as_bool().unwrap_or_else(|| panic!("no probe in {self}"))
    }

    /// `detail`, in words; empty when there is none.
    pub fn detail(&self) -> &str {
        self.0["detail"].as_str().unwrap_or_default()
    }

    /// `outcome` of a `run_finished`; empty for other events.
    pub fn outcome(&self) -> &str {
        self.0["outcome"].as_str().unwrap_or_default()
    }

    /// `answered` of an `owner_exited`: the last signal that it was sent.
    pub fn answered(&self) -> Option<&str> {
        self.0["answered"].as_str()
    }

    /// `answered_after_us` of an `owner_exited`.
    pub fn answered_after_us(&self) -> Option<f64> {
        self.0["answered_after_us"].as_f64()
    }

    /// The units in `rivals` of a `duel`, or in `by` of a `respawned`.
    pub fn units(&self) -> Vec<&str> {
        let rivals = self.0["rivals"].as_array().or_else(|| self.0["by"].as_array());
        rivals.into_iter().flatten().filter_map(|rival| rival["unit"].as_str()).collect()
    }

    /// `way_out` of a `duel`.
    pub fn way_out(&self) -> &str {
        text(&self.0, "way_out")
    }

    /// `exit_code` of a `run_finished`.
    pub fn exit_code(&self) -> i64 {
        self.0["exit_code"].as_i64().unwrap_or_else(|| panic!("no exit_code in {self}"))
    }

    /// `binds` of the first endpoint of a `snapshot`: with `SO_REUSEADDR`, and without.
    pub fn binds(&self) -> [Bind; 2] {
        Endpoint(&self.0["endpoints"][0]).binds()
    }

    /// The endpoint of a `snapshot` with this port.
    pub fn endpoint(&self, port: u16) -> Endpoint<'_> {
        let mut all = self.0["endpoints"].as_array().into_iter().flatten();
        let endpoint = all.find(|endpoint| endpoint["port"] == port);
        Endpoint(endpoint.unwrap_or_else(|| panic!("no endpoint with port {port} in {self}")))
    }

    /// Some holder of a `snapshot` or `bind_failed` has this owner.
    pub fn shows(&self, process: Proc) -> bool {
        self.holders().iter().flat_map(Holder::owners).any(|owner| owner.process() == process)
    }

    /// A holder of this process listens. One that is only bound does not keep another binder out yet.
    pub fn shows_listening(&self, process: Proc) -> bool {
        let listening = self.holders().into_iter().filter(|holder| holder.state() == "LISTEN");
        listening.flat_map(|holder| holder.owners()).any(|owner| owner.process() == process)
    }

    /// The whole line mentions this word, under whatever name.
    pub fn mentions(&self, word: &str) -> bool {
        self.0.to_string().contains(word)
    }
}

impl Endpoint<'_> {
    /// `verdict`
    pub fn verdict(&self) -> Verdict {
        verdict(self.0)
    }

    /// `binds`: with `SO_REUSEADDR`, and without.
    pub fn binds(&self) -> [Bind; 2] {
        let binds = self.0["binds"].as_array().into_iter().flatten();
        let binds: Vec<Bind> = binds.map(Bind::of).collect();
        binds.try_into().unwrap_or_else(|_| panic!("no two kinds of bind in {}", self.0))
    }
}

impl<'a> Holder<'a> {
    /// `port`
    pub fn port(&self) -> u16 {
        u16::try_from(number(self.0, "port")).expect("a port")
    }

    /// `state`: the kernel's name, as `LISTEN`.
    pub fn state(&self) -> &str {
        text(self.0, "state")
    }

    /// `address`
    pub fn address(&self) -> &str {
        text(self.0, "address")
    }

    /// `inode`; `None` for a socket without a file.
    pub fn inode(&self) -> Option<u64> {
        self.0["inode"].as_u64()
    }

    /// `kernel_held`: no process has a descriptor for it.
    pub fn kernel_held(&self) -> bool {
        self.0["kernel_held"].as_bool().unwrap_or_else(|| panic!("no kernel_held in {}", self.0))
    }

    /// `reuse_address`: `SO_REUSEADDR`, when it is known.
    pub fn reuse_address(&self) -> Option<bool> {
        self.0["reuse_address"].as_bool()
    }

    /// `reuse_port`: `SO_REUSEPORT`, when it is known.
    pub fn reuse_port(&self) -> Option<bool> {
        self.0["reuse_port"].as_bool()
    }

    /// `time_wait_remaining_ms`
    pub fn time_wait_remaining_ms(&self) -> Option<u64> {
        self.0["time_wait_remaining_ms"].as_u64()
    }

    /// `owners.visibility`: `all`, `some` or `none`.
    pub fn visibility(&self) -> &str {
        text(&self.0["owners"], "visibility")
    }

    /// `owners.processes`
    pub fn owners(&self) -> Vec<Owner<'a>> {
        self.0["owners"]["processes"].as_array().into_iter().flatten().map(Owner).collect()
    }
}

impl Owner<'_> {
    /// `pid` and `start`.
    pub fn process(&self) -> Proc {
        process(self.0)
    }

    /// `class`: `stale`, `foreign`, `protected`, `newcomer` or `current`.
    pub fn class(&self) -> &str {
        text(self.0, "class")
    }

    /// `reasons`: why it is of that class, as codes.
    pub fn reasons(&self) -> Vec<&str> {
        let reasons = self.0["reasons"].as_array().into_iter().flatten();
        reasons.map(|reason| text(reason, "code")).collect()
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn verdict(value: &Value) -> Verdict {
    match text(value, "verdict") {
        "free" => Verdict::Free,
        "busy" => Verdict::Busy,
        "unknown" => Verdict::Unknown,
        other => panic!("no such verdict: {other:?} in {value}"),
    }
}

fn process(value: &Value) -> Proc {
    Proc { pid: i32::try_from(number(value, "pid")).expect("a PID"), start: number(value, "start") }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no text {field:?} in {value}"))
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no number {field:?} in {value}"))
}
