//! The netlink tier: the kernel's announcements of destroyed sockets, as facts.
//!
//! An announcement always comes after the bind bucket was released. It says
//! nothing of sockets that begin to listen, nor of TIME_WAIT: the run's own
//! looks find those.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use guard_core::gate::{Fact, Hint};
use guard_core::model::{Instant, Port, Snapshot, SocketCookie};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, trace};

use super::tier::Watched;
use crate::kernel::sock_diag::{Announced, DestroyedSockets, Drained, SockDiagError};

/// For so many ports the system's default has room, whatever that is.
const FEW_PORTS: usize = 32;

/// What one port's share of the receive buffer is beyond that: a look at all of them ends with each one's probe, which is
/// announced like any other socket, and whoever is told that something was lost has to look again.
const PORT_BYTES: usize = 4096;

/// No more than this, however many ports.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// A subscription in the event loop.
#[derive(Debug)]
pub(super) struct NetlinkSource {
    destroyed: AsyncFd<DestroyedFd>,
    /// The ports on which the end of connections is wanted too.
    connections: BTreeSet<Port>,
    /// What was asked for as the receive buffer.
    asked: Option<usize>,
    /// The sockets without a peer that the last look at their port found.
    known: BTreeMap<SocketCookie, Port>,
}

#[derive(Debug)]
struct DestroyedFd(DestroyedSockets);

impl AsRawFd for DestroyedFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The subscription could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("cannot learn of destroyed sockets: {0}")]
    Subscribe(#[from] SockDiagError),
    /// It could not be connected to the event loop.
    #[error("cannot wait for destroyed sockets: {0}")]
    Reactor(#[from] io::Error),
}

impl NetlinkSource {
    /// Needs a running tokio reactor. `buffer` asks for that many bytes of
    /// receive buffer.
    pub(super) fn new(watched: &[Watched], buffer: Option<u32>) -> Result<Self, NetlinkError> {
        let asked = buffer.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let destroyed = DestroyedFd(DestroyedSockets::subscribe(&announced(watched), asked)?);
        // SAFETY: the subscription owns its descriptor, keeps it for its whole life and always names the same one.
        let destroyed = unsafe { AsyncFd::register_with_interest(destroyed, Interest::READABLE) }
            .map_err(io::Error::from)?;
        let source =
            Self { destroyed, connections: with_connections(watched), asked, known: BTreeMap::new() };
        source.make_room(watched);
        Ok(source)
    }

    fn make_room(&self, watched: &[Watched]) {
        if self.asked.is_some() || watched.len() <= FEW_PORTS {
            return;
        }
        let bytes = watched.len().saturating_mul(PORT_BYTES).min(MOST_BYTES);
        if let Err(error) = self.destroyed.get_ref().0.make_room(bytes) {
            debug!(%error, "some announcements may be lost, which leads to another look");
        }
    }

    /// Listens to these ports from now on, and no others.
    pub(super) fn watch(&mut self, watched: &[Watched]) -> Result<(), NetlinkError> {
        self.destroyed.get_ref().0.listen_to(&announced(watched))?;
        self.connections = with_connections(watched);
        self.make_room(watched);
        Ok(())
    }

    /// Tells what a look found. Only a listener or bound socket that a look has
    /// found is worth a hint: a bind probe's socket is announced like any other,
    /// and two guards on one port would keep each other awake.
    pub(super) fn look(&mut self, snapshot: &Snapshot, ports: &[Port]) {
        self.known.retain(|_, port| !ports.is_empty() && !ports.contains(port));
        let sockets = snapshot.sockets.iter().map(|(socket, _)| socket);
        self.known.extend(
            sockets
                .filter(|socket| socket.remote.is_none())
                .filter_map(|socket| Some((socket.cookie?, socket.port))),
        );
    }

    /// Waits for announcements and appends them as facts. Cancel safe.
    pub(super) async fn fill(
        &mut self,
        facts: &mut VecDeque<Fact>,
        now: fn() -> Instant,
    ) -> Result<(), NetlinkError> {
        // Cleared first: what arrives during the drain makes it ready again.
        self.destroyed.readable_mut().await?.clear_ready();
        let Self { destroyed, connections, known, .. } = self;
        let drained = destroyed.get_mut().0.drain(|socket| {
            trace!(?socket, "destroyed");
            let is_known = socket.cookie.is_some_and(|cookie| known.remove(&cookie).is_some());
            let hint = match socket.remote {
                None if is_known => Hint::SocketReleased { address: socket.address, port: socket.port },
                None => return,
                Some(_) if connections.contains(&socket.port) => {
                    Hint::ConnectionReleased { port: socket.port }
                }
                Some(_) => return,
            };
            facts.push_back(Fact::Hinted { hint, at: now() });
        })?;
        if drained == Drained::Overrun {
            // The kernel does not say how many.
            facts.push_back(Fact::EventsLost { count: 1 });
        }
        Ok(())
    }
}

fn announced(watched: &[Watched]) -> Vec<Announced> {
    let announced = |&Watched { port, connections }: &Watched| Announced { port, connections };
    watched.iter().map(announced).collect()
}

fn with_connections(watched: &[Watched]) -> BTreeSet<Port> {
    watched.iter().filter(|watched| watched.connections).map(|watched| watched.port).collect()
}
