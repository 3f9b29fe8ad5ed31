//! What a report adds to what a run found: advice, and the checks behind "nobody".

use std::collections::BTreeSet;

use guard_core::gate::{Gate, JudgedHolder, Outcome};
use guard_core::inquiry::{Elsewhere, Inquiry, TableSource};
use guard_core::model::{Port, TcpState, Tgid, Verdict};
use guard_core::source_ports::Reservation;
use guard_core::timeline::Entry;

use super::words;
use crate::runtime::surroundings;

/// A note, for a person and for a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What kind, stable.
    pub code: &'static str,
    /// The finding.
    pub text: String,
    /// What was checked, or what else there is to know, one by one.
    pub details: Vec<String>,
    /// Commands that help.
    pub commands: Vec<String>,
}

/// What there is to add to a look.
pub fn of_look(gate: &Gate) -> Vec<Note> {
    let nobody = unseen_ports(gate).into_iter().map(|port| nobody(&surroundings::inquire(port)));
    let owners = gate.holders().iter().flat_map(|judged| &judged.owners).map(|owner| owner.id.tgid);
    nobody.chain(residents(owners)).chain(reservations(gate)).collect()
}

/// What there is to add to a look that somebody else took at these ports, and that found these
/// owners.
pub fn around(ports: impl Iterator<Item = Port>, owners: impl Iterator<Item = Tgid>) -> Vec<Note> {
    residents(owners).into_iter().chain(reservations_of(ports)).collect()
}

/// What there is to add to the end of a run.
pub fn of_end(gate: &Gate) -> Vec<Note> {
    if !matches!(gate.outcome(), Some(Outcome::StillBusy { .. })) {
        return Vec::new();
    }
    let advised = gate.timeline().entries().iter().any(|(_, entry)| waits_for_connections(entry));
    of_look(gate).into_iter().filter(|note| !(advised && note.code == RESERVE)).collect()
}

/// What there is to add to a step: advice, the first time that a run finds nothing but
/// connections in its way.
pub fn of_entry(gate: &Gate, entry: &Entry) -> Vec<Note> {
    let mut entries = gate.timeline().entries().iter().map(|(_, entry)| entry);
    let first = entries.find(|entry| waits_for_connections(entry));
    // An entry is told where it lies in the timeline, once.
    match first {
        Some(first) if std::ptr::eq(first, entry) => reservations(gate),
        _ => Vec::new(),
    }
}

/// Owners that live in another network namespace than the sockets they have.
fn residents(owners: impl Iterator<Item = Tgid>) -> Option<Note> {
    let owners: BTreeSet<Tgid> = owners.collect();
    let elsewhere = |&owner: &Tgid| Some((owner, surroundings::lives_elsewhere(owner)?));
    let details: Vec<String> = owners
        .iter()
        .filter_map(elsewhere)
        .map(|(owner, netns)| {
            format!("pid {owner} lives in another network namespace ({netns}) and has a socket in this one")
        })
        .collect();
    (!details.is_empty()).then(|| Note {
        code: "owner_elsewhere",
        text: "a holder belongs to a process of another network namespace".to_owned(),
        details,
        commands: Vec::new(),
    })
}

fn reservations(gate: &Gate) -> Vec<Note> {
    reservations_of(gate.plan().endpoints.iter().map(|spec| spec.port))
}

fn reservations_of(ports: impl Iterator<Item = Port>) -> Vec<Note> {
    let ports: BTreeSet<Port> = ports.collect();
    ports.into_iter().filter_map(|port| Some(reserve(&surroundings::reservation(port)?))).collect()
}

/// Nobody claims the port, and somebody has a connection on it: it may be a client's own.
fn waits_for_connections(entry: &Entry) -> bool {
    let is_claim = |judged: &JudgedHolder| {
        matches!(judged.holder.socket.state, TcpState::Listen | TcpState::BoundInactive | TcpState::Close)
    };
    matches!(entry, Entry::Looked { holders, .. } if !holders.is_empty() && !holders.iter().any(is_claim))
}

