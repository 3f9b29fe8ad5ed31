//! The toy kernel itself: time passes in [`Kernel::run_until`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::bind::{Bucket, bind_fails};
use super::process::{Birth, Life, OnTerm, Place, Proc, Role};
use super::view::Service;
use super::{BEGIN, GUARD, SHELL, tick};
use crate::gate::{Hint, SignalFailure};
use crate::model::{BindSpec, Instant, ProcessId, Signal, StartTime, TcpState, Tgid, Uid};

/// A socket's name in the toy; also its inode.
pub(in crate::gate) type Key = u64;

/// From the closing of the last socket to the pidfd's becoming readable.
const REAPED: Duration = Duration::from_micros(30);

/// How often a starting server tries its bind again.
const RETRY: Duration = Duration::from_millis(3);

#[derive(Clone, Debug)]
pub(in crate::gate) struct Sock {
    pub(in crate::gate) bucket: Bucket,
    /// In flight over a Unix socket: no descriptor keeps it alive.
    pub(in crate::gate) pinned: bool,
    /// It becomes TIME_WAIT for so long when it is closed.
    pub(in crate::gate) lingers: Option<Duration>,
    pub(in crate::gate) expires: Option<Instant>,
    /// Closed by everybody; the bind bucket goes soon.
    pub(in crate::gate) closing: bool,
}

/// Something that is going to happen.
#[derive(Clone, Debug)]
pub(in crate::gate) enum Happening {
    Exit(ProcessId),
    Emptied(ProcessId),
    CloseAll(ProcessId),
    HandOver(ProcessId),
    Become(ProcessId, bool),
    /// Somebody moves it to another cgroup.
    Move(ProcessId, Place),
    Release(Key),
    Expire(Key),
    Reap(ProcessId),
    Spawn(Birth),
    TryListen(ProcessId, Vec<BindSpec>),
}

#[derive(Debug)]
pub(in crate::gate) struct Kernel {
    pub(in crate::gate) now: Instant,
    pub(in crate::gate) processes: BTreeMap<Tgid, Proc>,
    pub(in crate::gate) sockets: BTreeMap<Key, Sock>,
    /// Kernel events since they were last taken.
    pub(in crate::gate) hints: Vec<(Instant, Hint)>,
    /// Thread groups that ended since they were last taken.
    pub(in crate::gate) ended: Vec<ProcessId>,
    pub(in crate::gate) service: Service,
    agenda: BTreeMap<(Instant, u64), Happening>,
    next: u64,
    next_tgid: u32,
}

impl Kernel {
    /// A machine on which nothing runs but the guard and its parent.
    pub(in crate::gate) fn new() -> Self {
        let mut kernel = Self {
            now: BEGIN,
            processes: BTreeMap::new(),
            sockets: BTreeMap::new(),
            hints: Vec::new(),
            ended: Vec::new(),
            service: Service::default(),
            agenda: BTreeMap::new(),
            next: 1,
            next_tgid: 1000,
        };
        for id in [SHELL, GUARD] {
            let birth = Birth { on_term: OnTerm::Ignore, ..Birth::of(Role::Kin) };
            kernel.enter(id, birth);
        }
        kernel
    }

    /// A process that is older than the run.
    pub(in crate::gate) fn old(&mut self, birth: Birth) -> ProcessId {
        let tgid = self.fresh_tgid();
        self.aged(birth, StartTime(50_000 + u64::from(tgid.0)))
    }

    /// A process that started at this tick.
    pub(in crate::gate) fn aged(&mut self, birth: Birth, start: StartTime) -> ProcessId {
        let tgid = birth.tgid.unwrap_or_else(|| self.fresh_tgid());
        let id = ProcessId { tgid, start };
        self.enter(id, birth);
        id
    }

    fn fresh_tgid(&mut self) -> Tgid {
        self.next_tgid += 1;
        Tgid(self.next_tgid)
    }

