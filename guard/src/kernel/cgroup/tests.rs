use super::*;
use crate::kernel::sandbox::{Sleeper, alone, eventually, root_or_skip, skip};

/// A cgroup of this test; removed when dropped.
struct Own {
    folder: PathBuf,
    path: String,
}

impl Own {
    fn new(test: &str) -> Option<Self> {
        if !root_or_skip(test) {
            return None;
        }
        let path = format!("/portguard-unit-{}-{test}", std::process::id());
        let folder = mount_point().map(|point| point.join(path.trim_start_matches('/')));
        let made = folder.filter(|folder| std::fs::create_dir(folder).is_ok());
        if made.as_ref().is_none_or(|folder| !folder.join(FREEZE).is_file()) {
            skip(test, "no cgroup v2 that can be frozen");
            return None;
        }
        made.map(|folder| Self { folder, path })
    }

    fn take_in(&self, process: &Sleeper) {
        std::fs::write(self.folder.join("cgroup.procs"), process.tgid().to_string()).unwrap();
    }

    fn is_frozen(&self) -> bool {
        std::fs::read_to_string(self.folder.join(FREEZE)).unwrap().trim() == "1"
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // It stays until its last process is gone; what is left of it is empty.
        eventually("an empty cgroup", || std::fs::remove_dir(&self.folder).ok());
    }
}

fn is_dead(process: &Sleeper) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.tgid())).unwrap();
    stat.contains(") Z ")
}

#[test]
fn everybody_in_a_frozen_cgroup_dies_of_sigkill() {
    let Some(own) = Own::new("everybody_in_a_frozen_cgroup_dies_of_sigkill") else { return };
    let alone = alone();
    let members = [Sleeper::fork(&alone), Sleeper::fork(&alone)];
    for member in &members {
        own.take_in(member);
    }
    kill(&own.path, &members.each_ref().map(Sleeper::id)).unwrap();
    for member in &members {
        eventually("its end", || is_dead(member).then_some(()));
    }
    assert!(!own.is_frozen());
    drop(members);
}

/// It is in other hands now, and was not even frozen.
#[test]
fn whoever_has_left_the_cgroup_is_not_signalled() {
    let Some(own) = Own::new("whoever_has_left_the_cgroup_is_not_signalled") else { return };
    let alone = alone();
    let (member, left) = (Sleeper::fork(&alone), Sleeper::fork(&alone));
    own.take_in(&member);
    let killed = kill(&own.path, &[member.id(), left.id()]).unwrap();
    assert_eq!(killed, [member.id()]);
    eventually("its end", || is_dead(&member).then_some(()));
    assert!(!is_dead(&left));
    drop((member, left));
}

/// Between the look and the signals: `cgroup.kill` would end it too.
#[test]
fn whoever_is_moved_in_at_the_last_moment_saves_everybody() {
    let Some(own) = Own::new("whoever_is_moved_in_at_the_last_moment_saves_everybody") else { return };
    let alone = alone();
    let (member, successor) = (Sleeper::fork(&alone), Sleeper::fork(&alone));
    own.take_in(&member);
    let ended = kill_frozen(&own.path, &[member.id()], |_| own.take_in(&successor));
    let named =
        matches!(&ended, Err(CgroupError::OthersToo { newcomer, .. }) if *newcomer == successor.tgid());
    assert!(named, "{ended:?}");
    assert!(!is_dead(&member) && !is_dead(&successor));
    assert!(!own.is_frozen(), "it goes on");
    drop((member, successor));
}

#[test]
fn a_cgroup_with_a_stranger_in_it_is_not_even_frozen() {
    let Some(own) = Own::new("a_cgroup_with_a_stranger_in_it_is_not_even_frozen") else { return };
    let alone = alone();
    let (member, stranger) = (Sleeper::fork(&alone), Sleeper::fork(&alone));
    own.take_in(&member);
    own.take_in(&stranger);
    let ended = kill_frozen(&own.path, &[member.id()], |_| panic!("frozen"));
    assert!(matches!(ended, Err(CgroupError::OthersToo { .. })), "{ended:?}");
    drop((member, stranger));
}

#[test]
fn a_cgroup_that_somebody_else_froze_stays_frozen() {
    let Some(own) = Own::new("a_cgroup_that_somebody_else_froze_stays_frozen") else { return };
    let alone = alone();
    let member = Sleeper::fork(&alone);
    own.take_in(&member);
    std::fs::write(own.folder.join(FREEZE), "1").unwrap();
    kill(&own.path, &[member.id()]).unwrap();
    eventually("its end", || is_dead(&member).then_some(()));
    assert!(own.is_frozen());
    drop(member);
}
