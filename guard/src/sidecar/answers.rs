//! Making responses.

use http_body_util::BodyExt as _;
use http_body_util::Full;
use http_body_util::combinators::BoxBody;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use std::convert::Infallible;

use super::documents::Problem;

/// Any response.
pub(super) type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Bytes of this type.
pub(super) fn text(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A document.
pub(super) fn json(status: StatusCode, document: &impl Serialize) -> Answer {
    // The documents have text keys only: there is nothing that JSON cannot say.
    let mut bytes = serde_json::to_vec(document).unwrap_or_default();
    bytes.push(b'\n');
    text(status, "application/json", bytes)
}

/// Anything that is no success.
pub(super) fn problem(status: StatusCode, error: &'static str, message: impl Into<String>) -> Answer {
    json(status, &Problem { error: error.into(), message: message.into() })
}

/// Nothing is there, or nothing that this client may see.
pub(super) fn not_found() -> Answer {
    problem(StatusCode::NOT_FOUND, "not_found", "there is nothing of that name, or not for you to see")
}

/// It is there, but takes another method.
pub(super) fn wrong_method(allowed: &'static str) -> Answer {
    let message = format!("this takes {allowed}");
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// The event loop that serves this has ended, or has too much to do.
pub(super) fn unavailable(message: &str) -> Answer {
    problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
}
