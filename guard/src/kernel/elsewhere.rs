//! What listens on a port in the other network namespaces of this machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;

use guard_core::model::{NetnsInode, Port, Socket, TcpState, Tgid};
use nix::sched::{CloneFlags, setns};

use super::netns::{self, NetnsError};
use super::procfs;
use super::sock_diag::SockDiag;

/// A machine with more network namespaces than this is not searched to the end: each
/// costs a dump.
const MOST: usize = 1_000;

/// What a search found.
#[derive(Debug, Default)]
pub struct Search {
    /// The listeners, each with its namespace and a process that lives there.
    pub found: Vec<(NetnsInode, Tgid, Socket)>,
    /// How many namespaces were looked into.
    pub looked: usize,
    /// Why not into all there are, in words.
    pub missed: Option<String>,
}

/// Looks for listeners on `port` in every network namespace that some process lives
/// in, but for the calling thread's own. For other users' namespaces that needs
/// `CAP_SYS_PTRACE`, and for each `CAP_SYS_ADMIN`; what could not be looked into is told.
///
/// # Errors
///
/// When it is not known which namespace the thread itself is in.
pub fn listeners_elsewhere(port: Port) -> Result<Search, NetnsError> {
    let here = netns::current()?;
    let mut search = Search::default();
    let namespaces = match inhabited(here, &mut search.missed) {
        Ok(namespaces) => namespaces,
        Err(error) => {
            search.missed = Some(format!("/proc could not be read: {error}"));
            return Ok(search);
        }
    };
    // A namespace belongs to a thread: this one is spent on the search.
    let searching = thread::Builder::new().name("elsewhere".to_owned()).spawn(move || {
        for (inode, (resident, file)) in namespaces {
            match listeners_in(&file, port) {
                Ok(listeners) => {
                    search.looked += 1;
                    search.found.extend(listeners.into_iter().map(|socket| (inode, resident, socket)));
                }
                Err(why) => search.missed = Some(why),
            }
        }
        search
    });
    let ended = searching.map(thread::JoinHandle::join);
    Ok(match ended {
        Ok(Ok(search)) => search,
        Ok(Err(_)) => {
            Search { missed: Some("the thread that looked broke down".to_owned()), ..Search::default() }
        }
        Err(error) => Search {
            missed: Some(format!("no thread could be started to look: {error}")),
            ..Search::default()
        },
    })
}

/// Every other namespace, with a process that lives in it.
fn inhabited(
    here: NetnsInode,
    missed: &mut Option<String>,
) -> io::Result<BTreeMap<NetnsInode, (Tgid, File)>> {
    let mut namespaces = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let path = format!("/proc/{pid}/ns/net");
        // The file that is opened is the one that is judged: the process may move.
        let opened = fs::metadata(&path).and_then(|metadata| {
            let inode = NetnsInode(metadata.ino());
            if inode == here || namespaces.contains_key(&inode) {
                return Ok(None);
            }
            let file = File::open(&path)?;
            Ok(Some((NetnsInode(file.metadata()?.ino()), file)))
        });
        match opened {
            Ok(Some((inode, _))) if inode == here => {}
            Ok(Some(_)) if namespaces.len() >= MOST => {
                *missed = Some(format!("there are more than {MOST} network namespaces"));
                break;
            }
            Ok(Some((inode, file))) => {
                namespaces.entry(inode).or_insert((Tgid(pid), file));
            }
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                *missed = Some("other users' namespaces may not be seen: it needs CAP_SYS_PTRACE".to_owned());
            }
            // The process has ended, or is a zombie, which lives nowhere.
            Err(_) => {}
        }
    }
    Ok(namespaces)
}

/// Moves the calling thread.
fn listeners_in(namespace: &File, port: Port) -> Result<Vec<Socket>, String> {
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| format!("entering other network namespaces needs CAP_SYS_ADMIN ({errno})"))?;
    let sockets = match SockDiag::open().and_then(|mut diag| diag.dump(port)) {
        Ok(sockets) => sockets,
        Err(_) => procfs::sockets(port).map_err(|error| error.to_string())?,
    };
    Ok(sockets.into_iter().filter(|socket| socket.state == TcpState::Listen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::sandbox::{REUSE, Sleeper, listening, netns_alone};

    #[test]
    fn a_listener_in_another_namespace_is_found_and_one_here_is_not() {
        netns_alone("a_listener_in_another_namespace_is_found_and_one_here_is_not", |alone| {
            let (theirs, port) = listening("127.0.0.1", None, REUSE);
            let there = netns::current().unwrap();
            // It lives there, and holds the listener.
            let resident = Sleeper::fork(alone);
            let search = thread::spawn(move || {
                nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
                let here = netns::current().unwrap();
                let search = listeners_elsewhere(port).unwrap();
                assert_eq!(netns::current().unwrap(), here, "the caller stays where it is");
                search
            });
            let search = search.join().unwrap();
            let [(netns, tgid, socket)] = search.found.as_slice() else { panic!("{search:?}") };
            assert_eq!((*netns, *tgid, socket.port), (there, resident.tgid(), port));
            assert!(search.looked >= 1);
            let own = listeners_elsewhere(port).unwrap();
            assert!(own.found.is_empty(), "{own:?}");
            drop(theirs);
        });
    }
}
