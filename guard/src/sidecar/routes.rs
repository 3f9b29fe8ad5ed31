//! What can be asked.

mod openapi;

use std::sync::Arc;
use std::time::Duration;

use guard_core::model::Instant;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use hyper::{Method, Request, StatusCode};
use tokio::sync::oneshot;

use super::access::Peer;
use super::answers::{Answer, json, not_found, problem, text, unavailable, wrong_method};
use super::documents::{GateDocument, Health, RunAccepted, ServiceList};
use super::server::Shared;
use super::stream::{self, Format};
use crate::report::outcome_code;
use crate::runtime::engine::{Kind, Refused, Request as Ask};
use crate::runtime::spelling::parse_duration;

/// How long a client waits for a look that it asked for; what is known is answered then.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// Answers one request.
pub(super) async fn answer(shared: &Arc<Shared>, peer: &Peer, request: &Request<Incoming>) -> Answer {
    if has_body(request.headers()) {
        // No request has one, so none is ever read.
        let mut refused =
            problem(StatusCode::PAYLOAD_TOO_LARGE, "no_body_wanted", "requests have no body here");
        refused
            .headers_mut()
            .insert(hyper::header::CONNECTION, hyper::header::HeaderValue::from_static("close"));
        shared.hub().metrics.refused += 1;
        return refused;
    }
    let method = request.method();
    let path: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    let query = request.uri().query();
    match path.as_slice() {
        ["v1", "services"] => get(method, || services(shared, peer)),
        ["v1", "services", name] if method == Method::GET => service(shared, peer, name, query).await,
        ["v1", "services", _] => wrong_method("GET"),
        ["v1", "services", name, "restart"] if method == Method::POST => {
            begin(shared, peer, name, Kind::Restart).await
        }
        ["v1", "services", name, "free"] if method == Method::POST => {
            begin(shared, peer, name, Kind::Free).await
        }
        ["v1", "services", _, "restart" | "free"] => wrong_method("POST"),
        ["v1", "runs", id] if method == Method::GET => run(shared, peer, id, query).await,
        ["v1", "runs", _] => wrong_method("GET"),
        ["v1", "events"] => get(method, || events(shared, peer, request)),
        ["v1", "gate", name] if method == Method::GET => gate(shared, peer, name, query).await,
        ["v1", "gate", _] => wrong_method("GET"),
        ["metrics"] => get(method, || metrics(shared, peer)),
        ["healthz"] if method == Method::GET => health(shared).await,
        ["healthz"] => wrong_method("GET"),
        ["openapi.json"] => get(method, || json(StatusCode::OK, &openapi::document())),
        _ => not_found(),
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).map(|length| length != "0");
    length.unwrap_or(false) || headers.contains_key(TRANSFER_ENCODING)
}

fn get(method: &Method, answer: impl FnOnce() -> Answer) -> Answer {
    if method == Method::GET { answer() } else { wrong_method("GET") }
}

fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
}

/// A span of time in the query.
fn span(query: Option<&str>, name: &str) -> Result<Option<Duration>, String> {
    let wrong = |error| format!("{name}: {error}; write 500ms, 3s or 2m");
    parameter(query, name).map(parse_duration).transpose().map_err(wrong)
}

/// Asks the event loop of a service, unless it has too much to do or has ended.
async fn ask(shared: &Shared, service: &str, ask: Ask) -> bool {
    shared.engines.read().await.of(service).is_some_and(|requests| requests.try_send(ask).is_ok())
}

fn services(shared: &Shared, peer: &Peer) -> Answer {
    let (hub, access) = (shared.hub(), shared.access());
    let visible = access.names().filter(|name| access.may_observe(peer, name));
    let services = visible.map(|name| hub.summary(name, access.profile(name))).collect();
    json(StatusCode::OK, &ServiceList { services })
}

