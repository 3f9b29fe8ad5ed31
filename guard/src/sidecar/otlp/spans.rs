//! A run as spans: the run itself, and below it what took time.

use std::time::{Duration, SystemTime};

use guard_core::model::Instant;
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value as Attribute};
use opentelemetry_sdk::trace::{IdGenerator, SpanData, SpanEvents, SpanLinks};
use serde_json::{Map, Value};

use super::Ended;
use crate::runtime::wall_clock;

/// Events of a span, as OpenTelemetry limits them.
const MOST_EVENTS: usize = 128;

/// What every event has, and what the span says already.
const ENVELOPE: [&str; 8] = ["v", "seq", "time", "mono_ns", "service", "run", "type", "step"];

/// What takes time.
struct Phase {
    name: &'static str,
    begins: &'static [&'static str],
    /// Else it lasts until the end of the run.
    ends: &'static [&'static str],
}

/// The phases of a run. Signals are spans besides, one for each process.
fn phases(moments: &[Moment]) -> [Phase; 3] {
    // The port of a unit is waited for once the unit has stopped.
    let unit = moments.iter().any(|moment| moment.word == "unit_stopping");
    [
        Phase { name: "stop", begins: &["unit_stopping"], ends: &["unit_stopped"] },
        Phase {
            name: "gate",
            begins: if unit { &["unit_stopped"] } else { &["run_started"] },
            ends: &["gate_opened", "gate_refused", "duel", "respawned"],
        },
        Phase {
            name: "start",
            begins: &["command_started", "unit_starting", "unit_started_elsewhere"],
            ends: &["listening", "other_listens"],
        },
    ]
}

/// One event of the run.
struct Moment {
    at: SystemTime,
    /// Its type, or the step where it is one.
    word: String,
    fields: Map<String, Value>,
}

impl Moment {
    fn read(json: &str) -> Option<Self> {
        let Ok(Value::Object(fields)) = serde_json::from_str(json) else { return None };
        let at = wall_clock(Instant::from_nanos(fields.get("mono_ns")?.as_u64()?));
        let word = fields.get("step").or_else(|| fields.get("type"))?.as_str()?.to_owned();
        Some(Self { at, word, fields })
    }

    fn is(&self, words: &[&str]) -> bool {
        words.contains(&self.word.as_str())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }

    /// About the same process as `other`.
    fn is_about(&self, other: &Self) -> bool {
        ["pid", "start"].iter().all(|name| self.fields.get(*name) == other.fields.get(*name))
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let own = self.fields.iter().filter(|(name, _)| !ENVELOPE.contains(&name.as_str()));
        own.filter_map(|(name, value)| Some(KeyValue::new(format!("portguard.{name}"), attribute(value)?)))
            .collect()
    }
}

/// Plain values, and lists of texts; what is nested stays in the event stream.
fn attribute(value: &Value) -> Option<Attribute> {
    Some(match value {
        Value::Bool(value) => (*value).into(),
        Value::String(text) => text.clone().into(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64()?.into(),
        },
        Value::Array(values) => {
            let texts: Option<Vec<StringValue>> =
                values.iter().map(|value| value.as_str().map(|text| text.to_owned().into())).collect();
            Attribute::Array(Array::String(texts.filter(|texts| !texts.is_empty())?))
        }
        Value::Null | Value::Object(_) => return None,
    })
}

/// The spans of one trace.
struct Trace<'i> {
    ids: &'i dyn IdGenerator,
    id: TraceId,
    root: SpanId,
    spans: Vec<SpanData>,
}

impl Trace<'_> {
    fn span(&self, id: SpanId, name: String, from: SystemTime, to: SystemTime) -> SpanData {
        SpanData {
            span_context: SpanContext::new(self.id, id, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: if id == self.root { SpanId::INVALID } else { self.root },
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: from,
            end_time: to.max(from),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("portguard").build(),
        }
    }

    /// What took from one event to another.
    fn child(&mut self, name: String, from: &Moment, to: &Moment) {
        let mut span = self.span(self.ids.new_span_id(), name, from.at, to.at);
        span.attributes = from.attributes();
        if to.word != "run_finished" {
            let known: Vec<_> = span.attributes.iter().map(|attribute| attribute.key.clone()).collect();
            span.attributes.extend(to.attributes().into_iter().filter(|new| !known.contains(&new.key)));
        }
        self.spans.push(span);
    }
}

/// The spans of a run; none when its events cannot be read.
pub(super) fn of_run(run: &Ended, ids: &dyn IdGenerator) -> Vec<SpanData> {
    let moments: Vec<Moment> = run.events.iter().filter_map(|json| Moment::read(json)).collect();
    let Some(end) = moments.last() else { return Vec::new() };
    let took = end.fields.get("took_us").and_then(Value::as_f64).unwrap_or_default();
    let began = end.at - Duration::try_from_secs_f64(took / 1e6).unwrap_or_default();
    let (id, root) = (ids.new_trace_id(), ids.new_span_id());
    let mut trace = Trace { ids, id, root, spans: Vec::new() };
    let mut span = trace.span(root, format!("{} {}", run.command, run.service), began, end.at);
    span.attributes = vec![
        KeyValue::new("portguard.run", run.id.clone()),
        KeyValue::new("portguard.service", run.service.to_string()),
        KeyValue::new("portguard.command", run.command),
    ];
    span.attributes.extend(moments.first().and_then(endpoints));
    span.attributes.extend(end.attributes());
    let told = moments.iter().filter(|moment| !moment.is(&["run_started", "run_finished"]));
    let event = |moment: &Moment| Event::new(moment.word.clone(), moment.at, moment.attributes(), 0);
    span.events.events = told.clone().take(MOST_EVENTS).map(event).collect();
    span.events.dropped_count = u32::try_from(told.count().saturating_sub(MOST_EVENTS)).unwrap_or(u32::MAX);
    span.status = status(end);
    trace.spans.push(span);
    for Phase { name, begins, ends } in phases(&moments) {
        let Some(from) = moments.iter().position(|moment| moment.is(begins)) else { continue };
        let over = moments[from..].iter().find(|moment| moment.is(ends)).unwrap_or(end);
        trace.child(name.to_owned(), &moments[from], over);
    }
    for (index, sent) in moments.iter().enumerate().filter(|(_, moment)| moment.word == "signal_sent") {
        let mut later = moments[index + 1..].iter().filter(|moment| moment.is_about(sent));
        let over = later.find(|moment| moment.is(&["signal_sent", "owner_exited"])).unwrap_or(end);
        trace.child(sent.text("signal").unwrap_or("signal").to_owned(), sent, over);
    }
    trace.spans
}

fn endpoints(began: &Moment) -> Option<KeyValue> {
    let list = began.fields.get("endpoints")?.as_array()?;
    let text = |endpoint: &Value| {
        let address = endpoint["address"].as_str()?.parse().ok()?;
        let port = u16::try_from(endpoint["port"].as_u64()?).ok()?;
        Some(std::net::SocketAddr::new(address, port).to_string().into())
    };
    let list: Vec<StringValue> = list.iter().filter_map(text).collect();
    Some(KeyValue::new("portguard.endpoints", Attribute::Array(Array::String(list))))
}

/// Whoever waited for a gate and left it is no failure.
fn status(end: &Moment) -> Status {
    let outcome = end.text("outcome").unwrap_or_default();
    match end.fields.get("exit_code").and_then(Value::as_u64) {
        Some(0) => Status::Ok,
        _ if outcome == "abandoned" => Status::Unset,
        _ => Status::error(end.text("detail").unwrap_or(outcome).to_owned()),
    }
}
