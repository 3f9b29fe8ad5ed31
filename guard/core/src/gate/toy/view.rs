//! What the toy kernel shows to a guard of a certain user, and what is true at
//! the same moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::bind::{Bucket, bind_fails};
use super::kernel::{Kernel, Key, Sock};
use super::process::{Life, Proc, Role};
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
        viewer: &Viewer,
    ) -> BTreeMap<Tgid, Process> {
        owners
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
        let may_end = |proc: &Proc| match proc.role {
            Role::Service => true,
            Role::Stranger => plan.rules.any_owner,
            Role::Kin | Role::Roommate | Role::KernelThread => false,
        };
        let mut truth = Truth::default();
        for proc in self.processes.values() {
            if is_old(proc) && may_end(proc) {
                truth.stale.insert(proc.id);
            }
            let protected = matches!(proc.role, Role::Kin | Role::Roommate | Role::KernelThread);
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
