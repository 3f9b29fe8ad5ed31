//! From a snapshot to a decision: which sockets are in the way, whose they
//! are, and what may be done about them.

use std::collections::{BTreeMap, BTreeSet};

use crate::conflict::{Conflict, conflict};
use crate::model::{
    Ancestor, BindOutcome, Holder, Instant, Process, ProcessId, Snapshot, Socket, SocketCookie, TcpState,
    Tgid, UnitId, UnknownReason,
};
use crate::policy::{self, Class, Judgement};
use crate::prospect::{Prospect, prospects};

use super::machine::Probe;
use super::{Plan, Reach, eviction, reach};

/// One owner of a holder, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedOwner {
    /// Who.
    pub id: ProcessId,
    /// The evidence; `None` when it vanished before it could be read.
    pub process: Option<Process>,
    /// What it is to this run, and why.
    pub judgement: Judgement,
}

/// A newcomer that has taken the port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rival {
    /// Who.
    pub id: ProcessId,
    /// The unit that it runs in: its manager started it.
    pub unit: Option<UnitId>,
    /// Its parent and what that calls itself, where it is known.
    pub parent: Option<(Tgid, String)>,
}

/// A socket in the way, with its owners judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedHolder {
    /// The socket and its raw owners.
    pub holder: Holder,
    /// Its visible owners.
    pub owners: Vec<JudgedOwner>,
}

impl JudgedHolder {
    /// Every process was looked at and none has a descriptor for the socket.
    pub fn is_kernel_held(&self) -> bool {
        self.holder.owners.is_kernel_held()
    }

    /// A connection that blocks only a bind without `SO_REUSEADDR`, unless its
    /// listener had none either.
    pub fn lingers(&self) -> bool {
        !self.holder.certain && !self.is_claimant()
    }

    /// It claims the port for itself: a listener, or a socket that was bound
    /// and is not connected. Connections only linger.
    pub(super) fn is_claimant(&self) -> bool {
        matches!(self.holder.socket.state, TcpState::Listen | TcpState::BoundInactive | TcpState::Close)
    }
}

/// What a [`super::Goal::Free`] run does about the holders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody can be ended; the sockets may go by themselves.
    Wait,
    /// These stale owners are to be ended.
    End(Vec<(ProcessId, Judgement)>),
    /// No signal helps any more, and these sockets can be destroyed: they are all
    /// there is in the way. Only with [`Plan::evict`].
    Evict(Vec<Socket>),
    /// These owners may not be ended, so nobody is.
    Refuse(Vec<(ProcessId, Judgement)>),
    /// The guard's user may not signal these stale owners, so nobody is ended.
    NotPermitted(Vec<ProcessId>),
    /// An owner cannot be seen, so nobody is ended.
    CannotTell(UnknownReason),
}

/// What earlier steps of the run have shown and done.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    /// Owners of a listener or a bound socket on the port, at any look.
    pub(super) claimed: BTreeSet<ProcessId>,
    /// Sockets that were asked to be destroyed: each is tried once.
    pub(super) evicted: BTreeSet<SocketCookie>,
    /// Who was sent SIGTERM and turned out to be somebody else's.
    pub(super) spared: BTreeMap<ProcessId, Judgement>,
}

/// The holders that one look found.
#[derive(Clone, Debug)]
pub(super) struct Assessment {
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    pub(super) holders: Vec<JudgedHolder>,
    pub(super) processes: BTreeMap<Tgid, Process>,
    ancestors: BTreeMap<Tgid, Ancestor>,
    /// For each endpoint: what binds of either kind would meet.
    pub(super) prospects: Vec<[Prospect; 2]>,
    /// Who was there at the run's first look; kept only where others than
    /// owners are reached.
    seen_at_request: BTreeSet<ProcessId>,
}

impl Assessment {
    pub(super) fn new(snapshot: Snapshot, plan: &Plan, seen_at_request: &BTreeSet<ProcessId>) -> Self {
        let Snapshot { begun, ended, sockets, processes, ancestors } = snapshot;
        let table: Vec<Socket> = sockets.iter().map(|(socket, _)| socket.clone()).collect();
        let prospects = plan.endpoints.iter().map(|spec| prospects(spec, &table)).collect();
        let holders = sockets
            .into_iter()
            .filter_map(|(socket, owners)| {
                let certain = worst_conflict(plan, &socket)?;
                let judged = owners
                    .seen()
                    .iter()
                    .map(|&id| {
                        let process = processes.get(&id.tgid).filter(|process| process.id == id).cloned();
                        let judgement = match &process {
                            Some(process) => {
                                policy::judge(process, &plan.rules, &plan.asker, seen_at_request)
                            }
                            None => policy::judge_unread(),
                        };
                        JudgedOwner { id, process, judgement }
                    })
                    .collect();
                Some(JudgedHolder { holder: Holder { socket, owners, certain }, owners: judged })
            })
            .collect();
        let reaches = plan.reach != Reach::Owners;
        let seen_at_request = if reaches { seen_at_request.clone() } else { BTreeSet::new() };
        Self { begun, ended, holders, processes, ancestors, prospects, seen_at_request }
    }

