use std::fmt;

/// What the ebpf tier does without on this machine. The verdicts stay the same:
/// events are hints, and other hints stand in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The release of a socket is not observed.
    ReleaseUnobserved {
        /// Why.
        why: String,
    },
    /// The exit of owners is not observed.
    ExitUnobserved {
        /// Why.
        why: String,
    },
    /// Network namespaces cannot be told apart.
    NamespacesUnknown {
        /// Why.
        why: String,
    },
    /// Exits are reported without their status.
    ExitStatusUnknown {
        /// Why.
        why: String,
    },
    /// The exit of a thread group's leader stands for the group's.
    GroupExitGuessed {
        /// Why.
        why: String,
    },
    /// Owners are looked up without BPF.
    OwnersFromProc {
        /// Why.
        why: String,
    },
    /// The release of a port is seen at its beginning, not at its end.
    ReleaseNotExact {
        /// Why.
        why: String,
    },
    /// The end of TIME_WAIT is not seen, only known in advance.
    TimeWaitUnseen {
        /// Why.
        why: String,
    },
    /// Failed binds are not reported.
    FailedBindsUnseen {
        /// Why.
        why: String,
    },
    /// Tasks have no number in the guard's PID namespace.
    TasksUnknown {
        /// Why.
        why: String,
    },
}

impl Loss {
    /// Many good kernels tell no more than this, and it costs a gate microseconds
    /// at most: nothing to warn of.
    pub const fn is_minor(&self) -> bool {
        matches!(
            self,
            Self::ReleaseNotExact { .. } | Self::TimeWaitUnseen { .. } | Self::FailedBindsUnseen { .. }
        )
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, why) = match self {
            Self::ReleaseUnobserved { why } => {
                ("the moment a socket releases its port is not seen, only the end of LISTEN", why)
            }
            Self::ExitUnobserved { why } => ("the exit of owners is seen through pidfds only", why),
            Self::NamespacesUnknown { why } => {
                ("events of the same port in other network namespaces wake the guard too", why)
            }
            Self::ExitStatusUnknown { why } => ("exit codes and signals of owners are not known", why),
            Self::GroupExitGuessed { why } => {
                ("an owner may be reported as gone while other threads of it are still running", why)
            }
            Self::OwnersFromProc { why } => {
                ("owners are looked up in /proc, which is slower and does not show every process", why)
            }
            Self::ReleaseNotExact { why } => {
                ("the release of a port is seen when it begins, under a microsecond early", why)
            }
            Self::TimeWaitUnseen { why } => {
                ("the end of TIME_WAIT is not seen, and awaited by its time of expiry", why)
            }
            Self::FailedBindsUnseen { why } => ("who else fails to bind the port is not seen", why),
            Self::TasksUnknown { why } => {
                ("events do not say which process acted, and exits are not seen", why)
            }
        };
        write!(f, "{what}: {why}")
    }
}
