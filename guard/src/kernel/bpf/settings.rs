//! What the programs must know of the running kernel before they are loaded.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, OnceLock};

use guard_common::{
    Event, Function, INET_CSK_GET_PORT, INET_PUT_PORT, INET_TWSK_KILL, Settings, inet_sock_set_state,
    sched_process_exit, sys_exit, tcp_destroy_sock,
};
use nix::sys::stat::{major, minor};
use thiserror::Error;

use super::numbered::Numbers;
use super::task_file::OwnerTypes;
use super::{BpfError, Loss, rehearsal};
use crate::kernel::btf::{BtfError, Found, Member, Types, vmlinux};
use crate::kernel::features::Answer;

/// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`: the initial PID namespace.
const INIT_PID_NAMESPACE: u64 = 0xefff_fffc;
/// No namespace has it, so no task is ever found to be in the guard's own.
const NO_PID_NAMESPACE: u64 = 1;

/// The members that the programs read, in the order in which [`KernelTypes`] takes them apart.
/// `struct inet_sock` begins with its `struct sock`, and that with its `sock_common`.
const MEMBERS: [Member; 27] = [
    Member { structure: "sock_common", path: &["skc_net", "net"] },
    Member { structure: "sock_common", path: &["skc_cookie"] },
    Member { structure: "net", path: &["ns", "inum"] },
    Member { structure: "task_struct", path: &["signal"] },
    Member { structure: "task_struct", path: &["group_leader"] },
    Member { structure: "task_struct", path: &["exit_code"] },
    Member { structure: "signal_struct", path: &["live"] },
    Member { structure: "signal_struct", path: &["flags"] },
    Member { structure: "signal_struct", path: &["group_exit_code"] },
    // `real_start_time` before 5.5, which has no BTF worth the name.
    Member { structure: "task_struct", path: &["start_boottime"] },
    Member { structure: "task_struct", path: &["files"] },
    Member { structure: "files_struct", path: &["fdt"] },
    Member { structure: "fdtable", path: &["fd"] },
    Member { structure: "file", path: &["private_data"] },
    Member { structure: "socket", path: &["sk"] },
    Member { structure: "inet_connection_sock", path: &["icsk_bind_hash"] },
    Member { structure: "sock_common", path: &["skc_state"] },
    Member { structure: "inet_timewait_sock", path: &["tw_sport"] },
    Member { structure: "sock_common", path: &["skc_family"] },
    // A bit field before 5.6, so not found there.
    Member { structure: "sock", path: &["sk_protocol"] },
    Member { structure: "sock_common", path: &["skc_num"] },
    Member { structure: "inet_sock", path: &["inet_sport"] },
    Member { structure: "sock_common", path: &["skc_dport"] },
    Member { structure: "inet_sock", path: &["inet_saddr"] },
    Member { structure: "sock_common", path: &["skc_daddr"] },
    Member { structure: "sock_common", path: &["skc_v6_rcv_saddr"] },
    Member { structure: "sock_common", path: &["skc_v6_daddr"] },
];

/// The arguments of raw tracepoints, and of functions.
const PROTOTYPES: [&str; 7] = [
    inet_sock_set_state::EVENT.prototype,
    tcp_destroy_sock::EVENT.prototype,
    sched_process_exit::EVENT.prototype,
    sys_exit::EVENT.prototype,
    INET_PUT_PORT.name,
    INET_TWSK_KILL.name,
    INET_CSK_GET_PORT.name,
];

/// What the running kernel tells about its types.
#[derive(Debug)]
pub(super) struct KernelTypes {
    found: Found<{ MEMBERS.len() }, { PROTOTYPES.len() }>,
    /// What the iterator over open files needs, when all of it is there.
    owners: Option<OwnerTypes>,
    /// Why nothing was found.
    why: Option<BtfError>,
}

/// Something that only raw tracepoints need is not in the kernel's types.
#[derive(Debug, Error)]
#[error("{why}")]
struct Untold {
    why: String,
}

impl KernelTypes {
    /// Reads the kernel's types, once for the life of this process.
    pub(super) fn read() -> Arc<Self> {
        static KNOWN: OnceLock<Arc<KernelTypes>> = OnceLock::new();
        if let Some(known) = KNOWN.get() {
            return Arc::clone(known);
        }
        match Self::read_anew() {
            // Whoever was faster found the same.
            Ok(types) => Arc::clone(KNOWN.get_or_init(|| Arc::new(types))),
            // May be different next time.
            Err(why) => Arc::new(Self::unknown(why)),
        }
    }

    pub(super) fn read_anew() -> Result<Self, BtfError> {
        let btf = vmlinux()?;
        let types = Types::of(&btf)?;
        let (found, of_owners) = types.find_both((&MEMBERS, &PROTOTYPES), OwnerTypes::WANTED);
        Ok(Self { found, owners: OwnerTypes::of(&types, of_owners), why: None })
    }

    pub(super) fn unknown(why: BtfError) -> Self {
        Self { found: Found::NOTHING, owners: None, why: Some(why) }
    }

    /// Resolves the offsets that both kinds of tracepoint need, and says what is
    /// lost with those that the kernel does not tell.
    pub(super) fn resolve(&self, settings: &mut Settings, losses: &mut Vec<Loss>) {
        let [net, cookie, inum, signal, leader, code, live, flags, group_code, ..] = self.found.offsets;
        if let (Some(net), Some(inum)) = (net, inum) {
            (settings.sock_net, settings.net_inum) = (net, inum);
        } else {
            losses.push(Loss::NamespacesUnknown { why: self.reason("struct net") });
        }
        settings.sock_cookie = cookie.unwrap_or(0);
        if let (Some(signal), Some(live)) = (signal, live) {
            (settings.task_signal, settings.signal_live) = (signal, live);
        } else if settings.ctx_group_dead == 0 && settings.raw_group_dead == 0 {
            losses.push(Loss::GroupExitGuessed { why: self.reason("struct signal_struct") });
        }
        if let (Some(signal), Some(flags), Some(group_code), Some(leader), Some(code)) =
            (signal, flags, group_code, leader, code)
        {
            settings.task_signal = signal;
            (settings.signal_flags, settings.signal_exit_code) = (flags, group_code);
            (settings.task_leader, settings.task_exit_code) = (leader, code);
        } else {
            losses.push(Loss::ExitStatusUnknown { why: self.reason("struct task_struct") });
        }
    }

