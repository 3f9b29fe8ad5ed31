//! One look at a time for many gates: what is asked for while a look is under
//! way is asked for together by the next one.

use std::collections::BTreeMap;

use guard_core::gate::Fact;
use guard_core::model::{Ancestor, Owners, Port, Process, ProcessId, Snapshot, Socket, Tgid};

use crate::observe::{LookError, Looker, Wanted};

/// Looks for many gates, each known by a key.
#[derive(Debug)]
pub(super) struct Batch<K> {
    looker: Looker,
    waiting: Vec<Asked<K>>,
    under_way: Option<Vec<Asked<K>>>,
}

/// What one gate wants to see.
#[derive(Clone, Debug)]
pub(super) struct Asked<K> {
    pub(super) key: K,
    pub(super) ports: Vec<Port>,
    pub(super) also: Vec<ProcessId>,
    pub(super) learn: bool,
    /// Descendants and cgroups are asked about: every process on the machine.
    pub(super) everybody: bool,
}

impl<K> Batch<K> {
    pub(super) const fn new(looker: Looker) -> Self {
        Self { looker, waiting: Vec::new(), under_way: None }
    }

    /// Asks for a look that begins after this.
    pub(super) fn ask(&mut self, asked: Asked<K>) {
        self.waiting.push(asked);
    }

    /// Begins the next look when there is one to begin.
    pub(super) fn begin(&mut self) -> Result<(), LookError> {
        if self.under_way.is_some() || self.waiting.is_empty() {
            return Ok(());
        }
        let asked = std::mem::take(&mut self.waiting);
        let wanted = wanted(&asked);
        self.looker.request(wanted)?;
        self.under_way = Some(asked);
        Ok(())
    }

    /// The answer to the look that is under way, and who asked. Cancel safe;
    /// never resolves when nobody did.
    pub(super) async fn next(&mut self) -> (Vec<Asked<K>>, Fact) {
        if self.under_way.is_none() {
            return std::future::pending().await;
        }
        let fact = self.looker.next().await;
        (self.under_way.take().unwrap_or_default(), fact)
    }
}

/// What all of these want to see.
fn wanted<K>(asked: &[Asked<K>]) -> Wanted {
    let mut ports: Vec<Port> = asked.iter().flat_map(|asked| &asked.ports).copied().collect();
    ports.sort_unstable();
    ports.dedup();
    Wanted {
        also: asked.iter().flat_map(|asked| &asked.also).copied().collect(),
        // Whoever is about to end somebody must not have his socket held open.
        learn: asked.iter().all(|asked| asked.learn),
        everybody: asked.iter().any(|asked| asked.everybody),
        ports,
        // Those of a standing looker are in any case.
        only_shown: false,
    }
}

