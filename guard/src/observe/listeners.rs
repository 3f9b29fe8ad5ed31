//! What a unit listens on now, to guard what it will want again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use guard_core::model::{BindSpec, Socket, SocketInode, Unit};
use tracing::debug;

use super::learned::Learned;
use crate::kernel::procfs;
use crate::kernel::sock_diag::{SockDiag, SockDiagError};

/// How each listener of the unit's processes was bound, in the caller's network
/// namespace. Where this user may not ask, `SO_REUSEADDR` is taken for granted, as
/// Node, Go and Rust set it. `SO_REUSEPORT` is left out: a probe with it would share
/// the port with a leftover of the same user.
///
/// # Errors
///
/// When the listeners cannot be listed; see [`SockDiagError`].
pub fn listeners_of(unit: &Unit) -> Result<Vec<BindSpec>, SockDiagError> {
    let table = SockDiag::open()?.listeners()?;
    let inodes: BTreeSet<SocketInode> = table.iter().filter_map(|socket| socket.inode).collect();
    let scan = procfs::owners(&inodes);
    let is_the_unit_s = |socket: &Socket| {
        let owners = socket.inode.and_then(|inode| scan.owners.get(&inode)).into_iter().flatten();
        owners.copied().any(|tgid| match procfs::process(tgid) {
            Ok(process) => {
                process.and_then(|process| process.cgroup).is_some_and(|path| unit.has_cgroup(&path))
            }
            Err(error) => {
                debug!(%error, %tgid, "cannot tell whose process it is");
                false
            }
        })
    };
    let mut own: Vec<Socket> = table.iter().filter(|socket| is_the_unit_s(socket)).cloned().collect();
    let mut learned = Learned::default();
    learned.learn(&own, &[], &scan.descriptors);
    let mut specs: Vec<BindSpec> = Vec::new();
    for socket in &mut own {
        learned.fill(socket);
        let spec = BindSpec {
            address: socket.address,
            scope: if is_link_local(socket.address) { socket.device } else { 0 },
            port: socket.port,
            v6only: socket.v6only.unwrap_or(false),
            reuse_address: socket.reuse_address.unwrap_or(true),
            reuse_port: false,
        };
        if !specs.contains(&spec) {
            specs.push(spec);
        }
    }
    Ok(specs)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
