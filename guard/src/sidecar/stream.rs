//! The event stream as a response: each reader has a place in the history and
//! takes events when its connection has room. Nobody waits for it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use tokio::sync::watch;

use super::access::Peer;
use super::answers::Answer;
use super::hub::{Cursor, Kept};
use super::server::Shared;

/// Events that a reader is given at once.
const AT_ONCE: usize = 64;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `text/event-stream`
    Sse,
    /// `application/x-ndjson`
    Lines,
}

struct Reader {
    shared: Arc<Shared>,
    peer: Peer,
    service: Option<Arc<str>>,
    format: Format,
    cursor: Cursor,
    news: watch::Receiver<u64>,
}

impl Reader {
    /// The next events as text; waits until there are any. `None`: there will be no more.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            self.news.borrow_and_update();
            let mut out = Vec::new();
            {
                let mut hub = self.shared.hub();
                let access = self.shared.access();
                let may_see = |name: &str| {
                    access.may_observe(&self.peer, name)
                        && self.service.as_ref().is_none_or(|only| **only == *name)
                };
                let (events, cursor) = hub.read(&self.cursor, AT_ONCE, may_see);
                let moved = cursor != self.cursor;
                self.cursor = cursor;
                for kept in &events {
                    self.write(&mut out, kept, &hub.event_id(kept.seq));
                }
                if out.is_empty() && moved {
                    continue;
                }
            }
            if !out.is_empty() {
                return Some((out.into(), self));
            }
            self.news.changed().await.ok()?;
        }
    }

    fn write(&self, out: &mut Vec<u8>, kept: &Kept, id: &str) {
        match self.format {
            Format::Sse => {
                let event = format!("id: {id}\nevent: {}\ndata: {}\n\n", kept.kind, kept.json);
                out.extend_from_slice(event.as_bytes());
            }
            Format::Lines => {
                out.extend_from_slice(kept.json.as_bytes());
                out.push(b'\n');
            }
        }
    }
}

type Step = Pin<Box<dyn Future<Output = Option<(Bytes, Reader)>> + Send + Sync>>;

struct EventBody(Option<Step>);

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(step) = &mut self.0 else { return Poll::Ready(None) };
        match step.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.0 = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some((bytes, reader))) => {
                self.0 = Some(Box::pin(reader.next()));
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }
}

/// The stream for `peer`, from the event after `last_id`.
pub(super) fn answer(
    shared: &Arc<Shared>,
    peer: &Peer,
    service: Option<Arc<str>>,
    format: Format,
    last_id: Option<&str>,
) -> Answer {
    let (cursor, news) = {
        let hub = shared.hub();
        (hub.cursor(last_id), hub.news())
    };
    let reader = Reader { shared: Arc::clone(shared), peer: peer.clone(), service, format, cursor, news };
    let mut answer = Response::new(EventBody(Some(Box::pin(reader.next()))).boxed());
    let kind = match format {
        Format::Sse => "text/event-stream",
        Format::Lines => "application/x-ndjson",
    };
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