    /// What to do about the holders, given what a later probe said, if there
    /// was one, about each endpoint.
    ///
    /// Of `past`, only those who claimed the port are ended for their
    /// connections too: nothing in the table tells an old server's connection
    /// from a client that merely uses the port as its own.
    pub(super) fn decide(&self, plan: &Plan, probe: Option<&Probe>, past: &Past) -> Decision {
        let in_the_way = self.in_the_way(plan, probe);
        let claimants: Vec<&JudgedHolder> =
            in_the_way.iter().copied().filter(|holder| holder.is_claimant()).collect();

        let mut not_ours = owners_of(&claimants, |class| {
            matches!(class, Class::Foreign | Class::Current | Class::Protected)
        });
        let stale = owners_of(&claimants, |class| class == Class::Stale);
        not_ours.extend(stale.into_iter().filter_map(|(id, _)| Some((id, past.spared.get(&id)?.clone()))));
        let (dying, refused): (Vec<_>, Vec<_>) =
            not_ours.into_iter().partition(|(_, judgement)| judgement.is_for_want_of_evidence());
        if !refused.is_empty() {
            // Nobody's claim is certain here, and the connections and TIME_WAIT
            // sockets that may be to blame as well go by themselves.
            let in_doubt = !in_the_way.iter().any(|holder| holder.holder.certain);
            let lingering = in_the_way.iter().any(|holder| !holder.is_claimant());
            return if in_doubt && lingering { Decision::Wait } else { Decision::Refuse(refused) };
        }
        if !dying.is_empty() {
            // It might be a stranger; the look that follows its end shows who stays.
            return Decision::Wait;
        }
        for claimant in &claimants {
            if let Some(why) = claimant.holder.owners.hidden() {
                let uid = claimant.holder.socket.uid;
                return Decision::CannotTell(UnknownReason::OwnerHidden { uid, why: why.clone() });
            }
        }
        let mut stale = owners_of(&in_the_way, |class| class == Class::Stale);
        stale.retain(|(id, _)| past.claimed.contains(id) && !past.spared.contains_key(id));
        let mut reached = reach::reached(plan, &stale, &self.processes, &self.seen_at_request);
        // Named already, and not in the way.
        reached.refused.retain(|(id, _)| !past.spared.contains_key(id));
        if !reached.refused.is_empty() {
            return Decision::Refuse(reached.refused);
        }
        stale.extend(reached.stale.into_iter().filter(|(id, _)| !past.spared.contains_key(id)));
        let beyond_reach: Vec<ProcessId> = stale
            .iter()
            .filter(|(id, _)| self.process(*id).is_some_and(|process| !plan.asker.may_signal(process)))
            .map(|(id, _)| *id)
            .collect();
        if !beyond_reach.is_empty() {
            Decision::NotPermitted(beyond_reach)
        } else if stale.is_empty() {
            let evictable = eviction::evictable(plan, &in_the_way, &past.evicted);
            if evictable.is_empty() { Decision::Wait } else { Decision::Evict(evictable) }
        } else {
            Decision::End(stale)
        }
    }

    /// The sockets that make the probe fail. For each endpoint that the probe
    /// did not find bindable, a socket whose conflict is only possible is
    /// blamed when no other explains the failure. A table explains nothing of
    /// the kind: it says "in use" because of certain conflicts alone.
    pub(super) fn in_the_way(&self, plan: &Plan, probe: Option<&Probe>) -> Vec<&JudgedHolder> {
        let least =
            if probe.is_some_and(|probe| probe.by_table) { Conflict::Certain } else { Conflict::Possible };
        let mut blamed = BTreeSet::new();
        for (endpoint, spec) in plan.endpoints.iter().enumerate() {
            if probe.and_then(|probe| probe.outcomes.get(endpoint)) == Some(&BindOutcome::Bindable) {
                continue;
            }
            let conflicts: Vec<Conflict> =
                self.holders.iter().map(|holder| conflict(spec, &holder.holder.socket)).collect();
            let worst = conflicts.iter().copied().max().unwrap_or(Conflict::None);
            if worst >= least {
                let worst_of_all = conflicts.iter().enumerate().filter(|(_, conflict)| **conflict == worst);
                blamed.extend(worst_of_all.map(|(holder, _)| holder));
            }
        }
        blamed.into_iter().filter_map(|holder| self.holders.get(holder)).collect()
    }

    /// The evidence on this very process.
    pub(super) fn process(&self, id: ProcessId) -> Option<&Process> {
        self.processes.get(&id.tgid).filter(|process| process.id == id)
    }

    /// Whoever has a claim on the port, of whatever class.
    pub(super) fn claimers(&self) -> impl Iterator<Item = ProcessId> {
        let claims = self.holders.iter().filter(|holder| holder.is_claimant());
        claims.flat_map(|holder| &holder.owners).map(|owner| owner.id)
    }

    /// A listener or bound socket blocks the bind for certain.
    pub(super) fn is_claimed(&self) -> bool {
        self.holders.iter().any(|holder| holder.holder.certain && holder.is_claimant())
    }

