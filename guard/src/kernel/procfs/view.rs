//! How much of the machine this `/proc` shows to this process.

use std::os::unix::fs::MetadataExt;

use guard_core::model::Unseen;
use rustix::fs::{CWD, stat};

use super::{ProcError, read_at};

/// `PROC_PID_INIT_INO` and `PROC_USER_INIT_INO` of `include/linux/proc_ns.h`:
/// the initial namespaces have fixed inode numbers.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

const CAP_SYS_PTRACE: u32 = 19;

/// The `hidepid` option of the mount at `/proc`, proc(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HidePid {
    /// 0: every process is shown to everybody.
    Off,
    /// 1: other users' `/proc/PID` directories are shown, but closed.
    NoAccess,
    /// 2: other users' processes are not shown at all.
    Invisible,
    /// 4 (Linux 5.8): only processes that may be traced are shown.
    Ptraceable,
}

/// What keeps owners of sockets out of this process's sight, if anything does.
///
/// The answer holds for the whole `/proc`: a scan can meet a closed directory
/// on top of it.
///
/// # Errors
///
/// When `/proc` cannot be read at all.
pub fn what_is_unseen() -> Result<Option<Unseen>, ProcError> {
    if !in_initial_pid_namespace()? {
        return Ok(Some(Unseen::OtherPidNamespace));
    }
    // Closed directories (hidepid=1) show as such in the scan. Hidden ones do
    // not, and only CAP_SYS_PTRACE over the initial user namespace sees them all
    // (`has_pid_permissions` in fs/proc/base.c); the gid= exemption lets in, but
    // opens no other user's descriptors.
    let hides = matches!(hidepid()?, HidePid::Invisible | HidePid::Ptraceable);
    if hides && !may_trace_everybody()? {
        return Ok(Some(Unseen::NotPermitted));
    }
    Ok(None)
}

/// About how many processes there are on the machine, whatever this `/proc` shows of them; 0 when it cannot be read.
pub fn processes() -> u64 {
    // The kernel adds their number to the links of its own directories (`proc_root_getattr` in fs/proc/root.c).
    std::fs::metadata("/proc").map_or(0, |root| root.nlink())
}

/// About how many files are open on the machine, each counted once, however many have a descriptor for it; 0 when that
/// cannot be read.
pub fn open_files() -> u64 {
    // "allocated, 0, at most": Documentation/admin-guide/sysctl/fs.rst.
    let text = read_at(CWD, "/proc/sys/fs/file-nr").unwrap_or_default();
    String::from_utf8_lossy(&text).split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0)
}

/// Whether this process has `CAP_SYS_PTRACE` over the initial user namespace.
///
/// # Errors
///
/// When `/proc` cannot be read at all.
pub fn may_trace_everybody() -> Result<bool, ProcError> {
    let may_trace = effective_capabilities()? & (1 << CAP_SYS_PTRACE) != 0;
    Ok(may_trace && in_initial_user_namespace()?)
}

/// Whether this process's capabilities are those that the kernel asks for, and not those of a user namespace.
///
/// # Errors
///
/// When `/proc` cannot be read at all.
pub fn in_initial_user_namespace() -> Result<bool, ProcError> {
    Ok(inode("/proc/thread-self/ns/user")? == INITIAL_USER_NAMESPACE)
}

/// Whether this process is in the initial PID namespace: in a child of it (a
/// container), an owner of a socket may live outside and have no number here.
///
/// # Errors
///
/// When `/proc` cannot be read at all.
pub fn in_initial_pid_namespace() -> Result<bool, ProcError> {
    Ok(inode("/proc/thread-self/ns/pid")? == INITIAL_PID_NAMESPACE)
}

/// The calling thread's effective capabilities as a bit set, bit 0 being
/// `CAP_CHOWN`.
///
/// # Errors
///
/// When `/proc` cannot be read or has an unexpected form.
pub fn effective_capabilities() -> Result<u64, ProcError> {
    let path = "/proc/thread-self/status";
    let text = read_at(CWD, path).map_err(|errno| ProcError::new(path, errno))?;
    String::from_utf8_lossy(&text)
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .ok_or_else(|| ProcError::Malformed { path: path.to_owned(), what: "no line \"CapEff:\"" })
}

