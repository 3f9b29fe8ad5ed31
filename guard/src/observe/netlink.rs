//! The netlink tier: the kernel's announcements of destroyed sockets, as facts.
//!
//! An announcement always comes after the bind bucket was released. It says
//! nothing of sockets that begin to listen, nor of TIME_WAIT: the run's own
//! looks find those.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use guard_core::gate::{Fact, Hint};
use guard_core::model::{Instant, Port, Snapshot, Socket, SocketCookie};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::MOST_AT_ONCE;
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
    ports: BTreeSet<Port>,
    /// Those on which the end of connections is wanted too.
    connections: BTreeSet<Port>,
    /// What was asked for as the receive buffer.
    asked: Option<usize>,
    /// The sockets without a peer that the last look at their port found.
    known: BTreeMap<SocketCookie, Port>,
    /// How many aborted connections were announced since then.
    aborted: BTreeMap<Port, u32>,
    /// Nothing was read yet.
    cold: bool,
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
        let source = Self {
            destroyed,
            ports: watched.iter().map(|watched| watched.port).collect(),
            connections: with_connections(watched),
            asked,
            known: BTreeMap::new(),
            aborted: BTreeMap::new(),
            cold: true,
        };
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
        self.ports = watched.iter().map(|watched| watched.port).collect();
        self.connections = with_connections(watched);
        self.aborted.retain(|port, _| self.ports.contains(port));
        self.make_room(watched);
        Ok(())
    }

    /// Tells what a look found. Of sockets without a peer only a listener or bound
    /// socket that a look has found is worth a hint: a bind probe's is announced
    /// like any other, and two guards on one port would keep each other awake.
    pub(super) fn look(&mut self, snapshot: &Snapshot, ports: &[Port]) {
        let elsewhere = |port: &Port| !ports.is_empty() && !ports.contains(port);
        self.known.retain(|_, port| elsewhere(port));
        self.aborted.retain(|port, _| elsewhere(port));
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
        let Self { destroyed, ports, connections, known, aborted, cold, .. } = self;
        let mut room = MOST_AT_ONCE;
        let mut take_in = |socket: Socket, facts: &mut VecDeque<Fact>| {
            room = room.saturating_sub(1);
            let next = if room == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let is_known = socket.cookie.is_some_and(|cookie| known.remove(&cookie).is_some());
            let hint = match socket.remote {
                None if is_known => Hint::SocketReleased { address: socket.address, port: socket.port },
                None => return next,
                Some((_, 0))
                    if ports.contains(&socket.port)
                        && has_doubled(aborted.entry(socket.port).or_default()) =>
                {
                    Hint::ConnectionAborted { port: socket.port }
                }
                Some(_) if connections.contains(&socket.port) => {
                    Hint::ConnectionReleased { port: socket.port }
                }
                Some(_) => return next,
            };
            let often = matches!(hint, Hint::ConnectionReleased { .. });
            facts.push_back(Fact::Hinted { hint, at: now() });
            // A gate may be waiting for this one; to find that there is no other takes a system call. The end of a
            // connection brings no probe, and hundreds may be waiting to be read.
            if often { next } else { ControlFlow::Break(()) }
        };
        if std::mem::take(cold) {
            // All that is slow for the first time only is done now (pages that are touched), and not when a gate waits.
            let destroyed = &mut destroyed.get_mut().0;
            destroyed.rehearse(|socket| take_in(socket, facts));
            told(destroyed.drain(|socket| take_in(socket, facts))?, facts);
            if !facts.is_empty() {
                return Ok(());
            }
        }
        let mut ready = destroyed.readable_mut().await?;
        let drained = ready.get_inner_mut().0.drain(|socket| take_in(socket, facts))?;
        if drained == Drained::Whole {
            ready.clear_ready();
        }
        told(drained, facts);
        Ok(())
    }
}

fn told(drained: Drained, facts: &mut VecDeque<Fact>) {
    if drained == Drained::Overrun {
        // The kernel does not say how many.
        facts.push_back(Fact::EventsLost { count: 1 });
    }
}

/// Whether one more makes it a power of two. A listener that closes aborts the connections that nobody accepted
/// (`inet_child_forget()`): they lose their peer's port, and are announced one by one, twenty microseconds each, normally
/// before the listener. A probe for each of them would be too much, also where a busy server aborts connections all day.
const fn has_doubled(count: &mut u32) -> bool {
    *count = count.saturating_add(1);
    count.is_power_of_two()
}

fn announced(watched: &[Watched]) -> Vec<Announced> {
    let announced = |&Watched { port, connections }: &Watched| Announced { port, connections };
    watched.iter().map(announced).collect()
}

fn with_connections(watched: &[Watched]) -> BTreeSet<Port> {
    watched.iter().filter(|watched| watched.connections).map(|watched| watched.port).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use guard_core::model::Owners;

    use super::*;
    use crate::kernel::sandbox::{REUSE, STRICT, bound, listening, netns, queued};
    use crate::observe::look::read_table;

    /// So many hints after a look at `port` and then `end`.
    fn told(port: Port, count: usize, end: impl FnOnce()) -> Vec<Hint> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut source = NetlinkSource::new(&[Watched { port, connections: false }], None).unwrap();
            let mut look = Snapshot {
                begun: Instant::from_nanos(0),
                ended: Instant::from_nanos(0),
                sockets: Vec::new(),
                processes: BTreeMap::new(),
                ancestors: BTreeMap::new(),
            };
            look.sockets.extend(read_table(&[port]).unwrap().into_iter().map(|row| (row, Owners::NoFile)));
            source.look(&look, &[]);
            end();
            let mut hints = Vec::new();
            while hints.len() < count {
                let mut facts = VecDeque::new();
                let filled = source.fill(&mut facts, || Instant::from_nanos(1));
                tokio::time::timeout(Duration::from_secs(10), filled)
                    .await
                    .expect("no end in sight")
                    .unwrap();
                hints.extend(facts.into_iter().filter_map(|fact| match fact {
                    Fact::Hinted { hint, .. } => Some(hint),
                    _ => None,
                }));
            }
            hints
        })
    }

    /// The gate stayed shut for 80 ms after a listener with 4,096 connections in its queue was gone.
    #[test]
    fn a_queue_that_nobody_accepted_is_told_of_as_it_goes() {
        netns("a_queue_that_nobody_accepted_is_told_of_as_it_goes", || {
            let (listener, port) = listening("127.0.0.1", None, REUSE);
            let queue = queued(Ipv4Addr::LOCALHOST, port, 10);
            let hints = told(port, 5, move || drop(listener));
            // The first, the second, the fourth and the eighth.
            let aborted = hints.iter().filter(|hint| **hint == Hint::ConnectionAborted { port }).count();
            let released = Hint::SocketReleased { address: Ipv4Addr::LOCALHOST.into(), port };
            assert_eq!((aborted, hints.contains(&released)), (4, true), "{hints:?}");
            drop(queue);
        });
    }

    /// Two guards would keep each other awake.
    #[test]
    fn a_probe_is_no_reason_to_probe() {
        netns("a_probe_is_no_reason_to_probe", || {
            let (listener, port) = listening("127.0.0.1", None, REUSE);
            let hints = told(port, 1, move || {
                (0..20).for_each(|_| drop(bound("127.0.0.2", Some(port), STRICT)));
                drop(listener);
            });
            assert_eq!(hints, [Hint::SocketReleased { address: Ipv4Addr::LOCALHOST.into(), port }]);
        });
    }
}
