//! Reading the socket table, the owners and the evidence on them.
//!
//! Walking every process's descriptors takes milliseconds on a busy machine even
//! where BPF does it, so full snapshots are taken on a thread of their own: nothing that they do
//! delays the opening of a gate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc as std_mpsc;
use std::thread;

use guard_core::gate::Fact;
use guard_core::model::{Instant, Owners, Port, ProcessId, Snapshot, Socket, SocketInode, TcpState, Unseen};
use tokio::sync::mpsc;
use tracing::debug;

use super::learned::Learned;
use super::owners::{Care, Evidence, OwnerSource};
use crate::kernel::procfs::{self, ProcError};
use crate::kernel::scheduling::stand_back;
use crate::kernel::sock_diag::{SockDiag, SockDiagError};

/// Why a look at the port failed.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Neither source of the socket table could be read.
    #[error("cannot list the TCP sockets on port {port}: {diag}; /proc/net/tcp: {proc}")]
    Table {
        /// The port that was asked for.
        port: Port,
        /// What `sock_diag` said.
        diag: SockDiagError,
        /// What procfs said.
        proc: ProcError,
    },
    /// The thread that looks could not be started.
    #[error("cannot start the thread that reads the socket table: {0}")]
    Thread(#[source] std::io::Error),
}

/// The kernel walks its whole hash table for each dump, whatever port is asked for: for more ports than
/// these, a look that no run waits for reads all sockets at once.
const FEW: usize = 16;

/// [`read_table`] for many ports, in one walk. Where sockets come and go meanwhile it is more likely to miss
/// one than a walk for each port, whose answer is one message: nobody is ended on its word.
fn read_table_at_once(ports: &[Port]) -> Result<Vec<Socket>, LookError> {
    let wanted = ports.iter().copied().collect();
    match SockDiag::open().and_then(|mut diag| diag.dump_any(&wanted)) {
        Ok(mut sockets) => {
            sockets.retain(lasts);
            Ok(sockets)
        }
        Err(_) => read_table(ports),
    }
}

/// The sockets on `ports`, from `sock_diag` where the kernel has it, else from
/// `/proc/net/tcp` and `/proc/net/tcp6`, which show neither cookies nor
/// bound-only sockets.
pub fn read_table(ports: &[Port]) -> Result<Vec<Socket>, LookError> {
    let mut sockets = match together(ports) {
        Some(found) => found,
        None => one_by_one(ports)?,
    };
    sockets.retain(lasts);
    Ok(sockets)
}

/// `None` for less than two ports, and where that does not work.
fn together(ports: &[Port]) -> Option<Vec<Socket>> {
    if ports.len() < 2 {
        return None;
    }
    SockDiag::open().and_then(|mut diag| diag.dump_each(&ports.iter().copied().collect())).ok()
}

fn one_by_one(ports: &[Port]) -> Result<Vec<Socket>, LookError> {
    let mut diag = SockDiag::open();
    let mut sockets = Vec::new();
    for &port in ports {
        let dumped = match &mut diag {
            Ok(diag) => diag.dump(port),
            Err(_) => SockDiag::open().and_then(|mut diag| diag.dump(port)),
        };
        match dumped {
            Ok(found) => sockets.extend(found),
            Err(diag) => match procfs::sockets(port) {
                Ok(found) => sockets.extend(found),
                Err(proc) => return Err(LookError::Table { port, diag, proc }),
            },
        }
    }
    Ok(sockets)
}

/// Whether the table shows that somebody listens on one of `ports`. That is much cheaper to ask than what else is there.
pub fn is_listened_on(ports: &[Port]) -> Result<bool, LookError> {
    match SockDiag::open().and_then(|mut diag| diag.listens(ports)) {
        Ok(answer) => Ok(answer),
        Err(_) => Ok(one_by_one(ports)?.iter().any(|socket| socket.state == TcpState::Listen)),
    }
}

/// A bound socket that is no file's any more is in the middle of its `close()`,
/// which gives its port back at once: it was a probe, of this look's own run or
/// of another guard. Nothing else takes the file from a socket that neither
/// listens nor is connected.
fn lasts(socket: &Socket) -> bool {
    socket.state != TcpState::BoundInactive || socket.inode.is_some()
}

