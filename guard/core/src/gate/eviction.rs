//! Which sockets may be destroyed as the last resort.

use std::collections::BTreeSet;

use super::{JudgedHolder, Plan};
use crate::model::{Owners, Socket, SocketCookie, TcpState};
use crate::policy::Class;

/// The sockets to destroy next, given everything in the way.
///
/// It is all or nothing: while one socket stays that may not be destroyed, the
/// port would stay busy and the destruction of the others be in vain. Of what
/// may go, that which nobody has goes first: it costs nobody anything, and the
/// next look may show that it was enough.
pub(super) fn evictable(
    plan: &Plan,
    in_the_way: &[&JudgedHolder],
    evicted: &BTreeSet<SocketCookie>,
) -> Vec<Socket> {
    let in_the_way: Vec<&JudgedHolder> =
        in_the_way.iter().copied().filter(|judged| !is_spent(judged, evicted)).collect();
    if !plan.evict || !in_the_way.iter().all(|judged| may_go(plan, judged)) {
        return Vec::new();
    }
    let (owned, nobodys): (Vec<&JudgedHolder>, Vec<&JudgedHolder>) =
        in_the_way.into_iter().partition(|judged| !judged.owners.is_empty() || judged.is_claimant());
    let next = if nobodys.is_empty() { owned } else { nobodys };
    let untried =
        |judged: &&JudgedHolder| judged.holder.socket.cookie.is_some_and(|cookie| !evicted.contains(&cookie));
    next.into_iter().filter(untried).map(|judged| judged.holder.socket.clone()).collect()
}

/// A destroyed listener stays bound. Whether it still matters depends on a flag
/// that may be out of sight; nothing more can be done about it.
fn is_spent(judged: &JudgedHolder, evicted: &BTreeSet<SocketCookie>) -> bool {
    !judged.holder.certain && judged.holder.socket.cookie.is_some_and(|cookie| evicted.contains(&cookie))
}

fn may_go(plan: &Plan, judged: &JudgedHolder) -> bool {
    let socket = &judged.holder.socket;
    // Without a cookie nothing says that it is still the same socket.
    if socket.cookie.is_none() || judged.holder.owners.hidden().is_some() {
        return false;
    }
    if judged.is_claimant() {
        // A destroyed listener stays bound, and so in the way of a strict bind,
        // until its last file is closed.
        let shared = plan.endpoints.iter().all(|spec| spec.reuse_address);
        // Nor is it kept by an init that nobody may look into: it may be the one
        // that systemd holds for a service.
        let nobodys = matches!(&judged.holder.owners, Owners::All(owners) if owners.is_empty());
        return socket.state == TcpState::Listen && nobodys && shared;
    }
    // A connection may be the one through which portguard is being used.
    judged.owners.iter().all(|owner| matches!(owner.judgement.class, Class::Stale | Class::Foreign))
}