    /// Only connections are to blame, whose end is not known in advance.
    pub(super) fn lingers_on(&self, plan: &Plan, probe: Option<&Probe>) -> bool {
        let blamed = self.in_the_way(plan, probe);
        blamed.iter().all(|holder| !holder.is_claimant())
            && blamed.iter().any(|holder| holder.holder.socket.expires.is_none())
    }

    /// Newcomers that took the port for themselves. One that shares a stale
    /// owner's socket is merely its late child.
    pub(super) fn newcomers(&self) -> Vec<Rival> {
        let claimants: Vec<&JudgedHolder> = self
            .holders
            .iter()
            .filter(|holder| holder.holder.certain && holder.is_claimant())
            .filter(|holder| holder.owners.iter().all(|owner| owner.judgement.class == Class::Newcomer))
            .collect();
        let newcomers = owners_of(&claimants, |class| class == Class::Newcomer).into_iter();
        newcomers.map(|(id, _)| self.rival(id)).collect()
    }

    fn rival(&self, id: ProcessId) -> Rival {
        let process = self.process(id);
        let comm = |tgid: Tgid| {
            let known = self.processes.get(&tgid).map(|parent| &parent.comm);
            known.or_else(|| self.ancestors.get(&tgid).map(|parent| &parent.comm)).cloned()
        };
        let parent = process.and_then(|process| process.parent);
        Rival {
            id,
            unit: process.and_then(Process::unit),
            parent: parent.and_then(|tgid| Some((tgid, comm(tgid)?))),
        }
    }

    /// The newcomers that have the port, when they are all there is in the way
    /// and all are parts of a unit that the rules name: the service itself has
    /// started again.
    pub(super) fn respawned(&self, plan: &Plan, probe: Option<&Probe>) -> Vec<Rival> {
        let claims = self.in_the_way(plan, probe);
        let owners: Vec<&JudgedOwner> =
            claims.iter().filter(|holder| holder.is_claimant()).flat_map(|holder| &holder.owners).collect();
        let is_ours = |owner: &&JudgedOwner| {
            owner.judgement.class == Class::Newcomer
                && owner.process.as_ref().is_some_and(|process| plan.rules.own_unit(process).is_some())
        };
        if owners.iter().all(is_ours) {
            owners
                .iter()
                .map(|owner| owner.id)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(|id| self.rival(id))
                .collect()
        } else {
            Vec::new()
        }
    }

    /// When the last TIME_WAIT socket in the way has expired, if there is one.
    pub(super) fn last_expiry(&self, plan: &Plan) -> Option<Instant> {
        self.in_the_way(plan, None)
            .iter()
            .filter_map(|holder| holder.holder.socket.expires)
            .max()
            .map(|left| self.begun + left)
    }
}

/// Lingering sockets that a timeline shows of each look; the rest is counted.
const MOST_LINGERING: usize = 32;

/// What a timeline keeps of a look: every claim, some lingering sockets, and
/// the number of the others.
pub(super) fn for_the_record(holders: &[JudgedHolder]) -> (Vec<JudgedHolder>, usize) {
    let mut lingering = 0;
    let kept: Vec<JudgedHolder> = holders
        .iter()
        .filter(|holder| {
            lingering += usize::from(!holder.is_claimant());
            holder.is_claimant() || lingering <= MOST_LINGERING
        })
        .cloned()
        .collect();
    let left_out = holders.len() - kept.len();
    (kept, left_out)
}

/// Two looks tell the same story: the same claims by the same owners. Queues
/// fill, connections come and go and TIME_WAIT runs out all the time.
pub(super) fn same_story(one: &[JudgedHolder], other: &[JudgedHolder]) -> bool {
    let claims = |holders: &'_ [JudgedHolder]| -> Vec<_> {
        let claims = holders.iter().filter(|holder| holder.is_claimant());
        claims
            .map(|holder| (holder.holder.socket.cookie, holder.holder.socket.state, holder.owners.clone()))
            .collect()
    };
    one.is_empty() == other.is_empty() && claims(one) == claims(other)
}

/// `None` when the socket meets none of the endpoints, else whether it meets
/// one of them for certain.
pub(super) fn worst_conflict(plan: &Plan, socket: &Socket) -> Option<bool> {
    let worst = plan.endpoints.iter().map(|spec| conflict(spec, socket)).max().unwrap_or(Conflict::None);
    match worst {
        Conflict::None => None,
        Conflict::Possible => Some(false),
        Conflict::Certain => Some(true),
    }
}

/// Each owner of the wanted class once, in ascending order.
fn owners_of(holders: &[&JudgedHolder], wanted: impl Fn(Class) -> bool) -> Vec<(ProcessId, Judgement)> {
    let found: BTreeMap<ProcessId, Judgement> = holders
        .iter()
        .flat_map(|holder| &holder.owners)
        .filter(|owner| wanted(owner.judgement.class))
        .map(|owner| (owner.id, owner.judgement.clone()))
        .collect();
    found.into_iter().collect()
}
