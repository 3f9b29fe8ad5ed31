//! `/proc/PID/stat`: one line that any process may try to confuse.

use guard_core::model::{ProcessState, StartTime, Tgid};

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u64 = 0x0020_0000;

/// What is used of the line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) comm: String,
    pub(super) state: ProcessState,
    /// `None`: PID 1, the kernel's own threads' root, or a parent outside the
    /// PID namespace, which all show 0.
    pub(super) parent: Option<Tgid>,
    /// `None` outside of the PID namespace.
    pub(super) group: Option<Tgid>,
    pub(super) kernel_thread: bool,
    pub(super) start: StartTime,
}

impl Stat {
    /// Fields by their number in proc_pid_stat(5). The comm may contain spaces,
    /// parentheses and newlines; no later field does, so it ends at the *last*
    /// closing parenthesis.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|&b| b == b'(')?;
        let close = line.iter().rposition(|&b| b == b')')?;
        let comm = String::from_utf8_lossy(line.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let parent: u32 = field(4)?.parse().ok()?;
        let group: u32 = field(5)?.parse().ok()?;
        let flags: u64 = field(9)?.parse().ok()?;
        Some(Self {
            comm,
            state: state(field(3)?.chars().next()?),
            parent: (parent != 0).then_some(Tgid(parent)),
            group: (group != 0).then_some(Tgid(group)),
            kernel_thread: flags & PF_KTHREAD != 0,
            start: StartTime(field(22)?.parse().ok()?),
        })
    }
}

const fn state(letter: char) -> ProcessState {
    match letter {
        'R' => ProcessState::Running,
        'S' | 'I' => ProcessState::Sleeping,
        'D' => ProcessState::Uninterruptible,
        'T' => ProcessState::Stopped,
        't' => ProcessState::Traced,
        'Z' => ProcessState::Zombie,
        'X' | 'x' => ProcessState::Dead,
        other => ProcessState::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10000 300";

    #[test]
    fn a_comm_with_parentheses_cannot_forge_later_fields() {
        let line = format!("42 (a) R 1 (b) Z 9) {TAIL}");
        let stat = Stat::parse(line.as_bytes()).unwrap();
        assert_eq!(stat.comm, "a) R 1 (b) Z 9");
        assert_eq!(stat.state, ProcessState::Sleeping);
        assert_eq!(stat.parent, Some(Tgid(7)));
        assert_eq!(stat.start, StartTime(987_654));
        assert!(!stat.kernel_thread);
    }

    #[test]
    fn nonsense_is_no_stat() {
        for line in ["", "42", "42 (", "42 )x( S", "42 (x)", "42 (x) S 1 2 3", "42 (x) S a b c d e f g"] {
            assert_eq!(Stat::parse(line.as_bytes()), None, "{line:?}");
        }
    }
}