async fn service(shared: &Shared, peer: &Peer, name: &str, query: Option<&str>) -> Answer {
    let after = match parameter(query, "after").map(str::parse).transpose() {
        Ok(after) => after.map(Instant::from_nanos),
        Err(error) => return problem(StatusCode::BAD_REQUEST, "bad_request", format!("after: {error}")),
    };
    let access = shared.access();
    let Some(name) = access.visible(peer, name) else { return not_found() };
    let (reply, looked) = oneshot::channel();
    let asked = ask(shared, &name, Ask::Look { service: Arc::clone(&name), after, reply }).await;
    if asked {
        // What was found before the loop answered is in the hub as soon as the hub's task has run.
        let _late = tokio::time::timeout(LOOK_TIME, looked).await;
        tokio::task::yield_now().await;
    }
    json(StatusCode::OK, &shared.hub().service(&name, access.profile(&name)))
}

/// Begins a run that ends processes.
async fn begin(shared: &Arc<Shared>, peer: &Peer, name: &str, kind: Kind) -> Answer {
    let access = shared.access();
    let Some(name) = access.visible(peer, name) else { return not_found() };
    // Whoever may restart a service may not leave it stopped.
    let free = kind == Kind::Free;
    let may = if free { access.is_superior(peer) } else { access.may_control(peer, &name) };
    if !may {
        shared.hub().metrics.refused += 1;
        let why = if free {
            "nothing is started again, so only root and the sidecar's own user may"
        } else {
            "see `control` in the configuration"
        };
        let message = format!("uid {} may not {} {name}: {why}", peer.uid, kind.name());
        return problem(StatusCode::FORBIDDEN, "forbidden", message);
    }
    let (reply, answer) = oneshot::channel();
    let service = Arc::clone(&name);
    let asked = if free { Ask::Free { service, reply } } else { Ask::Restart { service, reply } };
    let (place, after) = {
        // One reading: a reload must not move the service between the check and the question.
        let engines = shared.engines.read().await;
        let place = engines.place_of(&name);
        let elsewhere = shared.hub().under_way_elsewhere(&name, place.as_ref());
        if let Some((number, kind)) = elsewhere {
            // A reload has moved the service to another event loop, which knows nothing of that run.
            return refusal(shared, peer, &Refused::Other(number, kind));
        }
        let after = shared.hub().newest_event_id();
        if engines.of(&name).is_none_or(|requests| requests.try_send(asked).is_err()) {
            return unavailable("the event loop of this service has too much to do, or has ended");
        }
        (place, after)
    };
    // Where the run goes on is kept whether the client stays or not.
    let told = Arc::clone(shared);
    let answered = tokio::spawn(async move {
        let answer = answer.await;
        if let Ok(Ok(ticket)) = &answer {
            told.hub().begun(ticket.number, &name, kind, place);
        }
        (name, answer)
    });
    let ended = || unavailable("the event loop of this service has ended");
    let Ok((name, answer)) = answered.await else { return ended() };
    match answer {
        Ok(Ok(ticket)) => {
            let run = shared.hub().run_id(ticket.number);
            let accepted = RunAccepted { service: name.to_string(), run, joined: ticket.joined, after };
            json(StatusCode::ACCEPTED, &accepted)
        }
        Ok(Err(refused)) => refusal(shared, peer, &refused),
        Err(_) => ended(),
    }
}

