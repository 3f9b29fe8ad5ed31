//! What is around the port, for the reports: nothing in here decides anything.
//! Asked in the guarded network namespace.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use guard_core::inquiry::{Elsewhere, Inquiry, Others, TableSource};
use guard_core::model::{NetnsInode, Port, SocketInode, Tgid, Unseen};
use guard_core::source_ports::Reservation;
use tracing::debug;

use crate::kernel::elsewhere;
use crate::kernel::features::{self, Answer};
use crate::kernel::netns;
use crate::kernel::procfs;

/// How to keep `port` from being given to clients; `None` when it is not, or
/// when the kernel does not tell.
pub fn reservation(port: Port) -> Option<Reservation> {
    match procfs::source_ports() {
        Ok(ports) => ports.advice(port),
        Err(error) => {
            debug!(%error, "cannot tell which source ports clients are given");
            None
        }
    }
}

/// The network namespace that a process lives in, when it is not the guarded one.
pub fn lives_elsewhere(process: Tgid) -> Option<NetnsInode> {
    match (netns::current(), netns::of(process)) {
        (Ok(here), Ok(there)) => (here != there).then_some(there),
        (Err(error), _) | (_, Err(error)) => {
            debug!(%error, pid = process.0, "cannot tell which network namespace a process lives in");
            None
        }
    }
}

/// The socket table shows sockets that are bound and do not listen (Linux 6.8). In doubt it does not.
pub fn lists_bound_only() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| table().lists_bound_only())
}

/// What was checked, and what else is to be found, when the kernel says that
/// `port` is in use and shows nobody. Takes tens of milliseconds.
pub fn inquire(port: Port) -> Inquiry {
    let others = others(port);
    let inodes: BTreeSet<SocketInode> =
        others.listeners.iter().filter_map(|listener| listener.socket.inode).collect();
    let scan = procfs::owners(&inodes);
    let named = |listener: Elsewhere| {
        let owners = listener.socket.inode.and_then(|inode| scan.owners.get(&inode));
        let owners = owners.into_iter().flatten().map(|&tgid| (tgid, comm(tgid))).collect();
        Elsewhere { owners, ..listener }
    };
    Inquiry {
        table: table(),
        unseen: scan.complete.clone().err().filter(|unseen: &Unseen| !unseen.is_only_init()),
        others: Others { listeners: others.listeners.into_iter().map(named).collect(), ..others },
    }
}

fn comm(tgid: Tgid) -> String {
    // Gone since the scan: its number is all that is left.
    procfs::process(tgid).ok().flatten().map(|process| process.comm).unwrap_or_default()
}

fn table() -> TableSource {
    match features::sock_diag_dump() {
        Answer::Yes => TableSource::SockDiag {
            bound_only: match features::bound_inactive() {
                Answer::Yes => Some(true),
                Answer::No { .. } => Some(false),
                Answer::CouldNotTell { .. } => None,
            },
        },
        Answer::No { because } | Answer::CouldNotTell { because } => TableSource::Procfs { why: because },
    }
}

fn others(port: Port) -> Others {
    match elsewhere::listeners_elsewhere(port) {
        Ok(search) => Others {
            listeners: search
                .found
                .into_iter()
                .map(|(netns, resident, socket)| Elsewhere { netns, resident, socket, owners: Vec::new() })
                .collect(),
            looked: search.looked,
            missed: search.missed,
        },
        Err(error) => Others { listeners: Vec::new(), looked: 0, missed: Some(error.to_string()) },
    }
}
