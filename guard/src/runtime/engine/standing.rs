//! What is known of a service while nothing is under way for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use guard_core::conflict::excludes_others;
use guard_core::gate::Gate;
use guard_core::model::{Instant, Port, ProcessId, SocketCookie, Unit};
use tokio::sync::oneshot;

use super::service::Service;

/// A look is repeated no sooner than this, however many hints ask for it.
const PACE: Duration = Duration::from_millis(100);

/// A look that is younger than this, and that no hint contradicts, is current.
const CURRENT: Duration = Duration::from_millis(250);

/// A look that could not begin is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// The state of one service.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) service: Arc<Service>,
    pub(super) ports: Vec<Port>,
    /// The look that is under way. Few services have one at a time, and a gate is large.
    pub(super) gate: Option<Box<Gate>>,
    /// A hint contradicts what is known.
    pub(super) outdated: bool,
    /// When the last look, or the one that is under way, began.
    pub(super) began: Option<Instant>,
    /// When the last look ended.
    ended: Option<Instant>,
    /// No look begins before this: the last attempt could not even begin one.
    not_before: Option<Instant>,
    /// What the manager of its unit said last.
    pub(super) unit: Option<Box<Unit>>,
    /// Who listens, as far as is known: their exits are told.
    pub(super) owners: BTreeSet<ProcessId>,
    /// The listeners beside which nobody else can begin to listen on any of its endpoints, as the last look found them.
    pub(super) alone: Option<Box<[(SocketCookie, Port)]>>,
    /// Who waits for the look under way, and for the one after it.
    served: Vec<oneshot::Sender<()>>,
    asked: Vec<oneshot::Sender<()>>,
}

impl Standing {
    /// A service that nothing is known of.
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self {
            ports: service.ports(),
            service,
            gate: None,
            outdated: true,
            began: None,
            ended: None,
            not_before: None,
            unit: None,
            owners: BTreeSet::new(),
            alone: None,
            served: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// Somebody wants a current state, from a look that began no sooner than `after`.
    pub(super) fn ask(&mut self, reply: oneshot::Sender<()>, after: Option<Instant>, now: Instant) {
        let young = after.is_none_or(|after| self.began.is_some_and(|began| began >= after));
        let current = young && self.ended.is_some_and(|ended| now.since(ended) < CURRENT);
        if current && !self.outdated && self.gate.is_none() {
            // Whoever went away needs no answer.
            let _gone = reply.send(());
        } else {
            self.asked.push(reply);
        }
    }

    /// When the next look shall begin. `busy`: a run is under way, which sees
    /// for itself; then only who asks is a reason to look.
    pub(super) fn due(&self, busy: bool) -> Option<Instant> {
        let wanted = !self.asked.is_empty() || (self.outdated && !busy);
        if self.gate.is_some() || !wanted {
            return None;
        }
        let paced = self.began.map(|began| began + PACE);
        Some(paced.max(self.not_before).unwrap_or(Instant::from_nanos(0)))
    }

    /// A look could not begin, and is tried again later.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.not_before = Some(now + AGAIN);
    }

    /// A look begins.
    pub(super) fn begin(&mut self, gate: Gate, now: Instant) {
        self.gate = Some(Box::new(gate));
        self.began = Some(now);
        if std::mem::take(&mut self.outdated) {
            self.alone = None;
        }
        self.served.append(&mut self.asked);
    }

    /// What the look that was under way shows of who listens. Where it is somebody else and nobody told of that, another
    /// look has to follow when everything is told again.
    pub(super) fn see(&mut self, gate: &Gate) {
        let sockets = || gate.holders().iter().map(|judged| &judged.holder.socket);
        let of = |spec| {
            let listener = sockets().find(|socket| excludes_others(socket, spec))?;
            Some((listener.cookie?, listener.port))
        };
        let alone = self.service.endpoints.iter().map(of).collect();
        self.outdated |= self.alone.is_some() && self.alone != alone;
        self.alone = alone;
    }

    /// Nothing happens to it that its listeners' end would not tell, as far as the last look goes: one that was asked for
    /// by a client contradicts nothing before it has ended.
    pub(super) fn is_calm(&self) -> bool {
        !self.outdated && self.alone.is_some()
    }

    /// The look that was under way has ended.
    pub(super) fn end(&mut self, now: Instant) {
        self.ended = Some(now);
        for waiter in self.served.drain(..) {
            // Whoever went away needs no answer.
            let _gone = waiter.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use guard_core::gate::{Budgets, Goal};
    use guard_core::model::BindSpec;
    use guard_core::policy::Rules;

    use super::*;
    use crate::runtime::{asker, engine::plan};

    /// Symptom: a sidecar went to rest while it was still looking at who had come in a closed listener's place.
    #[test]
    fn nobody_rests_while_a_contradicted_look_is_repeated() {
        let port = Port::new(18789).expect("not zero");
        let service = Arc::new(Service {
            name: "web".into(),
            endpoints: vec![BindSpec::node_default(port)],
            rules: Arc::new(Rules::default),
            drain: None,
            timeout: None,
            port_only: false,
            evict: false,
            start: None,
            start_budget: Duration::from_secs(1),
        });
        let budgets = Budgets { total: None, ..service.budgets(None) };
        let recheck = Duration::from_secs(1);
        let look = || {
            let plan = plan(&service, Goal::Look, budgets, recheck, asker::bystander(), Rules::default());
            Gate::new(plan, Instant::from_nanos(1))
        };
        let mut standing = Standing::new(Arc::clone(&service));
        assert!(!standing.is_calm());
        (standing.outdated, standing.alone) = (false, Some([(SocketCookie(7), port)].into()));
        // A client's question is no contradiction.
        standing.begin(look(), Instant::from_nanos(1));
        assert!(standing.is_calm());
        standing.outdated = true;
        standing.begin(look(), Instant::from_nanos(2));
        assert!(!standing.is_calm());
        // Nobody told that this listener is gone.
        standing.alone = Some([(SocketCookie(7), port)].into());
        standing.see(&look());
        assert!(standing.outdated && standing.alone.is_none());
        (standing.outdated, standing.alone) = (false, None);
        standing.see(&look());
        assert!(!standing.outdated, "as it was: to look again would show the same");
    }
}