/// The `hidepid` option of what is mounted at `/proc`.
///
/// # Errors
///
/// When the mount table cannot be read.
pub fn hidepid() -> Result<HidePid, ProcError> {
    let path = "/proc/thread-self/mountinfo";
    let text = read_at(CWD, path).map_err(|errno| ProcError::new(path, errno))?;
    Ok(parse_hidepid(&String::from_utf8_lossy(&text)))
}

/// Of several mounts at `/proc` the last one is on top.
fn parse_hidepid(mountinfo: &str) -> HidePid {
    let options = mountinfo.lines().rev().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_proc = mount.split(' ').nth(4) == Some("/proc") && filesystem.starts_with("proc ");
        is_proc.then(|| filesystem.split(' ').nth(2).unwrap_or(""))
    });
    let value = options.into_iter().flat_map(|o| o.split(',')).find_map(|o| o.strip_prefix("hidepid="));
    // Numbers before Linux 5.8, words since.
    match value {
        Some("1" | "noaccess") => HidePid::NoAccess,
        Some("2" | "invisible") => HidePid::Invisible,
        Some("4" | "ptraceable") => HidePid::Ptraceable,
        _ => HidePid::Off,
    }
}

fn inode(path: &str) -> Result<u64, ProcError> {
    stat(path).map(|stat| stat.st_ino).map_err(|errno| ProcError::new(path, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidepid_is_read_in_both_spellings() {
        for (options, expected) in [
            ("rw", HidePid::Off),
            ("rw,hidepid=0", HidePid::Off),
            ("rw,gid=4,hidepid=1", HidePid::NoAccess),
            ("rw,hidepid=2", HidePid::Invisible),
            ("rw,hidepid=invisible,subset=pid", HidePid::Invisible),
            ("rw,hidepid=ptraceable", HidePid::Ptraceable),
        ] {
            let line = format!("22 27 0:20 / /proc rw,nosuid shared:5 - proc proc {options}\n");
            assert_eq!(parse_hidepid(&line), expected, "{options}");
        }
    }

    #[test]
    fn the_topmost_proc_counts() {
        let below = "22 27 0:20 / /proc rw - proc proc rw,hidepid=2";
        let above = "90 22 0:21 / /proc rw - proc proc rw";
        let other = "91 22 0:22 / /srv/proc rw - proc proc rw,hidepid=1";
        assert_eq!(parse_hidepid(&format!("{below}\n{above}\n{other}\n")), HidePid::Off);
        assert_eq!(parse_hidepid(&format!("{above}\n{below}\n{other}\n")), HidePid::Invisible);
    }

    #[test]
    fn this_machine_s_view_can_be_read() {
        hidepid().unwrap();
        in_initial_pid_namespace().unwrap();
        effective_capabilities().unwrap();
        what_is_unseen().unwrap();
    }

    #[test]
    fn open_files_are_counted() {
        const MANY: u64 = 2_000;
        crate::kernel::sandbox::netns_alone("open_files_are_counted", |_| {
            crate::kernel::privileges::raise_descriptor_limit().unwrap();
            // Others open and close meanwhile, and the kernel counts roughly.
            crate::kernel::sandbox::eventually("more than before", || {
                let before = open_files();
                let files: Vec<_> = (0..MANY).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
                let with_them = open_files();
                drop(files);
                (before > 0 && with_them > before + MANY / 2).then_some(())
            });
        });
    }

    #[test]
    fn processes_are_counted_and_not_their_threads() {
        const NAME: &str = "processes_are_counted_and_not_their_threads";
        const THREADS: usize = 300;
        if !in_initial_pid_namespace().unwrap() {
            return crate::kernel::sandbox::skip(
                NAME,
                "/proc shows the processes of this PID namespace only",
            );
        }
        let shown = || std::fs::read_dir("/proc").unwrap().count() as u64;
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for _ in 0..THREADS {
                let (end, ended) = std::sync::mpsc::channel::<()>();
                scope.spawn(move || ended.recv());
                threads.push(end);
            }
            // Others start and end meanwhile.
            crate::kernel::sandbox::eventually("as many as /proc shows", || {
                (processes().abs_diff(shown()) < 100).then_some(())
            });
        });
    }
}