/// The part of a look that one gate asked for.
pub(super) fn part<K>(fact: &Fact, asked: &Asked<K>) -> Fact {
    let Fact::SnapshotTaken(whole) = fact else { return fact.clone() };
    let sockets: Vec<(Socket, Owners)> =
        whole.sockets.iter().filter(|(socket, _)| asked.ports.contains(&socket.port)).cloned().collect();
    if asked.everybody {
        return Fact::SnapshotTaken(Snapshot { sockets, ..whole.clone() });
    }
    let owners = sockets.iter().flat_map(|(_, owners)| owners.seen());
    let wanted = owners.chain(&asked.also).map(|process| process.tgid);
    let known = |tgid: Tgid| Some((tgid, whole.processes.get(&tgid)?.clone()));
    let processes: BTreeMap<Tgid, Process> = wanted.filter_map(known).collect();
    let mut ancestors: BTreeMap<Tgid, Ancestor> = BTreeMap::new();
    for process in processes.values() {
        let mut next = process.parent;
        while let Some(ancestor) = next.and_then(|tgid| whole.ancestor(tgid)) {
            next = ancestor.parent;
            if ancestors.insert(ancestor.id.tgid, ancestor).is_some() {
                break;
            }
        }
    }
    Fact::SnapshotTaken(Snapshot { begun: whole.begun, ended: whole.ended, sockets, processes, ancestors })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use guard_core::model::{Instant, ProcessState, Seen, SocketInode, StartTime, TcpState, Uid};

    use super::*;

    fn process(tgid: u32, parent: u32) -> Process {
        Process {
            id: ProcessId { tgid: Tgid(tgid), start: StartTime(1) },
            parent: Some(Tgid(parent)),
            uid: Uid(0),
            comm: "server".to_owned(),
            exe: Seen::Absent,
            exe_deleted: false,
            argv: Seen::Absent,
            cgroup: None,
            kernel_thread: false,
            state: ProcessState::Sleeping,
            group: None,
            wait_channel: None,
        }
    }

    fn listener(port: u16, owner: u32) -> (Socket, Owners) {
        let socket = Socket {
            address: Ipv4Addr::LOCALHOST.into(),
            mapped: false,
            port: Port::new(port).expect("not zero"),
            remote: None,
            v6only: None,
            device: 0,
            state: TcpState::Listen,
            uid: Uid(0),
            inode: Some(SocketInode(u64::from(port))),
            cookie: None,
            expires: None,
            reuse_address: None,
            reuse_port: None,
            accept_queue: None,
            backlog: None,
        };
        (socket, Owners::All(vec![process(owner, 1).id]))
    }

    #[test]
    fn a_look_for_many_is_as_careful_as_any_of_them_needs() {
        let port = |port| Port::new(port).expect("not zero");
        let asked = |number, learn, everybody| Asked {
            key: (),
            ports: vec![port(number), port(80)],
            also: vec![process(u32::from(number), 1).id],
            learn,
            everybody,
        };
        let all = wanted(&[asked(82, true, false), asked(81, false, true)]);
        assert_eq!(all.ports, [port(80), port(81), port(82)]);
        assert_eq!(all.also, [process(82, 1).id, process(81, 1).id]);
        assert!(!all.learn && all.everybody && !all.only_shown, "{all:?}");
        let modest = wanted(&[asked(82, true, false)]);
        assert!(modest.learn && !modest.everybody && !modest.only_shown, "{modest:?}");
    }

    #[test]
    fn each_gate_gets_its_own_ports_with_their_owners_and_ancestors() {
        let processes = [process(6, 5), process(9, 5)];
        let ancestors = [process(1, 0), process(5, 1)];
        let whole = Fact::SnapshotTaken(Snapshot {
            begun: Instant::from_nanos(1),
            ended: Instant::from_nanos(2),
            sockets: vec![listener(80, 6), listener(81, 9)],
            processes: processes.into_iter().map(|process| (process.id.tgid, process)).collect(),
            ancestors: ancestors.iter().map(|process| (process.id.tgid, process.into())).collect(),
        });
        let asked = |port: u16, also| Asked {
            key: (),
            ports: vec![Port::new(port).expect("not zero")],
            also,
            learn: true,
            everybody: false,
        };
        let seen = |fact: Fact| match fact {
            Fact::SnapshotTaken(snapshot) => (
                snapshot.sockets.iter().map(|(socket, _)| socket.port.get()).collect::<Vec<_>>(),
                snapshot.processes.keys().map(|tgid| tgid.0).collect::<Vec<_>>(),
                snapshot.ancestors.keys().map(|tgid| tgid.0).collect::<Vec<_>>(),
            ),
            other => panic!("no snapshot: {other:?}"),
        };
        assert_eq!(seen(part(&whole, &asked(80, Vec::new()))), (vec![80], vec![6], vec![1, 5]));
        assert_eq!(
            seen(part(&whole, &asked(80, vec![process(9, 1).id]))),
            (vec![80], vec![6, 9], vec![1, 5])
        );
        let failed = Fact::SnapshotFailed("no /proc".to_owned());
        assert_eq!(part(&failed, &asked(80, Vec::new())), failed);
    }
}
