//! After the gate: has the successor taken the port?

use crate::conflict::{Conflict, conflict};
use crate::model::{BindSpec, ProcessId, Snapshot, TcpState, Tgid, Unit};

/// What a look after the start of the successor found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Nobody listens on the service's endpoints yet.
    NotYet,
    /// The command that was started, or a descendant of it, listens.
    Listening(ProcessId),
    /// Somebody listens who does not descend from the command: a rival, or a
    /// successor that detached itself.
    Other(ProcessId),
    /// Somebody listens whose owner is not visible.
    Hidden,
}

/// Looks for the successor that `command` has become or has started.
pub fn follow(snapshot: &Snapshot, endpoints: &[BindSpec], command: Tgid) -> Follow {
    find(snapshot, endpoints, |owner| descends(snapshot, owner.tgid, command))
}

/// Looks for a process of `unit` that listens, wherever in its cgroup.
pub fn follow_unit(snapshot: &Snapshot, endpoints: &[BindSpec], unit: &Unit) -> Follow {
    find(snapshot, endpoints, |owner| {
        let process = snapshot.processes.get(&owner.tgid).filter(|process| process.id == *owner);
        process.and_then(|process| process.cgroup.as_deref()).is_some_and(|path| unit.has_cgroup(path))
    })
}

fn find(snapshot: &Snapshot, endpoints: &[BindSpec], is_ours: impl Fn(&ProcessId) -> bool) -> Follow {
    let listeners = snapshot.sockets.iter().filter(|(socket, _)| {
        socket.state == TcpState::Listen
            && endpoints.iter().any(|spec| conflict(spec, socket) != Conflict::None)
    });
    let mut found = Follow::NotYet;
    for (_, owners) in listeners {
        for owner in owners.seen() {
            if is_ours(owner) {
                return Follow::Listening(*owner);
            }
            found = Follow::Other(*owner);
        }
        if found == Follow::NotYet {
            found = Follow::Hidden;
        }
    }
    found
}

fn descends(snapshot: &Snapshot, process: Tgid, ancestor: Tgid) -> bool {
    let mut at = process;
    // Each step goes to a parent; a table that was read while processes were
    // reparented could hold a cycle, so it goes up no further than the table is long.
    for _ in 0..=snapshot.processes.len() + snapshot.ancestors.len() {
        if at == ancestor {
            return true;
        }
        match snapshot.ancestor(at).and_then(|process| process.parent) {
            Some(parent) => at = parent,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{
        Instant, Owners, Port, Process, ProcessState, Seen, Socket, SocketInode, StartTime, Uid,
    };

    fn id(tgid: u32) -> ProcessId {
        ProcessId { tgid: Tgid(tgid), start: StartTime(u64::from(tgid)) }
    }

    fn process(tgid: u32, parent: u32) -> Process {
        Process {
            id: id(tgid),
            parent: Some(Tgid(parent)),
            uid: Uid(0),
            comm: "node".to_owned(),
            exe: Seen::Hidden,
            exe_deleted: false,
            argv: Seen::Hidden,
            cgroup: None,
            kernel_thread: false,
            state: ProcessState::Sleeping,
            group: None,
            wait_channel: None,
        }
    }

    fn snapshot(owner: Option<u32>, processes: &[Process]) -> Snapshot {
        let spec = spec();
        let socket = Socket {
            address: spec.address,
            mapped: false,
            port: spec.port,
            remote: None,
            v6only: Some(false),
            device: 0,
            state: TcpState::Listen,
            uid: Uid(0),
            inode: Some(SocketInode(1)),
            cookie: None,
            expires: None,
            reuse_address: None,
            reuse_port: None,
            accept_queue: None,
            backlog: None,
        };
        let owners = Owners::All(owner.map(id).into_iter().collect());
        // Of those above the owner no more is known than who they are.
        let (own, above): (Vec<_>, Vec<_>) =
            processes.iter().partition(|process| owner == Some(process.id.tgid.0));
        Snapshot {
            begun: Instant::from_nanos(0),
            ended: Instant::from_nanos(0),
            sockets: vec![(socket, owners)],
            processes: own.into_iter().map(|process| (process.id.tgid, process.clone())).collect(),
            ancestors: above.into_iter().map(|process| (process.id.tgid, process.into())).collect(),
        }
    }

    fn spec() -> BindSpec {
        BindSpec::node_default(Port::new(18789).expect("not zero"))
    }

    #[test]
    fn the_command_or_a_grandchild_of_it_is_the_successor() {
        let tree = [process(10, 1), process(11, 10), process(12, 11)];
        for owner in [10, 12] {
            let found = follow(&snapshot(Some(owner), &tree), &[spec()], Tgid(10));
            assert_eq!(found, Follow::Listening(id(owner)));
        }
    }

    #[test]
    fn a_stranger_is_not_the_successor() {
        let found = follow(&snapshot(Some(20), &[process(20, 1)]), &[spec()], Tgid(10));
        assert_eq!(found, Follow::Other(id(20)));
        assert_eq!(follow(&snapshot(None, &[]), &[spec()], Tgid(10)), Follow::Hidden);
        let empty = Snapshot { sockets: Vec::new(), processes: BTreeMap::new(), ..snapshot(None, &[]) };
        assert_eq!(follow(&empty, &[spec()], Tgid(10)), Follow::NotYet);
    }

    #[test]
    fn a_cycle_of_parents_ends() {
        let tree = [process(20, 21), process(21, 20)];
        assert_eq!(follow(&snapshot(Some(20), &tree), &[spec()], Tgid(10)), Follow::Other(id(20)));
    }
}
