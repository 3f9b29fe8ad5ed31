use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use super::*;
use crate::kernel::sandbox::{Actor, Sleeper, alone, become_nobody, eventually, root_or_skip, skip};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Neither can fail before the child is reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Killed {
    fn describe(&self) -> Process {
        process(Tgid(self.0.id())).unwrap().unwrap()
    }
}

fn sleep_program() -> std::path::PathBuf {
    fs::canonicalize("/bin/sleep").unwrap()
}

#[test]
fn one_s_own_process_is_described() {
    let own = process(Tgid(std::process::id())).unwrap().unwrap();
    assert_eq!(own.id.tgid.0, std::process::id());
    assert_eq!(Some(own.id.start), start_time(own.id.tgid).unwrap());
    assert_eq!(own.parent.map(|parent| parent.0), Some(std::os::unix::process::parent_id()));
    assert_eq!(own.uid, Uid(nix::unistd::geteuid().as_raw()));
    assert_eq!(own.exe.known().map(String::as_str), std::env::current_exe().unwrap().to_str());
    assert_eq!(own.argv.known().unwrap(), &std::env::args().collect::<Vec<_>>());
    assert!(!own.exe_deleted && !own.kernel_thread);
    assert!(own.cgroup.is_some_and(|path| path.starts_with('/')));
}

#[test]
fn a_process_that_ended_is_none() {
    let alone = alone();
    let child = Sleeper::fork(&alone);
    let tgid = child.tgid();
    assert!(process(tgid).unwrap().is_some());
    drop(child);
    assert_eq!(process(tgid).unwrap(), None);
    assert_eq!(start_time(tgid).unwrap(), None);
    assert_eq!(process(Tgid(u32::MAX)).unwrap(), None);
}

#[test]
fn a_zombie_is_described_without_image() {
    let alone = alone();
    let child = Sleeper::fork(&alone);
    child.kill();
    let zombie = eventually("a zombie", || {
        process(child.tgid()).unwrap().filter(|process| process.state == ProcessState::Zombie)
    });
    assert_eq!((zombie.exe, zombie.argv), (Seen::Absent, Seen::Absent));
    assert_eq!(zombie.id, child.id());
}

#[test]
fn the_image_of_a_dead_leader_is_read_from_a_live_thread() {
    let alone = alone();
    let actor = Actor::play("leaderless", &alone);
    let leaderless = process(actor.tgid()).unwrap().unwrap();
    assert_eq!(leaderless.state, ProcessState::Zombie);
    assert_eq!(leaderless.exe.known().map(String::as_str), std::env::current_exe().unwrap().to_str());
    assert!(leaderless.argv.known().unwrap().contains(&"--nocapture".to_owned()));
}

/// Who has a socket could otherwise pass for somebody in no service at all.
#[test]
fn a_cgroup_that_cannot_be_read_is_an_error_and_not_none() {
    const TEST: &str = "a_cgroup_that_cannot_be_read_is_an_error_and_not_none";
    let alone = alone();
    if !root_or_skip(TEST) {
        return;
    }
    let child = Sleeper::fork(&alone);
    let tgid = child.tgid();
    let answer = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        // A mount namespace belongs to a thread, once it does not share its folders any more.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        // Its first page is not mapped: reading there fails with EIO.
        let (unreadable, file) = ("/proc/self/mem", format!("/proc/{tgid}/cgroup"));
        mount(Some(unreadable), file.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        process(tgid)
    });
    let error = answer.join().unwrap().unwrap_err();
    assert!(matches!(&error, ProcError::Failed { path, .. } if path.ends_with("/cgroup")), "{error}");
    assert!(process(tgid).unwrap().unwrap().cgroup.is_some());
}

#[test]
fn the_effective_user_counts() {
    let _alone = alone();
    if !root_or_skip("the_effective_user_counts") {
        return;
    }
    let child = Killed(Command::new(sleep_program()).arg("1000").uid(65534).spawn().unwrap());
    let uid = eventually("the child's exec", || {
        Some(child.describe()).filter(|p| p.comm == "sleep").map(|p| p.uid)
    });
    assert_eq!(uid, Uid(65534));
}

#[test]
fn argv_is_as_the_process_shows_it() {
    let _alone = alone();
    let child = Killed(Command::new(sleep_program()).arg0("a title").args(["1000", "0"]).spawn().unwrap());
    let argv =
        eventually("the child's exec", || child.describe().argv.known().filter(|a| a.len() == 3).cloned());
    assert_eq!(argv, ["a title", "1000", "0"]);
}