    fn enter(&mut self, id: ProcessId, birth: Birth) {
        let role = birth.role;
        let descriptors = BTreeSet::new();
        let stopped = birth.stopped;
        let proc = Proc { id, birth, role, descriptors, life: Life::Alive, termed: false, stopped };
        self.processes.insert(id.tgid, proc);
    }

    /// The process, unless it is gone.
    pub(in crate::gate) fn process(&self, id: ProcessId) -> Option<&Proc> {
        self.processes.get(&id.tgid).filter(|proc| proc.id == id)
    }

    pub(in crate::gate) fn process_mut(&mut self, id: ProcessId) -> Option<&mut Proc> {
        self.processes.get_mut(&id.tgid).filter(|proc| proc.id == id)
    }

    /// Puts a socket of `owner` on the port without asking whether it fits.
    pub(in crate::gate) fn put(&mut self, owner: Option<ProcessId>, spec: &BindSpec, state: TcpState) -> Key {
        let key = self.number();
        let uid = owner.and_then(|owner| self.process(owner)).map_or(Uid(0), |proc| proc.birth.uid);
        let bucket = Bucket { state, ..Bucket::binder(spec, uid) };
        let sock = Sock { bucket, pinned: false, lingers: None, expires: None, closing: false };
        self.sockets.insert(key, sock);
        if let Some(proc) = owner.and_then(|owner| self.process_mut(owner)) {
            proc.descriptors.insert(key);
        }
        key
    }

    /// A TIME_WAIT socket that expires `left` from now.
    pub(in crate::gate) fn put_time_wait(&mut self, spec: &BindSpec, left: Duration) -> Key {
        let key = self.put(None, spec, TcpState::TimeWait);
        let expires = self.now + left;
        if let Some(sock) = self.sockets.get_mut(&key) {
            sock.expires = Some(expires);
        }
        self.later(left, Happening::Expire(key));
        key
    }

    /// Gives `to` a descriptor for everything that `from` has one for.
    pub(in crate::gate) fn share(&mut self, from: ProcessId, to: ProcessId) {
        let keys = self.process(from).map(|proc| proc.descriptors.clone()).unwrap_or_default();
        if let Some(proc) = self.process_mut(to) {
            proc.descriptors.extend(keys);
        }
    }

    /// Whether `bind()` of `spec` by a process of this user would succeed.
    pub(in crate::gate) fn is_bindable(&self, spec: &BindSpec, uid: Uid) -> bool {
        let binder = Bucket::binder(spec, uid);
        !self.sockets.values().any(|sock| bind_fails(&binder, &sock.bucket))
    }

