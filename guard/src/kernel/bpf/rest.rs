//! Doing without the program on state changes, which runs ten times for a connection between two sockets of the machine.
//!
//! Of a port on which somebody listens, and nobody else can begin to, nothing is to be told but the end of that
//! listener. Its destruction tells it, by a program that runs once for each end of a connection.

use std::collections::BTreeSet;

use guard_common::map;
use guard_core::model::{NetnsInode, Port, SocketCookie};

use super::hook::SET_STATE;
use super::{AttachedBy, Bpf, BpfError, Plain, absent_is_fine};

/// A listener that a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownListener {
    /// As the socket table shows it.
    pub cookie: SocketCookie,
    /// Where it listens.
    pub netns: NetnsInode,
    /// On which port, which is watched.
    pub port: Port,
}

impl Bpf {
    /// Whether [`Bpf::rest`] is possible: where the options allow it, with raw tracepoints, whose programs are detached
    /// in no time, and where the programs can tell sockets apart by their cookies.
    pub const fn may_rest(&self) -> bool {
        self.may_rest
    }

    /// Whether state changes are not reported now.
    pub const fn rests(&self) -> bool {
        self.may_rest && self.state_link.is_none()
    }

    /// Takes the program on state changes away, until [`Bpf::wake`]. From now on only what becomes of `listeners` is
    /// reported: when one of them is destroyed, that it closed and that it was released. A listener that is shut down
    /// and kept open is reported when it is destroyed, too. What else is watched is reported as before.
    ///
    /// No end of one of `listeners` is missed in between. Takes some 50 µs (6.18).
    ///
    /// # Errors
    ///
    /// When the kernel refuses to take them, for example because they are too many: then everything is reported as
    /// before.
    pub fn rest(&mut self, listeners: &[KnownListener]) -> Result<(), BpfError> {
        if !self.may_rest {
            return Ok(());
        }
        self.enter(listeners)?;
        match self.state_link.take() {
            Some(link) => SET_STATE.detach(&mut self.ebpf, link),
            None => Ok(()),
        }
    }

    /// Reports everything again. Take a snapshot afterwards of what may have begun to listen meanwhile.
    ///
    /// Takes some 130 µs (6.18). Right after [`Bpf::rest`], when the kernel has to wait for those who may still be in
    /// the tracepoint, up to 15 ms on an idle machine.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. Then nothing is reported of whoever begins to listen.
    pub fn wake(&mut self) -> Result<(), BpfError> {
        if self.rests() {
            self.state_link = SET_STATE.attach(&mut self.ebpf, AttachedBy::Raw)?.link;
        }
        Ok(())
    }

    /// Exactly these are known from now on.
    fn enter(&mut self, listeners: &[KnownListener]) -> Result<(), BpfError> {
        let failed = |error| BpfError::map("write", map::KNOWN, error);
        let wanted: BTreeSet<u64> = listeners.iter().map(|listener| listener.cookie.0).collect();
        for gone in self.entered.difference(&wanted) {
            absent_is_fine(self.known.remove(gone)).map_err(failed)?;
        }
        self.entered.retain(|cookie| wanted.contains(cookie));
        for listener in listeners {
            // An update would change the entry beside a program that reads it.
            if self.entered.contains(&listener.cookie.0) {
                continue;
            }
            let key = self.key(listener.netns, listener.port);
            self.known.insert(listener.cookie.0, Plain(key), 0).map_err(failed)?;
            self.entered.insert(listener.cookie.0);
        }
        Ok(())
    }
}
