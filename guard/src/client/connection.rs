//! One connection to a running sidecar: HTTP/1.1 over its Unix socket.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::sse::{Told, Unread};
use crate::sidecar::documents::Problem;

/// An answer that is longer was not written by a sidecar that means well.
const LONGEST_ANSWER: usize = 64 * 1024 * 1024;

/// The sidecar cannot be asked, or its answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket, or nobody listens on it.
    #[error(
        "no sidecar answers at {}: {source}; start one (`systemctl start portguard.service`, or `portguard run`), \
         or name its socket with --socket",
        path.display()
    )]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket is not for this user.
    #[error(
        "this user may not connect to the sidecar at {}: {source}; `mode` and `group` of its configuration say who may",
        path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection ended before the answer did.
    #[error("the sidecar at {} broke off: {why}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What ended it.
        why: String,
    },
    /// The sidecar said no.
    #[error("the sidecar answered {code}: {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// Its stable word.
        error: String,
        /// Its sentence.
        message: String,
    },
    /// The answer is not what this version expects.
    #[error("the sidecar's answer to {request} cannot be read: {why}")]
    Nonsense {
        /// What was asked.
        request: String,
        /// What is wrong with the answer.
        why: String,
    },
}

/// A connection on which one request follows the other.
#[derive(Debug)]
pub(super) struct Connection {
    path: PathBuf,
    /// Whose process listens; `None` when that cannot be told.
    pub(super) peer: Option<u32>,
    sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects. Needs a running tokio reactor.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub(super) async fn open(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).await.map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                std::io::ErrorKind::PermissionDenied => ClientError::Denied { path, source },
                _ => ClientError::Absent { path, source },
            }
        })?;
        let peer = stream.peer_cred().ok().map(|credentials| credentials.uid());
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| broken(path, &e))?;
        // Its end is seen by whoever waits for an answer.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { path: path.to_owned(), peer, sender, driver })
    }

    /// `GET target`, as a document.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub(super) async fn get<T: DeserializeOwned>(&mut self, target: &str) -> Result<T, ClientError> {
        let answer = self.ask(Method::GET, target, &[]).await?;
        self.document(target, answer).await
    }

    /// `POST target`, as a document.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub(super) async fn post<T: DeserializeOwned>(&mut self, target: &str) -> Result<T, ClientError> {
        let answer = self.ask(Method::POST, target, &[]).await?;
        self.document(target, answer).await
    }

    /// The event stream, from the event after `last_id`.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub(super) async fn events(self, last_id: Option<&str>) -> Result<Events, ClientError> {
        self.stream("/v1/events", last_id).await
    }

    /// The events of one service, from the event after `last_id`, or from now on.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub(super) async fn events_of(self, service: &str, last_id: Option<&str>) -> Result<Events, ClientError> {
        self.stream(&format!("/v1/events?service={service}"), last_id).await
    }

    async fn stream(mut self, target: &str, last_id: Option<&str>) -> Result<Events, ClientError> {
        let accept = ("accept", "text/event-stream");
        let headers: Vec<_> = [accept].into_iter().chain(last_id.map(|id| ("last-event-id", id))).collect();
        let answer = self.ask(Method::GET, target, &headers).await?;
        Ok(Events { body: answer.into_body(), unread: Unread::default(), connection: self })
    }

    async fn ask(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Incoming>, ClientError> {
        let builder = Request::builder().method(method).uri(target).header(HOST, "portguard");
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        let nonsense = |why: String| ClientError::Nonsense { request: target.to_owned(), why };
        let request = builder.body(Empty::new()).map_err(|error| nonsense(error.to_string()))?;
        self.sender.ready().await.map_err(|error| broken(&self.path, &error))?;
        let answer = self.sender.send_request(request).await.map_err(|error| broken(&self.path, &error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status().as_u16();
        let problem: Problem = match self.document(target, answer).await {
            Ok(problem) => problem,
            // The answer for which there was no room has no body.
            Err(ClientError::Nonsense { .. }) if code == 503 => {
                Problem { error: "full".into(), message: "it serves as many clients as it may".to_owned() }
            }
            Err(error) => return Err(error),
        };
        Err(ClientError::Refused { code, error: problem.error.into_owned(), message: problem.message })
    }

    async fn document<T: DeserializeOwned>(
        &self,
        target: &str,
        answer: Response<Incoming>,
    ) -> Result<T, ClientError> {
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| broken(&self.path, &*error))?.to_bytes();
        let nonsense = |error: serde_json::Error| ClientError::Nonsense {
            request: target.to_owned(),
            why: error.to_string(),
        };
        serde_json::from_slice(&body).map_err(nonsense)
    }
}

fn broken(path: &Path, error: &(dyn std::error::Error + 'static)) -> ClientError {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let why: Vec<String> = causes.map(ToString::to_string).collect();
    ClientError::Broken { path: path.to_owned(), why: why.join(": ") }
}

/// The event stream.
#[derive(Debug)]
pub(super) struct Events {
    body: Incoming,
    unread: Unread,
    connection: Connection,
}

impl Events {
    /// The next event. Cancel safe.
    ///
    /// # Errors
    ///
    /// When the stream has ended, or is none.
    pub(super) async fn next(&mut self) -> Result<Told, ClientError> {
        let path = &self.connection.path;
        loop {
            if let Some(told) = self.unread.next() {
                return Ok(told);
            }
            let frame = self.body.frame().await.ok_or_else(|| ClientError::Broken {
                path: path.clone(),
                why: "it ended the stream".to_owned(),
            })?;
            let frame = frame.map_err(|error| broken(path, &error))?;
            if let Some(bytes) = frame.data_ref()
                && !self.unread.push(bytes)
            {
                let request = "/v1/events".to_owned();
                return Err(ClientError::Nonsense { request, why: "an event without an end".to_owned() });
            }
        }
    }
}
