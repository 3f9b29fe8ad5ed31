//! Ending everybody in a cgroup at once.

use guard_core::gate::Fact;
use guard_core::model::ProcessId;

use crate::kernel::cgroup;

/// Sends SIGKILL to everybody in `cgroup`, if `members` are still all there is
/// in it, and says what came of it, and to whom.
pub fn kill_cgroup(cgroup: &str, members: Vec<ProcessId>) -> Fact {
    match cgroup::kill(cgroup, &members) {
        Ok(killed) => Fact::CgroupKilled(killed),
        Err(error) => Fact::CgroupNotKilled { members, why: error.to_string() },
    }
}
