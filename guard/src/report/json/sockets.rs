//! Sockets, their owners and what binds would meet, as JSON.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use guard_core::gate::{JudgedHolder, JudgedOwner};
use guard_core::model::{Owners, Seen, Socket, TcpState};
use guard_core::prospect::{Expected, Prospect};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Why, millis, whys, words};

/// What a bind of one kind would meet.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct BindBody {
    reuse_address: bool,
    expected: &'static str,
    blockers: BTreeMap<&'static str, usize>,
    clears_in_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct HolderBody {
    state: &'static str,
    address: IpAddr,
    port: u16,
    remote: Option<SocketAddr>,
    v6only: Option<bool>,
    reuse_address: Option<bool>,
    reuse_port: Option<bool>,
    uid: u32,
    inode: Option<u64>,
    cookie: Option<u64>,
    conflict: &'static str,
    kernel_held: bool,
    time_wait_remaining_ms: Option<u64>,
    accept_queue: Option<u32>,
    backlog: Option<u32>,
    owners: OwnersBody,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct OwnersBody {
    visibility: &'static str,
    why: Option<String>,
    processes: Vec<OwnerBody>,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct OwnerBody {
    pid: u32,
    start: u64,
    parent: Option<u32>,
    uid: Option<u32>,
    comm: Option<String>,
    exe: Option<String>,
    exe_deleted: bool,
    argv: Option<Vec<String>>,
    cgroup: Option<String>,
    wait_channel: Option<String>,
    class: &'static str,
    reasons: Vec<Why>,
}

/// A socket that was destroyed.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct SocketBody {
    state: &'static str,
    address: IpAddr,
    port: u16,
    remote: Option<SocketAddr>,
    uid: u32,
    inode: Option<u64>,
    cookie: Option<u64>,
}

pub(super) fn bind(prospect: &Prospect) -> BindBody {
    BindBody {
        reuse_address: prospect.spec.reuse_address,
        expected: match prospect.expected {
            Expected::Success => "success",
            Expected::Unclear => "unclear",
            Expected::Failure => "failure",
        },
        blockers: prospect.blockers.iter().map(|(state, &count)| (state.name(), count)).collect(),
        clears_in_ms: prospect.clears.map(millis),
    }
}

fn remote(socket: &Socket) -> Option<SocketAddr> {
    socket.remote.map(|(address, port)| SocketAddr::new(address, port))
}

pub(super) fn socket_body(socket: &Socket) -> SocketBody {
    SocketBody {
        state: socket.state.name(),
        address: socket.address,
        port: socket.port.get(),
        remote: remote(socket),
        uid: socket.uid.0,
        inode: socket.inode.map(|inode| inode.0),
        cookie: socket.cookie.map(|cookie| cookie.0),
    }
}

pub(super) fn holder(judged: &JudgedHolder) -> HolderBody {
    let socket = &judged.holder.socket;
    let (visibility, why) = match &judged.holder.owners {
        Owners::All(_) => ("all", None),
        Owners::Some(_, why) => ("some", Some(words::unseen(why))),
        Owners::NoFile => ("none", None),
    };
    HolderBody {
        state: socket.state.name(),
        address: socket.address,
        port: socket.port.get(),
        remote: remote(socket),
        v6only: socket.v6only,
        reuse_address: socket.reuse_address,
        reuse_port: socket.reuse_port,
        uid: socket.uid.0,
        inode: socket.inode.map(|inode| inode.0),
        cookie: socket.cookie.map(|cookie| cookie.0),
        conflict: if judged.holder.certain { "certain" } else { "possible" },
        kernel_held: judged.is_kernel_held(),
        time_wait_remaining_ms: socket
            .expires
            .filter(|_| matches!(socket.state, TcpState::TimeWait | TcpState::FinWait2))
            .map(millis),
        accept_queue: socket.accept_queue,
        backlog: socket.backlog,
        owners: OwnersBody { visibility, why, processes: judged.owners.iter().map(owner).collect() },
    }
}

fn owner(owner: &JudgedOwner) -> OwnerBody {
    let process = owner.process.as_ref();
    OwnerBody {
        pid: owner.id.tgid.0,
        start: owner.id.start.0,
        parent: process.and_then(|process| process.parent).map(|parent| parent.0),
        uid: process.map(|process| process.uid.0),
        comm: process.map(|process| process.comm.clone()),
        exe: process.and_then(|process| process.exe.known().cloned()),
        exe_deleted: process.is_some_and(|process| process.exe_deleted),
        argv: process.and_then(|process| match &process.argv {
            Seen::Known(argv) => Some(argv.clone()),
            Seen::Hidden | Seen::Absent => None,
        }),
        cgroup: process.and_then(|process| process.cgroup.clone()),
        wait_channel: process.and_then(|process| process.wait_channel.clone()),
        class: owner.judgement.class.name(),
        reasons: whys(&owner.judgement),
    }
}