    pub(in crate::gate) fn later(&mut self, after: Duration, what: Happening) {
        let number = self.number();
        self.agenda.insert((self.now + after, number), what);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(in crate::gate) fn next_happening(&self) -> Option<Instant> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets the next thing happen if it is due at `until`; `false` when nothing is.
    pub(in crate::gate) fn step(&mut self, until: Instant) -> bool {
        let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        let ((at, _), what) = entry.remove_entry();
        self.now = self.now.max(at);
        self.happen(what);
        true
    }

    /// `pidfd_send_signal()` after the start time was compared.
    pub(in crate::gate) fn signal(&mut self, to: ProcessId, signal: Signal) -> Result<(), SignalFailure> {
        let Some(proc) = self.processes.get_mut(&to.tgid) else { return Err(SignalFailure::Gone) };
        if proc.id != to {
            return Err(SignalFailure::IdentityChanged);
        }
        if proc.birth.stuck || proc.life != Life::Alive {
            return Ok(());
        }
        match signal {
            Signal::Kill => self.happen(Happening::Exit(to)),
            Signal::Continue => {
                let pending = std::mem::take(&mut proc.stopped) && proc.termed;
                if pending {
                    self.act_on_term(to);
                }
            }
            Signal::Term if proc.termed => {}
            Signal::Term => {
                proc.termed = true;
                if !proc.stopped {
                    self.act_on_term(to);
                }
            }
        }
        Ok(())
    }

    fn act_on_term(&mut self, id: ProcessId) {
        let Some(on_term) = self.process(id).map(|proc| proc.birth.on_term) else { return };
        match on_term {
            OnTerm::Ignore => {}
            OnTerm::Exit(after) => self.later(after, Happening::Exit(id)),
            OnTerm::CloseAndLinger(close, exit) => {
                self.later(close, Happening::CloseAll(id));
                if let Some(exit) = exit {
                    self.later(close + exit, Happening::Exit(id));
                }
            }
            OnTerm::HandOver(after) => self.later(after, Happening::HandOver(id)),
            OnTerm::Become(after, keeps) => self.later(after, Happening::Become(id, keeps)),
        }
    }

    /// SIGKILL to everybody, if these are still all there is below `path`.
    pub(in crate::gate) fn kill_cgroup(&mut self, path: &str, members: &[ProcessId]) -> bool {
        let there: Vec<ProcessId> = self
            .processes
            .values()
            .filter(|proc| proc.life == Life::Alive && proc.birth.place.path().starts_with(path))
            .map(|proc| proc.id)
            .collect();
        let exact = there.iter().all(|id| members.contains(id));
        if exact {
            for id in there
                .iter()
                .filter(|id| !self.process(**id).is_some_and(|proc| proc.birth.stuck))
                .copied()
                .collect::<Vec<_>>()
            {
                self.happen(Happening::Exit(id));
            }
        }
        exact
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Exit(id) => self.begin_exit(id),
            Happening::Emptied(id) => {
                let Some(proc) = self.process_mut(id) else { return };
                proc.life = Life::Emptied;
                let rest = proc.birth.teardown / 2;
                self.later(rest, Happening::CloseAll(id));
            }
            Happening::CloseAll(id) => {
                let longest = self.close_all(id);
                if self.process(id).is_some_and(|proc| proc.life == Life::Emptied) {
                    self.later(longest + REAPED, Happening::Reap(id));
                }
            }
            Happening::HandOver(id) => self.hand_over(id),
            Happening::Become(id, keeps) => {
                let Some(proc) = self.process_mut(id).filter(|proc| proc.life == Life::Alive) else { return };
                proc.role = Role::Stranger;
                if !keeps {
                    self.close_all(id);
                }
            }
            Happening::Move(id, place) => {
                if let Some(proc) = self.process_mut(id) {
                    proc.birth.place = place;
                }
            }
            Happening::Release(key) => self.release(key),
            Happening::Expire(key) => {
                self.sockets.remove(&key);
            }
            Happening::Reap(id) => self.reap(id),
            Happening::Spawn(birth) => {
                self.spawn(birth);
            }
            Happening::TryListen(id, wanted) => self.try_listen(id, wanted),
        }
    }

    fn begin_exit(&mut self, id: ProcessId) {
        let Some(proc) = self.process_mut(id).filter(|proc| proc.life == Life::Alive) else { return };
        proc.life = Life::Exiting;
        let half = proc.birth.teardown / 2;
        self.hints.push((self.now, Hint::OwnerExiting { process: id, status: None }));
        self.later(half, Happening::Emptied(id));
    }

    /// Drops every descriptor. Returns how long the last release will take.
    fn close_all(&mut self, id: ProcessId) -> Duration {
        let Some(proc) = self.process_mut(id) else { return Duration::ZERO };
        let keys = std::mem::take(&mut proc.descriptors);
        let release = proc.birth.release;
        for key in keys {
            if !self.processes.values().any(|proc| proc.descriptors.contains(&key)) {
                self.close(key, release);
            }
        }
        release
    }

