//! What the programs must know of the running kernel before they are loaded.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use guard_common::Settings;
use nix::sys::stat::{major, minor};

use super::Loss;
use crate::kernel::btf::{BtfError, Member, kernel_offsets};

/// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`: the initial PID namespace.
const INIT_PID_NAMESPACE: u64 = 0xefff_fffc;
/// No namespace has it, so no task is ever found to be in the guard's own.
const NO_PID_NAMESPACE: u64 = 1;

const SOCK_NET: Member = Member { structure: "sock_common", path: &["skc_net", "net"] };
const SOCK_COOKIE: Member = Member { structure: "sock_common", path: &["skc_cookie"] };
const NET_INUM: Member = Member { structure: "net", path: &["ns", "inum"] };
const TASK_SIGNAL: Member = Member { structure: "task_struct", path: &["signal"] };
const TASK_LEADER: Member = Member { structure: "task_struct", path: &["group_leader"] };
const TASK_EXIT_CODE: Member = Member { structure: "task_struct", path: &["exit_code"] };
const SIGNAL_LIVE: Member = Member { structure: "signal_struct", path: &["live"] };
const SIGNAL_FLAGS: Member = Member { structure: "signal_struct", path: &["flags"] };
const SIGNAL_EXIT_CODE: Member = Member { structure: "signal_struct", path: &["group_exit_code"] };

/// Resolves the offsets of kernel members, and says what is lost with those
/// that the kernel does not tell. `struct sock` begins with its `sock_common`.
pub(super) fn resolve_members(settings: &mut Settings, losses: &mut Vec<Loss>) {
    let wanted = [
        SOCK_NET,
        SOCK_COOKIE,
        NET_INUM,
        TASK_SIGNAL,
        TASK_LEADER,
        TASK_EXIT_CODE,
        SIGNAL_LIVE,
        SIGNAL_FLAGS,
        SIGNAL_EXIT_CODE,
    ];
    let (found, why) = match kernel_offsets(&wanted) {
        Ok(found) => (found, None),
        Err(error) => ([None; 9], Some(error)),
    };
    let [net, cookie, inum, signal, leader, code, live, flags, group_code] = found;
    if let (Some(net), Some(inum)) = (net, inum) {
        (settings.sock_net, settings.net_inum) = (net, inum);
    } else {
        losses.push(Loss::NamespacesUnknown { why: reason(why.as_ref(), "struct net") });
    }
    settings.sock_cookie = cookie.unwrap_or(0);
    if let (Some(signal), Some(live)) = (signal, live) {
        (settings.task_signal, settings.signal_live) = (signal, live);
    } else if settings.ctx_group_dead == 0 {
        losses.push(Loss::GroupExitGuessed { why: reason(why.as_ref(), "struct signal_struct") });
    }
    if let (Some(signal), Some(flags), Some(group_code), Some(leader), Some(code)) =
        (signal, flags, group_code, leader, code)
    {
        settings.task_signal = signal;
        (settings.signal_flags, settings.signal_exit_code) = (flags, group_code);
        (settings.task_leader, settings.task_exit_code) = (leader, code);
    } else {
        losses.push(Loss::ExitStatusUnknown { why: reason(why.as_ref(), "struct task_struct") });
    }
}

fn reason(why: Option<&BtfError>, structure: &str) -> String {
    why.map_or_else(
        || format!("the kernel's types show {structure} without the members"),
        ToString::to_string,
    )
}

/// Notes the guard's PID namespace, so that the programs number tasks as it does.
pub(super) fn resolve_pid_namespace(settings: &mut Settings, losses: &mut Vec<Loss>) {
    match pid_namespace() {
        Ok((_, INIT_PID_NAMESPACE)) => {}
        Ok((device, inode)) => (settings.pidns_dev, settings.pidns_ino) = (device, inode),
        Err(source) => {
            settings.pidns_ino = NO_PID_NAMESPACE;
            losses.push(Loss::TasksUnknown { why: format!("cannot read {PID_NAMESPACE}: {source}") });
        }
    }
}

const PID_NAMESPACE: &str = "/proc/self/ns/pid";

/// Device (as the kernel encodes it inside) and inode number.
fn pid_namespace() -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(PID_NAMESPACE)?;
    Ok((major(metadata.dev()) << 20 | minor(metadata.dev()), metadata.ino()))
}
