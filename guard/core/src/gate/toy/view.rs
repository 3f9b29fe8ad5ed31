//! What the toy kernel shows to a guard of a certain user, and what is true at
//! the same moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::bind::{Bucket, bind_fails};
use super::kernel::{Kernel, Key, Sock};
use super::process::{Life, Place, Proc, Role};
use crate::gate::Plan;
use crate::model::{
    BindOutcome, Instant, Owners, Process, ProcessId, Socket, SocketCookie, SocketInode, StartTime, TcpState,
    Tgid, Uid, Unseen,
};

/// Who looks.
#[derive(Clone, Copy, Debug)]
pub(in crate::gate) struct Viewer {
    pub(in crate::gate) uid: Uid,
    /// It sees every process and may signal every process.
    pub(in crate::gate) privileged: bool,
    /// It sees SO_REUSEADDR and SO_REUSEPORT, as the ebpf tier does.
    pub(in crate::gate) flags: bool,
    /// It may bind the port.
    pub(in crate::gate) may_bind: bool,
}

impl Viewer {
    pub(in crate::gate) const ROOT: Self =
        Self { uid: Uid(0), privileged: true, flags: false, may_bind: true };

    fn reads(&self, proc: &Proc) -> bool {
        self.privileged || (proc.birth.uid == self.uid && proc.life == Life::Alive)
    }
}

/// What is true at the moment at which a snapshot's owners are read.
#[derive(Clone, Debug, Default)]
pub(in crate::gate) struct Truth {
    /// Who may be ended: true instances of the service that nothing protects
    /// and that are older than the request, and with `any_owner` strangers too.
    pub(in crate::gate) stale: BTreeSet<ProcessId>,
    /// Listeners in the way of the plan that somebody owns who may not be
    /// ended, is older than the request, not already dying, and not hidden.
    pub(in crate::gate) strangers: BTreeSet<(Key, ProcessId)>,
    /// Sockets that may never be destroyed: listeners and bound sockets that
    /// somebody has, and whatever somebody protected has.
    pub(in crate::gate) owned: BTreeSet<Key>,
    /// Where each process lives.
    pub(in crate::gate) places: BTreeMap<ProcessId, Place>,
}

impl Kernel {
    pub(in crate::gate) fn table(&self, viewer: &Viewer) -> Vec<(Key, Socket)> {
        self.sockets.iter().map(|(&key, sock)| (key, render(key, sock, viewer, self.now))).collect()
    }

    pub(in crate::gate) fn probe(&self, plan: &Plan, viewer: &Viewer) -> Vec<BindOutcome> {
        let outcome = |spec| match (viewer.may_bind, self.is_bindable(spec, viewer.uid)) {
            (false, _) => BindOutcome::NotPermitted,
            (true, true) => BindOutcome::Bindable,
            (true, false) => BindOutcome::InUse,
        };
        plan.endpoints.iter().map(outcome).collect()
    }

    pub(in crate::gate) fn owners(&self, key: Key, viewer: &Viewer) -> Owners {
        let seen = self
            .processes
            .values()
            .filter(|proc| proc.descriptors.contains(&key))
            .filter(|proc| proc.shows_descriptors() && viewer.reads(proc))
            .map(|proc| proc.id)
            .collect();
        if viewer.privileged { Owners::All(seen) } else { Owners::Some(seen, Unseen::NotPermitted) }
    }

    pub(in crate::gate) fn evidence(
        &self,
        owners: impl Iterator<Item = ProcessId>,
        everybody: bool,
        viewer: &Viewer,
    ) -> BTreeMap<Tgid, Process> {
        let everybody = everybody.then(|| self.processes.values().map(|proc| proc.id)).into_iter().flatten();
        owners
            .chain(everybody)
            .filter_map(|id| self.processes.get(&id.tgid))
            .map(|proc| (proc.id.tgid, proc.evidence(viewer.reads(proc))))
            .collect()
    }

    pub(in crate::gate) fn truth(
        &self,
        plan: &Plan,
        viewer: &Viewer,
        requested: StartTime,
        seen_first: &BTreeSet<ProcessId>,
    ) -> Truth {
        let is_old = |proc: &Proc| {
            proc.id.start < requested || (proc.id.start == requested && seen_first.contains(&proc.id))
        };
        let protected = |proc: &Proc| matches!(proc.role, Role::Kin | Role::Roommate | Role::KernelThread);
        let may_end = |proc: &Proc| {
            let stale = !protected(proc) && self.service.recognises(proc, plan.rules.any_owner);
            stale && !self.service.keeps(proc)
        };
        let mut truth = Truth::default();
        for proc in self.processes.values() {
            truth.places.insert(proc.id, proc.birth.place);
            if is_old(proc) && may_end(proc) {
                truth.stale.insert(proc.id);
            }
            let protected = protected(proc);
            if proc.shows_descriptors() && viewer.reads(proc) {
                let kept = proc.descriptors.iter().filter(|key| {
                    let claims =
                        |sock: &Sock| matches!(sock.bucket.state, TcpState::Listen | TcpState::BoundInactive);
                    protected || self.sockets.get(key).is_some_and(claims)
                });
                truth.owned.extend(kept);
            }
            let dying = proc.life != Life::Alive;
            if is_old(proc) && !may_end(proc) && !dying && viewer.reads(proc) {
                let listeners = proc.descriptors.iter().filter(|key| {
                    self.sockets.get(key).is_some_and(|sock| {
                        sock.bucket.state == TcpState::Listen && in_the_way(plan, &sock.bucket)
                    })
                });
                truth.strangers.extend(listeners.map(|&key| (key, proc.id)));
            }
        }
        truth
    }
}