fn refusal(shared: &Shared, peer: &Peer, refused: &Refused) -> Answer {
    match refused {
        Refused::NoService => not_found(),
        Refused::NoRestart => problem(StatusCode::CONFLICT, "no_restart", refused.to_string()),
        Refused::Outdated(number) => {
            let run = shared.hub().run_id(*number);
            problem(StatusCode::CONFLICT, "outdated_run", format!("run {run}: {refused}"))
        }
        Refused::SamePort(_, _, other) if shared.access().visible(peer, other).is_none() => {
            let message = "a run of another service that needs the same port is under way; ask again later";
            problem(StatusCode::CONFLICT, "other_run", message)
        }
        Refused::Other(number, _) | Refused::SamePort(number, ..) => {
            let run = shared.hub().run_id(*number);
            problem(StatusCode::CONFLICT, "other_run", format!("run {run}: {refused}"))
        }
        Refused::IsUnit(_) => problem(StatusCode::CONFLICT, "is_unit", refused.to_string()),
        Refused::Asker(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", refused.to_string()),
    }
}

async fn run(shared: &Shared, peer: &Peer, id: &str, query: Option<&str>) -> Answer {
    let wait = match span(query, "wait") {
        Ok(wait) => wait.unwrap_or_default(),
        Err(why) => return problem(StatusCode::BAD_REQUEST, "bad_request", why),
    };
    let access = shared.access();
    let mut news = shared.hub().news();
    let document = || shared.hub().run_document(id, |service| access.may_observe(peer, service));
    let finished = async {
        while document().is_some_and(|document| document.state != "finished") {
            if news.changed().await.is_err() {
                break;
            }
        }
    };
    // At the deadline the answer is how far the run has come.
    let _late = tokio::time::timeout(wait, finished).await;
    document().map_or_else(not_found, |document| json(StatusCode::OK, &document))
}

fn events(shared: &Arc<Shared>, peer: &Peer, request: &Request<Incoming>) -> Answer {
    let service = match parameter(request.uri().query(), "service") {
        Some(name) => match shared.access().visible(peer, name) {
            Some(name) => Some(name),
            None => return not_found(),
        },
        None => None,
    };
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let lines = header(ACCEPT.as_str()).is_some_and(|accept| accept.contains("application/x-ndjson"));
    let format = if lines { Format::Lines } else { Format::Sse };
    stream::answer(shared, peer, service, format, header("last-event-id"))
}

async fn gate(shared: &Shared, peer: &Peer, name: &str, query: Option<&str>) -> Answer {
    let Some(name) = shared.access().visible(peer, name) else { return not_found() };
    let timeout = match span(query, "timeout") {
        Ok(timeout) => timeout,
        Err(why) => return problem(StatusCode::BAD_REQUEST, "bad_request", why),
    };
    let place = shared.engines.read().await.place_of(&name);
    let (reply, opened) = oneshot::channel();
    if !ask(shared, &name, Ask::Gate { service: Arc::clone(&name), reply }).await {
        return unavailable("the event loop of this service has too much to do, or has ended");
    }
    let answer = match timeout {
        // Dropping the receiver ends the waiting.
        Some(timeout) => match tokio::time::timeout(timeout, opened).await {
            Ok(answer) => answer,
            Err(_) => {
                let message = format!("{name} was still not bindable after {timeout:?}");
                return problem(StatusCode::GATEWAY_TIMEOUT, "still_busy", message);
            }
        },
        None => opened.await,
    };
    match answer {
        Ok(Ok(Ok(opened))) => {
            let mut hub = shared.hub();
            hub.begun(opened.number, &name, Kind::Gate, place);
            let run = hub.run_id(opened.number);
            drop(hub);
            let document = GateDocument {
                service: name.to_string(),
                run,
                open: true,
                probed_mono_ns: opened.proof.probed.as_nanos(),
                release_latency_us: opened.proof.release_latency.map(|span| span.as_secs_f64() * 1e6),
            };
            json(StatusCode::OK, &document)
        }
        Ok(Ok(Err(outcome))) => {
            let message = format!("the gate of {name} did not open");
            problem(StatusCode::CONFLICT, outcome_code(&outcome), message)
        }
        Ok(Err(refused)) => refusal(shared, peer, &refused),
        Err(_) => unavailable("the sidecar stopped waiting: it is being stopped"),
    }
}

fn metrics(shared: &Shared, peer: &Peer) -> Answer {
    let access = shared.access();
    let seen: Vec<Arc<str>> = access.names().filter(|name| access.may_observe(peer, name)).cloned().collect();
    let sees_all = seen.len() == access.names().count();
    let body = shared.hub().metrics_text(&seen, shared.clients(), sees_all);
    text(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
}

async fn health(shared: &Shared) -> Answer {
    let alive = shared.engines.read().await.all_alive();
    let (status, word) =
        if alive { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "degraded") };
    let document = Health {
        status: word.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tier: shared.hub().lowest_tier().to_owned(),
        services: shared.access().names().count(),
    };
    json(status, &document)
}
