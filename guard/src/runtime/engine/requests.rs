//! What clients ask for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guard_core::gate::{Budgets, Gate, Goal};
use guard_core::policy::Rules;
use tokio::sync::oneshot;
use tracing::info_span;

use super::run::Run;
use super::service::{Kind, Refused, Request, RunInfo, RunNumber, Service, Ticket, Waited, Witness};
use super::standing::Standing;
use super::unit::UnitRun;
use super::{Engine, plan};
use crate::runtime::{asker, now};

impl<W: Witness> Engine<W> {
    pub(super) fn take(&mut self, request: Request) {
        // Whoever went away needs no answer.
        match request {
            Request::Restart { service, reply } => {
                let ticket = self.restart(&service);
                self.tickets.push((reply, ticket));
            }
            Request::Free { service, reply } => {
                let ticket = self.free(&service);
                self.tickets.push((reply, ticket));
            }
            Request::Gate { service, reply } => self.wait(&service, reply),
            Request::Look { service, after, reply } => {
                if let Some(standing) = self.services.get_mut(&service) {
                    standing.ask(reply, after, now());
                }
            }
            Request::Prepare { services, reply } => {
                let _gone = reply.send(services().map(|services| self.prepared = services));
            }
            Request::Commit { reply } => {
                let services = std::mem::take(&mut self.prepared);
                self.configure(services);
                let _gone = reply.send(());
            }
            Request::Refresh => {
                self.services.values_mut().for_each(|standing| standing.outdated = true);
                self.witness.tier(self.doors.observer.tier(), self.doors.observer.shortfall());
            }
            Request::Retire => self.retiring = true,
        }
    }

    fn under_way(&self, service: &str, kind: Kind) -> Option<RunNumber> {
        // A gate that began before a reload may be for other endpoints.
        let endpoints = self.services.get(service).map(|standing| &standing.service.endpoints);
        let same = |run: &Run| kind != Kind::Gate || Some(&run.info.service.endpoints) == endpoints;
        let wanted = |run: &&Run| &*run.info.service.name == service && run.info.kind == kind && same(run);
        self.runs.values().find(wanted).map(|run| run.info.number)
    }

    fn restart(&mut self, name: &str) -> Result<Ticket, Refused> {
        let service = self.service(name)?;
        if service.start.is_none() {
            return Err(Refused::NoRestart);
        }
        self.end_holders(service, Kind::Restart, Kind::Free)
    }

    fn free(&mut self, name: &str) -> Result<Ticket, Refused> {
        let service = self.service(name)?;
        if let Some(unit) = service.unit() {
            return Err(Refused::IsUnit(unit.name.clone()));
        }
        self.end_holders(service, Kind::Free, Kind::Restart)
    }

    fn service(&self, name: &str) -> Result<Arc<Service>, Refused> {
        let standing = self.services.get(name).ok_or(Refused::NoService)?;
        Ok(Arc::clone(&standing.service))
    }

    /// Begins a run of this kind or joins it, unless one of the `other` kind ends the holders
    /// already: they would get two stop signals, or a successor would be taken for one of them.
    fn end_holders(&mut self, service: Arc<Service>, kind: Kind, other: Kind) -> Result<Ticket, Refused> {
        if let Some(number) = self.under_way(&service.name, other) {
            return Err(Refused::Other(number, other));
        }
        if let Some(number) = self.under_way(&service.name, kind) {
            let same = self.runs.get(&number).is_some_and(|run| run.info.service.restarts_like(&service));
            return if same { Ok(Ticket { number, joined: true }) } else { Err(Refused::Outdated(number)) };
        }
        // The same is true of another service that needs the same port, whatever it is called.
        let rival = |run: &&Run| run.info.kind != Kind::Gate && run.info.service.overlaps(&service);
        if let Some(Run { info, .. }) = self.runs.values().find(rival) {
            return Err(Refused::SamePort(info.number, info.kind, Arc::clone(&info.service.name)));
        }
        let budgets = service.budgets(None);
        let number = self.begin(service, kind, Goal::Free, budgets)?;
        Ok(Ticket { number, joined: false })
    }

    fn wait(&mut self, name: &str, reply: oneshot::Sender<Result<Waited, Refused>>) {
        let number = match self.under_way(name, Kind::Gate) {
            Some(number) => Ok(number),
            None => match self.services.get(name).map(|standing| Arc::clone(&standing.service)) {
                // Each client has a deadline of its own.
                Some(service) => {
                    let budgets = Budgets { total: None, ..service.budgets(None) };
                    self.begin(service, Kind::Gate, Goal::Wait, budgets)
                }
                None => Err(Refused::NoService),
            },
        };
        match number {
            Ok(number) => {
                if let Some(run) = self.runs.get_mut(&number) {
                    run.waiters.push(reply);
                }
            }
            Err(refused) => {
                let _gone = reply.send(Err(refused));
            }
        }
    }

    fn begin(
        &mut self,
        service: Arc<Service>,
        kind: Kind,
        goal: Goal,
        budgets: Budgets,
    ) -> Result<RunNumber, Refused> {
        let rules = if goal == Goal::Wait { Rules::default() } else { service.rules_with(None) };
        let (asker, began) = (asker::asker()?, now());
        let plan = plan(&service, goal, budgets, self.doors.observer.recheck(), asker, rules);
        let number = RunNumber(self.numbers.fetch_add(1, Ordering::Relaxed));
        let span = info_span!("run", number = number.0, service = &*service.name, kind = kind.name());
        let unit = service.unit().filter(|_| kind == Kind::Restart);
        let unit = unit.map(|unit| Box::new(UnitRun::begin(unit, &self.units, number, self.tell.clone())));
        let run = Run {
            ports: service.ports(),
            info: RunInfo { number, service, kind, began },
            gate: Gate::new(plan, began),
            told: 0,
            watched: std::collections::BTreeSet::new(),
            waiters: Vec::new(),
            starting: None,
            unit,
            span,
        };
        *self.busy.entry(Arc::clone(&run.info.service.name)).or_default() += 1;
        self.runs.insert(number, run);
        Ok(number)
    }

    /// Takes up another list of services. What is in both goes on.
    fn configure(&mut self, services: Vec<Service>) {
        let mut old = std::mem::take(&mut self.services);
        let mut kept: BTreeMap<Arc<str>, Standing> = BTreeMap::new();
        for service in services {
            let name = Arc::clone(&service.name);
            let standing = match old.remove(&name) {
                Some(mut standing) if standing.service.endpoints == service.endpoints => {
                    if standing.service.unit() != service.unit() {
                        standing.unit = None;
                    }
                    standing.service = Arc::new(service);
                    standing.outdated = true;
                    standing
                }
                _ => Standing::new(Arc::new(service)),
            };
            kept.insert(name, standing);
        }
        self.services = kept;
        self.watch_ports();
        self.witness.guarded(self.services.keys().cloned().collect());
        self.witness.tier(self.doors.observer.tier(), self.doors.observer.shortfall());
    }
}
