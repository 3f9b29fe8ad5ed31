//! Connections: who they are, how many there may be, how long they may take.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tracing::debug;

use super::access::{Access, Peer};
use super::engines::Engines;
use super::hub::Hub;
use super::routes;
use crate::runtime::daemon;

/// How long a client may take for the head of a request, and stay without one.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// The longest head of a request.
const HEAD_BYTES: usize = 16 * 1024;

/// So many are not refused at once: each costs a descriptor meanwhile, and nobody's share bounds them.
const MOST_WAITING: usize = 64;

/// What is told to a client for which there is no room.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What all connections share. Each lock is held for the time of a copy and
/// never across a wait; event loops take none of them.
#[derive(Debug)]
pub(super) struct Shared {
    hub: Mutex<Hub>,
    access: Mutex<Arc<Access>>,
    pub(super) engines: tokio::sync::RwLock<Engines>,
    clients: Mutex<Clients>,
    gone: Notify,
}

#[derive(Debug, Default)]
struct Clients {
    most: usize,
    by_user: BTreeMap<u32, usize>,
    /// Those who found no place and look once more before they are refused.
    waiting: usize,
}

impl Shared {
    pub(super) fn new(hub: Hub, access: Access, engines: Engines, most_clients: usize) -> Self {
        let clients = Clients { most: most_clients, ..Clients::default() };
        Self {
            hub: Mutex::new(hub),
            access: Mutex::new(Arc::new(access)),
            engines: tokio::sync::RwLock::new(engines),
            clients: Mutex::new(clients),
            gone: Notify::new(),
        }
    }

    pub(super) fn hub(&self) -> MutexGuard<'_, Hub> {
        unpoisoned(&self.hub)
    }

    pub(super) fn access(&self) -> Arc<Access> {
        Arc::clone(&unpoisoned(&self.access))
    }

    /// Other rules hold from now on, for open connections too.
    pub(super) fn set_access(&self, access: Access, most_clients: usize) {
        let known = self.hub().known();
        let mut held = unpoisoned(&self.access);
        *held = Arc::new(access.after(&held, &known));
        drop(held);
        unpoisoned(&self.clients).most = most_clients;
    }

    /// Resolves when a connection has ended.
    pub(super) async fn a_client_goes(&self) {
        self.gone.notified().await;
    }

    /// How many connections there are.
    pub(super) fn clients(&self) -> usize {
        unpoisoned(&self.clients).by_user.values().sum()
    }
}

/// Whoever panicked while it held the lock left nothing half done: every change is one assignment or push.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One place among the connections, given back when it is dropped.
struct Seat {
    shared: Arc<Shared>,
    user: u32,
}

impl Seat {
    /// No user but the superuser takes more than half of the places, so that one
    /// who misbehaves does not lock the others out.
    fn take(shared: &Arc<Shared>, user: u32) -> Option<Self> {
        let mut clients = unpoisoned(&shared.clients);
        let all: usize = clients.by_user.values().sum();
        let own = clients.by_user.get(&user).copied().unwrap_or(0);
        let share = if user == 0 { clients.most } else { clients.most.div_ceil(2) };
        if all >= clients.most || own >= share {
            return None;
        }
        *clients.by_user.entry(user).or_default() += 1;
        Some(Self { shared: Arc::clone(shared), user })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut clients = unpoisoned(&self.shared.clients);
        if let Some(count) = clients.by_user.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                clients.by_user.remove(&self.user);
            }
        }
        drop(clients);
        self.shared.gone.notify_waiters();
    }
}

/// One of those who look once more; there is room for [`MOST_WAITING`], whoever they are.
struct Waiting(Arc<Shared>);

impl Waiting {
    fn begin(shared: &Arc<Shared>) -> Option<Self> {
        let mut clients = unpoisoned(&shared.clients);
        if clients.waiting >= MOST_WAITING {
            return None;
        }
        clients.waiting += 1;
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        unpoisoned(&self.0.clients).waiting -= 1;
    }
}

fn refuse(shared: &Shared, stream: &UnixStream) {
    shared.hub().metrics.refused += 1;
    // It may not even be reading: it is told if that takes no time.
    let _unheard = stream.try_write(FULL);
}

/// Serves one connection to its end, on a task of its own.
pub(super) fn take(shared: &Arc<Shared>, stream: UnixStream) {
    let peer = match peer(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            // It cannot be told who it is, so nothing is allowed.
            debug!(%error, "a client cannot be identified");
            return;
        }
    };
    if let Some(seat) = Seat::take(shared, peer.uid) {
        serve(seat, peer, stream);
        return;
    }
    let Some(waiting) = Waiting::begin(shared) else {
        refuse(shared, &stream);
        return;
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        // Whoever left before this one came has made room, though that task may not have run since: this one goes on
        // behind all that the kernel has told of until now.
        tokio::task::yield_now().await;
        drop(waiting);
        match Seat::take(&shared, peer.uid) {
            Some(seat) => serve(seat, peer, stream),
            None => refuse(&shared, &stream),
        }
    });
}

fn serve(seat: Seat, peer: Peer, stream: UnixStream) {
    tokio::spawn(async move {
        let shared = &seat.shared;
        let answer = service_fn(|request| {
            let (shared, peer) = (Arc::clone(shared), peer.clone());
            async move { Ok::<_, Infallible>(routes::answer(&shared, &peer, &request).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), answer)
            .await;
        if let Err(error) = served {
            debug!(%error, uid = peer.uid, "a connection broke off");
        }
    });
}

fn peer(stream: &UnixStream) -> std::io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let mut groups = daemon::peer_groups(stream)?;
    groups.push(credentials.gid());
    Ok(Peer { uid: credentials.uid(), groups })
}
