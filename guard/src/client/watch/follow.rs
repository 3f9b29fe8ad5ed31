//! Following the event stream across the lives of the sidecar.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::client::ClientError;
use crate::client::connection::Connection;
use crate::client::events::{Event, What};
use crate::client::sse::Told;
use crate::sidecar::documents::{RunDocument, ServiceList, ServiceSummary};

/// Between two attempts to reach a sidecar that is gone.
const RETRY: Duration = Duration::from_millis(300);

/// News that wait to be shown. Then the sidecar waits, and tells how much it left out.
const WAITING: usize = 256;

/// Besides the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Documents {
    /// The services and their runs, at the beginning and after each gap.
    Wanted,
    /// Nothing.
    Unwanted,
}

/// What the sidecar says of its services.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) services: Vec<ServiceSummary>,
    /// The restart of each that is under way, or was the last.
    pub(super) runs: Vec<RunDocument>,
}

/// Something to show.
#[derive(Debug)]
pub(super) enum News {
    /// The stream has begun, or begun again, or has a gap.
    Known(Known),
    /// An event.
    Told(Told),
    /// There is no sidecar, or it cannot be asked.
    Lost(ClientError),
}

/// Follows the sidecar behind `socket` on a task of its own, which ends when nobody takes its news.
/// Names that are sent have that service looked at now.
pub(super) fn follow(socket: PathBuf, documents: Documents) -> (mpsc::Receiver<News>, mpsc::Sender<String>) {
    let (news, inbox) = mpsc::channel(WAITING);
    let (looks, asked) = mpsc::channel(1);
    let mut follower = Follower { socket, documents, news, asked, last_id: None };
    tokio::spawn(async move {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            retry.tick().await;
            let End::Lost(error) = follower.once().await else { return };
            if follower.tell(News::Lost(error)).await.is_err() {
                return;
            }
        }
    });
    (inbox, looks)
}

struct Follower {
    socket: PathBuf,
    documents: Documents,
    news: mpsc::Sender<News>,
    asked: mpsc::Receiver<String>,
    last_id: Option<String>,
}

/// Why one connection's worth of following is over.
enum End {
    /// The sidecar is gone.
    Lost(ClientError),
    /// Nobody takes the news.
    Unread,
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        Self::Lost(error)
    }
}

impl Follower {
    async fn tell(&self, news: News) -> Result<(), End> {
        self.news.send(news).await.map_err(|_| End::Unread)
    }

    async fn once(&mut self) -> End {
        match self.try_once().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_once(&mut self) -> Result<std::convert::Infallible, End> {
        // The stream comes first: then nothing falls between it and the documents.
        let connection = Connection::open(&self.socket).await?;
        let mut events = connection.events(self.last_id.as_deref()).await?;
        self.tell(News::Known(self.known(None).await?)).await?;
        loop {
            let told = tokio::select! {
                told = events.next() => told?,
                // Without anybody to ask there are no more wishes, and that is no end.
                Some(name) = self.asked.recv() => {
                    self.tell(News::Known(self.known(Some(&name)).await?)).await?;
                    continue;
                }
            };
            self.last_id = Some(told.id.clone());
            let gap = matches!(Event::parse(&told.json).map(|event| event.what), Some(What::Lagged { .. }));
            self.tell(News::Told(told)).await?;
            if gap && self.documents == Documents::Wanted {
                self.tell(News::Known(self.known(None).await?)).await?;
            }
        }
    }

    /// Asks for the documents; has `look` looked at before.
    async fn known(&self, look: Option<&str>) -> Result<Known, ClientError> {
        if self.documents == Documents::Unwanted {
            return Ok(Known::default());
        }
        let mut connection = Connection::open(&self.socket).await?;
        if let Some(name) = look {
            // What is new comes as an event; a service that is gone is missed below.
            let _seen: Result<serde_json::Value, _> = connection.get(&format!("/v1/services/{name}")).await;
        }
        let ServiceList { services } = connection.get("/v1/services").await?;
        let mut runs = Vec::new();
        for id in services.iter().filter_map(|service| service.run.as_ref().or(service.last_run.as_ref())) {
            match connection.get(&format!("/v1/runs/{id}")).await {
                Ok(run) => runs.push(run),
                // It was forgotten meanwhile.
                Err(ClientError::Refused { code: 404, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Known { services, runs })
    }
}
