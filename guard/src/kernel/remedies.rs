//! What gives a machine, or a user, a feature that is missing: the command or the setting.

/// For a feature of [`super::features::all`] that is not there. `None` for one that
/// nobody should want.
pub fn remedy(feature: &str) -> Option<String> {
    let text = match feature {
        "sock_diag" | "destroy_announcements" => {
            "modprobe tcp_diag; in a sandbox, allow AF_NETLINK (RestrictAddressFamilies= of a unit)"
        }
        "bound_inactive" => "run Linux 6.8 or later",
        "sock_destroy" => {
            "run as root or with CAP_NET_ADMIN, on a kernel with CONFIG_INET_DIAG_DESTROY (modprobe tcp_diag)"
        }
        "pidfd" => "run Linux 5.3 or later; in a sandbox, allow pidfd_open and pidfd_send_signal",
        "pidfd_getfd" => "run as root or with CAP_SYS_PTRACE, on Linux 5.6 or later",
        "pidfd_exit_info" => "run Linux 6.15 or later; without it some exits show no code",
        "all_processes" => {
            "run as root or with CAP_SYS_PTRACE; where only hidepid is in the way: \
             mount -o remount,hidepid=0 /proc; a security module has its own policy (owners_by_bpf does without)"
        }
        "initial_pid_namespace" => "start the container in the host's: docker run --pid=host, hostPID: true",
        "ipv6" => "sysctl -w net.ipv6.conf.all.disable_ipv6=0; ip link set lo up",
        "btf" => {
            "run a kernel with CONFIG_DEBUG_INFO_BTF; without it tracefs is enough: \
             mount -t tracefs nodev /sys/kernel/tracing"
        }
        "tracefs" => "mount -t tracefs nodev /sys/kernel/tracing",
        "kernel_functions" => {
            "run a kernel with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS (if it is preemptible, Linux 6.9 or later) whose \
             policy lets root attach fentry and fexit programs"
        }
        "owners_by_bpf" => "run as root or with CAP_BPF and CAP_PERFMON, on a kernel with BTF",
        "no_lockdown" => "boot without lockdown=confidentiality; lockdown=integrity hinders nothing",
        capability if capability.starts_with("CAP_") => {
            return Some(format!(
                "run as root, or with AmbientCapabilities={capability} in the unit, or setcap {}+ep on the program",
                capability.to_lowercase()
            ));
        }
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::features;
    use crate::kernel::sandbox::alone;

    #[test]
    fn every_feature_has_a_remedy_but_the_one_that_nobody_should_want() {
        let _alone = alone();
        let without: Vec<_> = features::all()
            .into_iter()
            .map(|feature| feature.name)
            .filter(|name| remedy(name).is_none())
            .collect();
        assert_eq!(without, ["unprivileged_bpf"]);
    }
}
