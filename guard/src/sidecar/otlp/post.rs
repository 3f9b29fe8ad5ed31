//! The HTTP client that posts traces: one connection for each request.

use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use tokio::net::TcpStream;

/// A collector answers with a few bytes; what is longer is not read.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Posts what it is given, and remembers why the last one failed: the exporter does not tell.
#[derive(Debug)]
pub(super) struct Post {
    limit: Duration,
    why: Mutex<Option<String>>,
}

impl Post {
    pub(super) const fn new(limit: Duration) -> Self {
        Self { limit, why: Mutex::new(None) }
    }

    /// Why the last request had no answer.
    pub(super) fn why(&self) -> Option<String> {
        self.why.lock().ok().and_then(|mut why| why.take())
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = tokio::time::timeout(self.limit, exchange(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.limit).into()));
        if let (Err(error), Ok(mut why)) = (&answer, self.why.lock()) {
            *why = Some(error.to_string());
        }
        answer
    }
}

async fn exchange(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or("the URL has no host")?.as_str().to_owned();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    parts.uri = path;
    parts.headers.insert(HOST, HeaderValue::from_str(&authority)?);
    let stream = TcpStream::connect(&authority).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await?.to_bytes();
        Ok::<_, HttpError>(Response::from_parts(parts, body))
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The collector may close right after its answer, which is read then.
        ended = connection => {
            ended?;
            answer.await
        }
    }
}

// Written out, as `async_trait` would write it.
impl HttpClient for Post {
    fn send_bytes<'client, 'future>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'future>>
    where
        'client: 'future,
        Self: 'future,
    {
        Box::pin(self.send(request))
    }
}