    fn close(&mut self, key: Key, release: Duration) {
        let now = self.now;
        let Some(sock) = self.sockets.get_mut(&key).filter(|sock| !sock.pinned && !sock.closing) else {
            return;
        };
        if sock.bucket.state == TcpState::Listen {
            let (address, port) = (sock.bucket.address, sock.bucket.port);
            sock.bucket.state = TcpState::Close;
            sock.closing = true;
            self.hints.push((now, Hint::ListenerClosed { address, port }));
            // Somebody was still in its queue.
            if key.is_multiple_of(2) {
                self.hints.push((now, Hint::ConnectionAborted { port }));
            }
            self.later(release, Happening::Release(key));
        } else if let Some(left) = sock.lingers {
            sock.bucket.state = TcpState::TimeWait;
            sock.expires = Some(now + left);
            sock.closing = true;
            self.later(left, Happening::Expire(key));
        } else {
            sock.closing = true;
            self.later(release, Happening::Release(key));
        }
    }

    /// `SOCK_DESTROY`: a listener stays bound, anything else gives the port back.
    /// `false` when it is gone.
    pub(in crate::gate) fn destroy(&mut self, key: Key) -> bool {
        let Some(sock) = self.sockets.get_mut(&key) else { return false };
        if sock.bucket.state == TcpState::Listen {
            sock.bucket.state = TcpState::BoundInactive;
            let (address, port) = (sock.bucket.address, sock.bucket.port);
            self.hints.push((self.now, Hint::ListenerClosed { address, port }));
        } else {
            self.release(key);
        }
        true
    }

    fn release(&mut self, key: Key) {
        let Some(sock) = self.sockets.remove(&key) else { return };
        let (address, port) = (sock.bucket.address, sock.bucket.port);
        let hint = match sock.bucket.state {
            TcpState::Close => Hint::SocketReleased { address, port },
            _ => Hint::ConnectionReleased { port },
        };
        self.hints.push((self.now, hint));
    }

    fn reap(&mut self, id: ProcessId) {
        if self.process(id).is_none() {
            return;
        }
        let Some(proc) = self.processes.remove(&id.tgid) else { return };
        self.ended.push(id);
        if let Some(pause) = proc.birth.respawn {
            self.later(pause, Happening::Spawn(proc.birth));
        }
    }

    fn spawn(&mut self, mut birth: Birth) {
        // A number can be given again once its owner was reaped.
        birth.tgid = birth.tgid.filter(|tgid| !self.processes.contains_key(tgid));
        let wanted = birth.listens.clone();
        // One tick later than the clock says, so that it is newer than the request for certain.
        let start = StartTime(tick(self.now).0 + 1);
        let id = self.aged(birth, start);
        self.try_listen(id, wanted);
    }

    fn try_listen(&mut self, id: ProcessId, wanted: Vec<BindSpec>) {
        let Some(proc) = self.process(id).filter(|proc| proc.life == Life::Alive) else { return };
        let (uid, holds) = (proc.birth.uid, proc.birth.holds);
        let mut left = Vec::new();
        for spec in wanted {
            if self.is_bindable(&spec, uid) {
                self.put(Some(id), &spec, TcpState::Listen);
                let (address, port) = (spec.address, spec.port);
                self.hints.push((self.now, Hint::ListenerOpened { address, port }));
            } else {
                left.push(spec);
            }
        }
        match holds {
            _ if !left.is_empty() => self.later(RETRY, Happening::TryListen(id, left)),
            Some(holds) => self.later(holds, Happening::Exit(id)),
            None => {}
        }
    }

    fn hand_over(&mut self, id: ProcessId) {
        let Some(proc) = self.process(id).filter(|proc| proc.life == Life::Alive) else { return };
        let listens = proc
            .descriptors
            .iter()
            .filter_map(|key| self.sockets.get(key))
            .filter(|sock| sock.bucket.state == TcpState::Listen)
            .map(|sock| BindSpec {
                address: sock.bucket.address,
                scope: 0,
                port: sock.bucket.port,
                v6only: sock.bucket.v6only,
                reuse_address: sock.bucket.reuse_address,
                reuse_port: sock.bucket.reuse_port,
            })
            .collect();
        let successor = Birth { listens, tgid: None, respawn: None, holds: None, ..proc.birth.clone() };
        self.close_all(id);
        self.later(Duration::from_millis(1), Happening::Spawn(successor));
        self.later(Duration::from_millis(40), Happening::Exit(id));
    }
}
