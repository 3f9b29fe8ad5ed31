use std::net::IpAddr;

use super::{Port, Process, StartTime, Tgid, Uid};

/// A process was told that a guarded port is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedBind {
    /// The address that it asked for.
    pub address: IpAddr,
    /// The port that it asked for.
    pub port: Port,
    /// Its `bind()` had succeeded, and `listen()` failed: another one was faster.
    pub by_listen: bool,
    /// How often it failed since this was last reported of it, this time included.
    pub attempts: u32,
    /// Its thread group; `None` for one outside of the guard's PID namespace.
    pub tgid: Option<Tgid>,
    /// When its thread group began, where the kernel told.
    pub start: Option<StartTime>,
    /// `comm` of the thread.
    pub comm: String,
    /// Its user.
    pub uid: Uid,
    /// Its cgroup, where it could be found.
    pub cgroup: Option<String>,
    /// What `/proc` showed of it; `None` when it was gone already.
    pub process: Option<Process>,
}

impl FailedBind {
    /// By its name another portguard, whose probes fail while it waits. A name
    /// proves nothing, and nothing but words depends on it.
    pub fn looks_like_a_probe(&self) -> bool {
        self.comm == "portguard"
    }
}