/// A probe that was open while the table was read may be closed when its owner is looked for: then it is nobody's, as
/// a socket in flight is. What the table does not show any more is in nobody's way.
fn leave_out_what_went(table: &mut Vec<Socket>, owned: impl Fn(&Socket) -> bool) -> Result<(), LookError> {
    let doubtful = |socket: &Socket| socket.state == TcpState::BoundInactive && !owned(socket);
    let ports: BTreeSet<Port> =
        table.iter().filter(|socket| doubtful(socket)).map(|socket| socket.port).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let now = read_table(&ports.into_iter().collect::<Vec<_>>())?;
    let there: BTreeSet<_> = now.iter().filter_map(|socket| socket.cookie).collect();
    table.retain(|socket| !doubtful(socket) || socket.cookie.is_some_and(|cookie| there.contains(&cookie)));
    Ok(())
}

/// A full snapshot: the table, every owner, and the evidence on the owners and
/// on those who are also wanted.
fn snapshot(
    all_ports: &[Port],
    wanted: &Wanted,
    learned: &mut Learned,
    source: &OwnerSource,
    standing: bool,
    now: fn() -> Instant,
) -> Result<Snapshot, LookError> {
    let begun = now();
    let ports = if wanted.ports.is_empty() { all_ports } else { &wanted.ports };
    let at_once = standing && ports.len() > FEW;
    let mut table = if at_once { read_table_at_once(ports) } else { read_table(ports) }?;
    let inodes: BTreeSet<SocketInode> = table.iter().filter_map(|socket| socket.inode).collect();
    let mut evidence = Evidence::default();
    let care = if standing || wanted.only_shown { Care::Showing } else { Care::Acting };
    let ownership = source.owners(&inodes, &mut evidence, care);
    if wanted.learn {
        learned.learn(&table, ports, &ownership.descriptors);
    }
    for socket in &mut table {
        learned.fill(socket);
    }
    for process in &wanted.also {
        if !evidence.processes.contains_key(&process.tgid) {
            let _gone = evidence.read(process.tgid);
        }
    }
    if wanted.everybody {
        // Whoever cannot be read is reached by nothing.
        for process in procfs::everybody().unwrap_or_default() {
            evidence.processes.entry(process.id.tgid).or_insert(process);
        }
    }
    let unseen = ownership.unseen.or_else(|| evidence.unreadable());
    let owned = |socket: &Socket| socket.inode.is_some_and(|inode| ownership.owners.contains_key(&inode));
    leave_out_what_went(&mut table, owned)?;
    let sockets = table
        .into_iter()
        .map(|socket| {
            let owners = owners_of(&socket, &ownership.owners, unseen.as_ref());
            (socket, owners)
        })
        .collect();
    let Evidence { processes, ancestors, .. } = evidence;
    Ok(Snapshot { begun, ended: now(), sockets, processes, ancestors })
}

fn owners_of(
    socket: &Socket,
    confirmed: &BTreeMap<SocketInode, Vec<ProcessId>>,
    incomplete: Option<&Unseen>,
) -> Owners {
    let Some(inode) = socket.inode else { return Owners::NoFile };
    let seen = confirmed.get(&inode).cloned().unwrap_or_default();
    match incomplete {
        None => Owners::All(seen),
        Some(unseen) => Owners::Some(seen, unseen.clone()),
    }
}

/// What a snapshot shall show.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Processes to read although they may own nothing any more.
    pub also: Vec<ProcessId>,
    /// Ask sockets for the flags that no table shows. It holds them open for a
    /// moment.
    pub learn: bool,
    /// Every process on the machine: descendants and cgroups are asked about.
    pub everybody: bool,
    /// Only the sockets on these ports; empty: on all ports of the looker.
    pub ports: Vec<Port>,
    /// Nobody is ended on its word.
    pub only_shown: bool,
}

/// The thread that takes snapshots on request.
#[derive(Debug)]
pub struct Looker {
    requests: std_mpsc::Sender<(u64, Wanted)>,
    answers: mpsc::UnboundedReceiver<(u64, Fact)>,
    /// The number of the last request. A run may end before its answer comes;
    /// the next run must not take that for its own.
    asked: u64,
    /// When it was made, until it is answered.
    waits_since: Option<Instant>,
    now: fn() -> Instant,
}

impl Looker {
    /// Starts the thread, which asks `source` for owners. It lives in the network
    /// namespace of the caller and ends with this value.
    pub fn start(ports: Vec<Port>, source: OwnerSource, now: fn() -> Instant) -> Result<Self, LookError> {
        Self::spawn(ports, source, false, now)
    }