    /// Where a socket has its address family; 0 where that is not known.
    pub(super) fn family(&self) -> u32 {
        let [.., family, _, _, _, _, _, _, _, _] = self.found.offsets;
        family.unwrap_or(0)
    }

    /// Resolves the offsets by which the raw tracepoint `event` sees a socket.
    pub(super) fn resolve_sock(&self, event: &Event, settings: &mut Settings) -> Result<(), BpfError> {
        let [.., family, protocol, number, local_port, remote_port, local_v4, remote_v4, local_v6, remote_v6] =
            self.found.offsets;
        let (
            Some(family),
            Some(protocol),
            Some(number),
            Some(local_port),
            Some(remote_port),
            Some(local_v4),
            Some(remote_v4),
        ) = (family, protocol, number, local_port, remote_port, local_v4, remote_v4)
        else {
            return Err(self.untold(event, "struct inet_sock"));
        };
        (settings.sock_family, settings.sock_protocol, settings.sock_number) = (family, protocol, number);
        (settings.sock_local_port, settings.sock_remote_port) = (local_port, remote_port);
        (settings.sock_local_v4, settings.sock_remote_v4) = (local_v4, remote_v4);
        (settings.sock_local_v6, settings.sock_remote_v6) = (local_v6.unwrap_or(0), remote_v6.unwrap_or(0));
        Ok(())
    }

    /// Resolves the way from a task's descriptor to its socket, and when a task began.
    pub(super) fn resolve_descriptors(&self, event: &Event, settings: &mut Settings) -> Result<(), BpfError> {
        let [_, _, _, _, leader, _, _, _, _, start, files, table, array, private, sk, ..] =
            self.found.offsets;
        let (Some(files), Some(table), Some(array), Some(private), Some(sk)) =
            (files, table, array, private, sk)
        else {
            return Err(self.untold(event, "struct files_struct"));
        };
        (settings.task_files, settings.files_table, settings.table_files) = (files, table, array);
        (settings.file_private, settings.socket_sk) = (private, sk);
        // Without them a process is reported without the moment of its birth.
        (settings.task_leader, settings.task_start) = (leader.unwrap_or(0), start.unwrap_or(0));
        Ok(())
    }

    /// The numbers that the kernel's types show.
    pub(super) fn numbers(&self) -> Numbers {
        let numbered = PROTOTYPES.into_iter().zip(self.found.numbers);
        numbered.filter_map(|(name, number)| Some((name, number?))).collect()
    }

    /// Makes sure that programs can be put on `function`.
    pub(super) fn hook_function(&self, function: &Function) -> Result<(), BpfError> {
        let index = PROTOTYPES.iter().position(|prototype| *prototype == function.name);
        let parameters = index.and_then(|index| self.found.parameters[index]);
        let number = index.and_then(|index| self.found.numbers[index]);
        let (Some(number), Some(true)) = (number, parameters.map(|found| found == function.parameters))
        else {
            return Err(BpfError::untold(function.name, Untold { why: self.reason(function.name) }));
        };
        match rehearsal::hook_functions(number) {
            Answer::Yes => Ok(()),
            Answer::No { because } | Answer::CouldNotTell { because } => {
                Err(BpfError::no_functions(function.name, &because))
            }
        }
    }

    /// Resolves what the programs on functions read.
    pub(super) fn resolve_functions(
        &self,
        function: &Function,
        settings: &mut Settings,
    ) -> Result<(), BpfError> {
        let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, bucket, state, mini_port, ..] = self.found.offsets;
        let (Some(bucket), Some(state), Some(mini_port)) = (bucket, state, mini_port) else {
            let why = self.reason("struct inet_connection_sock");
            return Err(BpfError::untold(function.name, Untold { why }));
        };
        (settings.sock_bucket, settings.sock_state, settings.mini_port) = (bucket, state, mini_port);
        Ok(())
    }

    /// Number of arguments of the raw tracepoint `event`, once there are enough.
    pub(super) fn arguments(&self, event: &Event) -> Result<usize, BpfError> {
        let index = PROTOTYPES.iter().position(|prototype| *prototype == event.prototype);
        let parameters = index.and_then(|index| self.found.parameters[index]);
        // The first parameter is the kernel's own and not handed over.
        let arguments = parameters.and_then(|parameters| parameters.checked_sub(1));
        arguments.filter(|&found| found >= event.arguments).ok_or_else(|| self.untold(event, event.prototype))
    }

    fn untold(&self, event: &Event, what: &str) -> BpfError {
        BpfError::untold(event.name, Untold { why: self.reason(what) })
    }

    /// What the iterator over open files needs.
    pub(super) fn owners(&self) -> Result<OwnerTypes, BpfError> {
        self.owners.ok_or_else(|| {
            let why = self.reason("struct file, struct inode, struct task_struct or bpf_iter_task_file");
            BpfError::no_iterator(Untold { why })
        })
    }

    fn reason(&self, what: &str) -> String {
        self.why.as_ref().map_or_else(
            || format!("the kernel's types show {what} not at all or without what is needed"),
            ToString::to_string,
        )
    }
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