/// The ports that are in use although nobody is seen there.
fn unseen_ports(gate: &Gate) -> BTreeSet<Port> {
    if gate.decision().is_none() {
        // Nobody has looked yet.
        return BTreeSet::new();
    }
    let verdicts = gate.verdicts();
    let endpoints = gate.plan().endpoints.iter().zip(&verdicts);
    endpoints
        .filter(|(_, verdict)| matches!(verdict, Verdict::Busy { holders } if holders.is_empty()))
        .map(|(spec, _)| spec.port)
        .collect()
}

const RESERVE: &str = "reserve_port";

fn reserve(reservation: &Reservation) -> Note {
    Note {
        code: RESERVE,
        text: reservation.finding(),
        details: vec![format!(
            "each network namespace has its own; for the machine's initial one, /etc/sysctl.d/60-portguard.conf \
             with the line \"{}\" repeats it at boot",
            reservation.line()
        )],
        commands: vec![reservation.command()],
    }
}

fn nobody(inquiry: &Inquiry) -> Note {
    let mut details = vec![table(&inquiry.table)];
    details.push(match &inquiry.unseen {
        None => "every process's descriptors were looked at".to_owned(),
        Some(unseen) => {
            format!("not every process's descriptors could be looked at: {}", words::unseen(unseen))
        }
    });
    let others = &inquiry.others;
    if others.looked > 0 || others.missed.is_none() {
        let number = match others.looked {
            1 => "1 other network namespace was".to_owned(),
            number => format!("{number} other network namespaces were"),
        };
        let found = if others.listeners.is_empty() { ": nobody listens on the port there" } else { "" };
        details.push(format!("{number} looked into{found}"));
    }
    details.extend(
        others
            .missed
            .iter()
            .map(|why| format!("other network namespaces could not all be looked into: {why}")),
    );
    details.extend(others.listeners.iter().map(elsewhere));
    if !inquiry.table.lists_bound_only() {
        details.push(
            "a socket that is bound and does not listen may have the port: end its process, or wait for it"
                .to_owned(),
        );
    }
    if !matches!(
        inquiry.table,
        TableSource::SockDiag { bound_only: Some(false) } | TableSource::Procfs { .. }
    ) {
        details.push(
            "where no socket explains it, a seccomp filter or a BPF program refuses the bind, or, in WSL with \
             mirrored networking, a program of Windows has the port (netstat -ano there)"
                .to_owned(),
        );
    }
    let commands = others
        .listeners
        .iter()
        .map(|other| format!("portguard status --netns pid:{} --port {}", other.resident, other.socket.port));
    Note {
        code: "nobody_visible",
        text: super::human::NOBODY.to_owned(),
        commands: commands.collect(),
        details,
    }
}

fn table(source: &TableSource) -> String {
    match source {
        TableSource::SockDiag { bound_only } => {
            let bound = match bound_only {
                Some(true) => {
                    "listeners, connections, TIME_WAIT and bound-only sockets were listed by sock_diag"
                }
                Some(false) => {
                    "listeners, connections and TIME_WAIT were listed by sock_diag; this kernel does not list \
                     bound-only sockets (Linux 6.8 does)"
                }
                None => {
                    "listeners, connections and TIME_WAIT were listed by sock_diag; whether bound-only sockets were \
                     could not be found out"
                }
            };
            format!("{bound}, IPv4 and IPv6")
        }
        TableSource::Procfs { why } => format!(
            "listeners, connections and TIME_WAIT were read from /proc/net/tcp and tcp6, which show no bound-only \
             sockets ({why})"
        ),
    }
}

fn elsewhere(other: &Elsewhere) -> String {
    let owners: Vec<String> =
        other.owners.iter().map(|(tgid, comm)| format!("pid {tgid} ({})", words::printable(comm))).collect();
    let of = if owners.is_empty() { String::new() } else { format!(" of {}", owners.join(" and ")) };
    format!(
        "in network namespace {} (of pid {}) there is {}{of}: it is not in the way here, but it may be the one that is meant",
        other.netns,
        other.resident,
        words::socket(&other.socket)
    )
}
