//! The flags of live sockets, read once and remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;

use guard_core::model::{Port, Socket, SocketCookie, SocketInode, TcpState, Tgid};
use tracing::debug;

use crate::kernel::listener::{self, BindFlags};

/// What was learned about sockets, by their cookies, which are never reused.
#[derive(Debug, Default)]
pub(super) struct Learned(BTreeMap<SocketCookie, (Port, BindFlags)>);

impl Learned {
    /// Asks the owners' `descriptors` about the sockets that nothing is known of
    /// yet, and forgets the sockets that are gone from `ports`. Only those that claim the port
    /// are asked about: a connection shares its flag with a listener that may be
    /// gone, and is not guessed at. Without the privilege nothing is learned.
    pub(super) fn learn(
        &mut self,
        table: &[Socket],
        ports: &[Port],
        descriptors: &BTreeMap<SocketInode, (Tgid, RawFd)>,
    ) {
        let there: BTreeSet<SocketCookie> = table.iter().filter_map(|socket| socket.cookie).collect();
        self.0.retain(|cookie, (port, _)| there.contains(cookie) || !ports.contains(port));
        for socket in table.iter().filter(|socket| claims(socket)) {
            let (Some(inode), Some(cookie)) = (socket.inode, socket.cookie) else { continue };
            let Some(&(tgid, fd)) = descriptors.get(&inode) else { continue };
            if self.0.contains_key(&cookie) {
                continue;
            }
            match listener::bind_flags(tgid, fd, cookie) {
                Ok(flags) => {
                    self.0.insert(cookie, (socket.port, flags));
                }
                Err(error) => debug!(%error, %inode, "a socket's flags stay unknown"),
            }
        }
    }

    /// Adds what is known to a row of the table.
    pub(super) fn fill(&self, socket: &mut Socket) {
        let Some((_, flags)) = socket.cookie.and_then(|cookie| self.0.get(&cookie)) else { return };
        // It has begun to close since: what it leaves behind is a connection's affair.
        if !claims(socket) {
            return;
        }
        socket.reuse_address = Some(flags.reuse_address);
        socket.reuse_port = Some(flags.reuse_port);
        socket.v6only = socket.v6only.or(flags.v6only);
    }
}

fn claims(socket: &Socket) -> bool {
    matches!(socket.state, TcpState::Listen | TcpState::BoundInactive)
}