/// What is true of the service's unit.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::gate) struct Service {
    /// The rules name its unit.
    pub(in crate::gate) unit: bool,
    /// The rules ask for its argv too, or for nothing else.
    pub(in crate::gate) by_unit_alone: bool,
    /// Its manager stops it, so whoever is in it needs no other rule.
    pub(in crate::gate) restarted: bool,
    /// What is in its cgroup is the running instance, or may be.
    pub(in crate::gate) keeps_instance: bool,
    /// The running instance's main process, wherever it is.
    pub(in crate::gate) main: Option<ProcessId>,
}

impl Service {
    pub(in crate::gate) fn recognises(&self, proc: &Proc, any_owner: bool) -> bool {
        let looks_like_it = proc.role == Role::Service;
        match proc.birth.place {
            _ if any_owner => true,
            _ if !self.unit => looks_like_it,
            place if place.is_unit() || self.main == Some(proc.id) => {
                self.restarted || self.by_unit_alone || looks_like_it
            }
            Place::Session => looks_like_it && !self.by_unit_alone,
            _ => false,
        }
    }

    fn keeps(&self, proc: &Proc) -> bool {
        let its_own = proc.birth.place.is_unit() || self.main == Some(proc.id);
        self.unit && self.keeps_instance && its_own
    }
}

impl Kernel {
    /// Old enough descendants of the stale owners that are in nobody else's hands.
    pub(in crate::gate) fn descendants(&self, truth: &Truth, viewer: &Viewer) -> BTreeSet<ProcessId> {
        let owns = |id: &ProcessId| {
            self.process(*id).is_some_and(|proc| {
                !proc.descriptors.is_empty() && proc.shows_descriptors() && viewer.reads(proc)
            })
        };
        let roots: Vec<ProcessId> = truth.stale.iter().copied().filter(owns).collect();
        let mut found = BTreeSet::new();
        for proc in self.processes.values() {
            let mut at = proc;
            while let Some(parent) = at.birth.parent.and_then(|parent| self.processes.get(&parent.tgid)) {
                if roots.contains(&parent.id) {
                    let same = proc.birth.place == parent.birth.place
                        || (proc.birth.place.is_unit() && parent.birth.place.is_unit())
                        || proc.birth.place == Place::Session;
                    let protected = matches!(proc.role, Role::Kin | Role::Roommate | Role::KernelThread);
                    if same && !protected && !self.service.keeps(proc) {
                        found.insert(proc.id);
                    }
                    break;
                }
                at = parent;
            }
        }
        found
    }
}

/// Whether a socket blocks the plan whoever asks.
pub(in crate::gate) fn in_the_way(plan: &Plan, bucket: &Bucket) -> bool {
    plan.endpoints.iter().any(|spec| bind_fails(&Bucket::binder(spec, plan.asker.uid), bucket))
}

/// A row of the socket table.
pub(in crate::gate) fn render(key: Key, sock: &Sock, viewer: &Viewer, now: Instant) -> Socket {
    let bucket = &sock.bucket;
    let mapped = match bucket.address {
        IpAddr::V6(address) => address.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    let has_file = !sock.closing && bucket.state != TcpState::TimeWait;
    Socket {
        address: mapped.map_or(bucket.address, IpAddr::V4),
        mapped: mapped.is_some(),
        port: bucket.port,
        remote: None,
        v6only: bucket.address.is_ipv6().then_some(bucket.v6only),
        device: bucket.device,
        state: bucket.state,
        uid: if bucket.state == TcpState::TimeWait { Uid(0) } else { bucket.uid },
        inode: has_file.then_some(SocketInode(key)),
        cookie: Some(SocketCookie(key)),
        expires: sock.expires.map(|at| at.since(now)),
        reuse_address: viewer.flags.then_some(bucket.reuse_address),
        reuse_port: viewer.flags.then_some(bucket.reuse_port),
        accept_queue: None,
        backlog: None,
    }
}
