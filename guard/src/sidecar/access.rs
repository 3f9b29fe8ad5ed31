//! Who asks, and what may be asked of which service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::config::{Config, Endpoint, Grant, Restart, ServiceConfig};
use super::documents::{EndpointDocument, UnitDocument};
use crate::runtime::netns;
use crate::runtime::spelling::{Address, Scope};

/// The process at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) uid: u32,
    /// Its group and the supplementary ones.
    pub(super) groups: Vec<u32>,
}

/// What the configuration says about requests.
#[derive(Debug)]
pub(super) struct Access {
    own_user: u32,
    services: BTreeMap<Arc<str>, Rights>,
    /// Those that a reload has dropped, as they were: what they began goes on, and whoever could
    /// follow it still can, for as long as there is something to be told of it.
    former: BTreeMap<Arc<str>, Rights>,
}

#[derive(Clone, Debug)]
struct Rights {
    observe: Grant,
    control: Grant,
    profile: Profile,
}

/// What the configuration says of a service, for whoever may see it.
#[derive(Clone, Debug, Default)]
pub(super) struct Profile {
    /// It says how the service is started.
    pub(super) can_restart: bool,
    pub(super) unit: Option<UnitDocument>,
    pub(super) endpoints: Vec<EndpointDocument>,
    /// The sidecar's own network namespace, when it is the service's too.
    pub(super) netns: Option<u64>,
}

impl Profile {
    fn new(service: &ServiceConfig, own_netns: Option<u64>) -> Self {
        let endpoint = |endpoint: &Endpoint| {
            let address = endpoint.address.clone().unwrap_or_else(Address::everywhere);
            EndpointDocument {
                address: address.ip,
                port: endpoint.port.get(),
                v6only: service.v6only && address.ip.is_ipv6(),
                reuse_address: !service.strict_bind,
                interface: match address.scope {
                    Scope::None => None,
                    Scope::Index(index) => Some(index.to_string()),
                    Scope::Interface(name) => Some(name),
                },
            }
        };
        Self {
            can_restart: service.restart.is_some(),
            unit: match &service.restart {
                Some(Restart::Unit { manager, name, .. }) => Some(UnitDocument::new(*manager, name)),
                Some(Restart::Command(_)) | None => None,
            },
            endpoints: service.endpoints.iter().map(endpoint).collect(),
            netns: own_netns.filter(|_| service.netns.is_none()),
        }
    }
}

impl Access {
    pub(super) fn new(config: &Config, own_user: u32) -> Self {
        // Where it cannot be told, clients compare it with nothing.
        let own_netns = netns::current().ok().map(|inode| inode.0);
        let rights = |service: &ServiceConfig| Rights {
            observe: service.observe.clone(),
            control: service.control.clone(),
            profile: Profile::new(service, own_netns),
        };
        let services =
            config.services.iter().map(|service| (Arc::clone(&service.name), rights(service))).collect();
        Self { own_user, services, former: BTreeMap::new() }
    }

    /// These rights from now on, after `before`. `known`: of whom something is kept, so that it can
    /// be told. What was dropped just now counts too: the word of that is on its way.
    pub(super) fn after(mut self, before: &Self, known: &BTreeSet<Arc<str>>) -> Self {
        let former = before.former.iter().filter(|(name, _)| known.contains(*name));
        let dropped = former.chain(&before.services);
        let dropped = dropped.filter(|(name, _)| !self.services.contains_key(*name));
        self.former = dropped.map(|(name, rights)| (Arc::clone(name), rights.clone())).collect();
        self
    }

    /// Root, or the sidecar's own user.
    pub(super) fn is_superior(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own_user
    }

    /// The service of that name, as far as `peer` may know.
    pub(super) fn visible(&self, peer: &Peer, name: &str) -> Option<Arc<str>> {
        let (name, _) = self.services.get_key_value(name)?;
        self.may_observe(peer, name).then(|| Arc::clone(name))
    }

    /// Whoever may restart a service may see it too, also what is left of one that a reload has dropped.
    pub(super) fn may_observe(&self, peer: &Peer, name: &str) -> bool {
        let Some(rights) = self.services.get(name).or_else(|| self.former.get(name)) else { return false };
        self.is_superior(peer)
            || rights.observe.covers(peer.uid, &peer.groups)
            || rights.control.covers(peer.uid, &peer.groups)
    }

    pub(super) fn may_control(&self, peer: &Peer, name: &str) -> bool {
        let Some(rights) = self.services.get(name) else { return false };
        self.is_superior(peer) || rights.control.covers(peer.uid, &peer.groups)
    }

    /// What the configuration says of it.
    pub(super) fn profile(&self, name: &str) -> Profile {
        self.services.get(name).map(|rights| rights.profile.clone()).unwrap_or_default()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, groups: &[u32]) -> Peer {
        Peer { uid, groups: groups.to_vec() }
    }

    fn access() -> Access {
        let text = "
            [service.open]
            endpoints = [80]
            [service.closed]
            endpoints = [81]
            observe = { uid = [7] }
            control = { uid = [8], gid = [9] }
        ";
        Access::new(&Config::parse(text).expect("a configuration"), 5)
    }

    #[test]
    fn only_the_superuser_and_the_sidecar_s_own_user_control_what_nobody_was_granted() {
        let access = access();
        assert!(access.may_control(&peer(0, &[]), "open") && access.may_control(&peer(5, &[]), "open"));
        assert!(!access.may_control(&peer(7, &[0]), "open"));
        assert!(access.may_observe(&peer(1, &[]), "open"));
    }

    #[test]
    fn what_may_not_be_observed_is_not_there() {
        let access = access();
        assert!(access.visible(&peer(1, &[]), "closed").is_none());
        assert!(access.visible(&peer(7, &[]), "closed").is_some());
        assert!(access.visible(&peer(0, &[]), "no-such").is_none());
    }

    #[test]
    fn whoever_could_follow_a_service_follows_it_after_a_reload_has_dropped_it() {
        let config = |text| Access::new(&Config::parse(text).expect("a configuration"), 5);
        let kept = "[service.open]\nendpoints = [80]\n";
        let nothing = BTreeSet::new();
        let reloaded = config(kept).after(&access(), &nothing);
        let seen = |access: &Access, uid| access.may_observe(&peer(uid, &[]), "closed");
        assert!(seen(&reloaded, 7) && !seen(&reloaded, 1), "as it was");
        assert!(reloaded.visible(&peer(0, &[]), "closed").is_none(), "nothing more can be asked of it");
        assert!(!reloaded.may_control(&peer(0, &[]), "closed"));
        let known = BTreeSet::from(["closed".into()]);
        assert!(seen(&config(kept).after(&reloaded, &known), 7), "another reload");
        let back =
            config("[service.closed]\nendpoints = [81]\nobserve = { uid = [1] }\n").after(&reloaded, &known);
        assert!(seen(&back, 1) && !seen(&back, 7), "it is back with other rights");
        let forgotten = config(kept).after(&reloaded, &nothing);
        assert!(forgotten.former.is_empty(), "nothing is left of it that could be told");
    }

    #[test]
    fn control_comes_with_sight_and_not_the_other_way_round() {
        let access = access();
        assert!(access.may_observe(&peer(8, &[]), "closed") && access.may_control(&peer(8, &[]), "closed"));
        assert!(access.may_control(&peer(1, &[3, 9]), "closed"), "a supplementary group counts");
        assert!(!access.may_control(&peer(7, &[]), "closed"));
    }
}