#[test]
fn a_deleted_executable_is_marked_and_its_name_kept() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    for (name, delete, expected) in [
        ("server", true, ("server", true)),
        ("server", false, ("server", false)),
        ("odd (deleted)", false, ("odd (deleted)", false)),
        ("odd (deleted)", true, ("odd (deleted)", true)),
    ] {
        let path = dir.path().join(name);
        fs::copy(sleep_program(), &path).unwrap();
        let child =
            Killed(eventually("no writer of the copy", || Command::new(&path).arg("1000").spawn().ok()));
        let shown =
            |process: &Process| process.exe.known().map(|exe| exe.starts_with(dir.path().to_str().unwrap()));
        eventually("the child's exec", || shown(&child.describe()).filter(|shown| *shown));
        if delete {
            fs::remove_file(&path).unwrap();
        }
        let process = child.describe();
        assert_eq!(process.exe.known().unwrap(), dir.path().join(expected.0).to_str().unwrap());
        assert_eq!(process.exe_deleted, expected.1, "{name}");
        drop(child);
        let _ = fs::remove_file(&path);
    }
}

#[test]
fn a_replaced_executable_counts_as_deleted() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    fs::copy(sleep_program(), &path).unwrap();
    let child = Killed(eventually("no writer of the copy", || Command::new(&path).arg("1000").spawn().ok()));
    eventually("the child's exec", || (child.describe().exe.known()? == path.to_str()?).then_some(()));
    let update = dir.path().join("update");
    fs::copy(sleep_program(), &update).unwrap();
    fs::rename(&update, &path).unwrap();
    let process = child.describe();
    assert_eq!(process.exe.known().unwrap(), path.to_str().unwrap());
    assert!(process.exe_deleted);
}

#[test]
fn kernel_threads_are_marked() {
    let kthreadd = process(Tgid(2)).unwrap().filter(|process| process.comm == "kthreadd");
    let Some(kthreadd) = kthreadd else {
        return skip("kernel_threads_are_marked", "no kernel threads are visible here");
    };
    assert!(kthreadd.kernel_thread);
    assert_eq!((kthreadd.exe, kthreadd.argv, kthreadd.parent), (Seen::Absent, Seen::Absent, None));
}

#[test]
fn another_user_s_image_is_hidden_and_not_absent() {
    let alone = alone();
    if !root_or_skip("another_user_s_image_is_hidden_and_not_absent") {
        return;
    }
    let child = Sleeper::fork(&alone);
    let tgid = child.tgid();
    let seen = std::thread::spawn(move || {
        become_nobody();
        process(tgid).unwrap().unwrap()
    });
    let seen = seen.join().unwrap();
    assert_eq!(seen.exe, Seen::Hidden);
    assert_eq!(seen.id, child.id());
}

#[test]
fn ancestors_reach_the_top() {
    let alone = alone();
    let child = Sleeper::fork(&alone);
    let ancestors = ancestors(child.tgid()).unwrap();
    assert_eq!(ancestors.hidden, None);
    let first = ancestors.seen.first().unwrap();
    assert_eq!(first.id.tgid.0, std::process::id());
    assert_eq!(ancestors.seen.last().unwrap().parent, None);
    for pair in ancestors.seen.windows(2) {
        assert_eq!(pair[0].parent, Some(pair[1].id.tgid));
    }
    let whole = process(first.id.tgid).unwrap().unwrap();
    assert_eq!(*first, Ancestor::from(&whole));
}

#[test]
fn the_deeper_cgroup_wins() {
    for (text, expected) in [
        ("0::/user.slice/a.service\n", Some("/user.slice/a.service")),
        ("9:name=systemd:/system.slice/a.service\n0::/\n", Some("/system.slice/a.service")),
        ("9:name=systemd:/\n0::/x\n", Some("/x")),
        ("9:name=systemd:/y\n0::/x\n", Some("/x")),
        ("9:name=systemd:/a:b/c\n4:memory:/deep/er/still\n", Some("/a:b/c")),
        ("4:memory:/z\n", None),
        ("", None),
    ] {
        assert_eq!(most_specific_cgroup(text.as_bytes()).as_deref(), expected, "{text:?}");
    }
}

#[test]
fn the_tick_is_a_hundredth_of_a_second_here() {
    assert_eq!(clock_ticks_per_second(), 100);
}