    /// The same for looks that no run waits for: the thread takes the processor from
    /// nobody who waits for a port, clients among them.
    pub fn start_standing(source: OwnerSource, now: fn() -> Instant) -> Result<Self, LookError> {
        Self::spawn(Vec::new(), source, true, now)
    }

    fn spawn(
        ports: Vec<Port>,
        source: OwnerSource,
        standing: bool,
        now: fn() -> Instant,
    ) -> Result<Self, LookError> {
        let (requests, inbox) = std_mpsc::channel::<(u64, Wanted)>();
        let (outbox, answers) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("look".to_owned())
            .spawn(move || {
                if standing {
                    stand_back().unwrap_or_else(|error| debug!(%error, "looks compete with those who wait"));
                }
                let mut learned = Learned::default();
                while let Ok((number, wanted)) = inbox.recv() {
                    let fact = match snapshot(&ports, &wanted, &mut learned, &source, standing, now) {
                        Ok(snapshot) => Fact::SnapshotTaken(snapshot),
                        Err(error) => Fact::SnapshotFailed(error.to_string()),
                    };
                    if outbox.send((number, fact)).is_err() {
                        // The run is over.
                        return;
                    }
                }
            })
            .map_err(LookError::Thread)?;
        Ok(Self { requests, answers, asked: 0, waits_since: None, now })
    }

    /// Asks for a snapshot; [`Looker::next`] answers the last request.
    pub fn request(&mut self, wanted: Wanted) -> Result<(), LookError> {
        self.asked += 1;
        self.waits_since = Some((self.now)());
        let ended = |_| LookError::Thread(std::io::Error::other("the thread has ended"));
        self.requests.send((self.asked, wanted)).map_err(ended)
    }

    /// Since when the last request has been waiting for its answer.
    pub const fn waits_since(&self) -> Option<Instant> {
        self.waits_since
    }

    /// The answer to the last request. Cancel safe. Does not resolve when
    /// nothing was asked.
    pub async fn next(&mut self) -> Fact {
        loop {
            match self.answers.recv().await {
                Some((number, fact)) if number == self.asked => {
                    self.waits_since = None;
                    return fact;
                }
                Some(_) => {}
                None => {
                    return Fact::SnapshotFailed(
                        "the thread that reads the socket table has ended".to_owned(),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::kernel::bind::bind_all;
    use crate::kernel::sandbox::{STRICT, bound, netns, spec};

    /// `status` called a free port busy when it read the table while its own probe was being closed.
    #[test]
    fn a_probe_that_is_being_closed_is_no_holder() {
        netns("a_probe_that_is_being_closed_is_no_holder", || {
            let (socket, port) = bound("127.0.0.1", None, STRICT);
            assert!(read_table(&[port]).unwrap().iter().all(|socket| socket.inode.is_some()));
            drop(socket);
            let stop = AtomicBool::new(false);
            let left = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        bind_all(&[spec("127.0.0.1", port, STRICT)]);
                    }
                });
                let closing = |_| read_table(&[port]).ok()?.into_iter().find(|socket| socket.inode.is_none());
                let left = (0..5_000).find_map(closing);
                stop.store(true, Ordering::Relaxed);
                left
            });
            assert_eq!(left, None);
        });
    }

    /// `status` of an unprivileged user called a free port unknown: its own probe was open while the table was read, and
    /// closed when its owner was looked for.
    #[test]
    fn a_probe_that_was_closed_since_the_table_was_read_is_no_holder() {
        netns("a_probe_that_was_closed_since_the_table_was_read_is_no_holder", || {
            let (probe, port) = bound("127.0.0.1", None, STRICT);
            let (lasting, other) = bound("127.0.0.1", None, STRICT);
            let mut table = read_table(&[port, other]).unwrap();
            assert_eq!(table.len(), 2);
            leave_out_what_went(&mut table, |_| false).unwrap();
            assert_eq!(table.len(), 2, "both are there");
            drop(probe);
            let before = table.clone();
            leave_out_what_went(&mut table, |_| true).unwrap();
            assert_eq!(table, before, "whose owner was seen is not doubted");
            leave_out_what_went(&mut table, |_| false).unwrap();
            assert_eq!(table.iter().map(|socket| socket.port).collect::<Vec<_>>(), [other]);
            drop(lasting);
        });
    }
}
