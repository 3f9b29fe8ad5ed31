//! Who lost to whom, as JSON.

use std::net::IpAddr;

use guard_core::gate::JudgedHolder;
use guard_core::model::{FailedBind, Instant, Seen};
use schemars::JsonSchema;
use serde::Serialize;

use super::sockets::{HolderBody, holder};
use super::words;

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct BindFailedBody {
    address: IpAddr,
    port: u16,
    /// `bind`, or `listen` after a `bind` that had succeeded.
    call: &'static str,
    errno: &'static str,
    /// Failures of this process since it was last reported, this one included.
    attempts: u32,
    pid: Option<u32>,
    start: Option<u64>,
    uid: u32,
    comm: String,
    exe: Option<String>,
    argv: Option<Vec<String>>,
    unit: Option<String>,
    cgroup: Option<String>,
    /// By its name it is another portguard, which only probes.
    probe: bool,
    /// Who had the port, as the nearest look showed it.
    holders: Vec<HolderBody>,
    /// When that look began; null when there was none.
    holders_seen_mono_ns: Option<u64>,
}

impl BindFailedBody {
    /// How many failed binds it stands for; another portguard's probes are none.
    pub fn counted(&self) -> u64 {
        if self.probe { 0 } else { u64::from(self.attempts) }
    }
}

pub(super) fn bind_failed(
    bind: &FailedBind,
    holders: &[JudgedHolder],
    looked: Option<Instant>,
) -> BindFailedBody {
    let process = bind.process.as_ref();
    BindFailedBody {
        address: bind.address,
        port: bind.port.get(),
        call: if bind.by_listen { "listen" } else { "bind" },
        errno: "EADDRINUSE",
        attempts: bind.attempts,
        pid: bind.tgid.map(|tgid| tgid.0),
        start: bind.start.map(|start| start.0),
        uid: bind.uid.0,
        comm: bind.comm.clone(),
        exe: process.and_then(|process| process.exe.known().cloned()),
        argv: process.and_then(|process| match &process.argv {
            Seen::Known(argv) => Some(argv.clone()),
            Seen::Hidden | Seen::Absent => None,
        }),
        unit: bind.cgroup.as_deref().and_then(words::unit).map(str::to_owned),
        cgroup: bind.cgroup.clone(),
        probe: bind.looks_like_a_probe(),
        holders: holders.iter().map(holder).collect(),
        holders_seen_mono_ns: looked.map(Instant::as_nanos),
    }
}
