//! What asking for owners costs, beside the tools that do the same.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant as Clock};

use super::*;
use crate::kernel::procfs;
use crate::kernel::sandbox::{Sleeper, inode_of, listening};

const PROCESSES: usize = 1000;
const DESCRIPTORS: usize = 60;
const ROUNDS: usize = 9;

/// Prints and judges nothing. Run it with `--ignored --nocapture`, alone, and
/// from an optimized build. The other tools' times include the start of a process.
#[test]
#[ignore = "a measurement"]
fn measure_owner_lookup_beside_other_tools() {
    netns_alone("measure_owner_lookup_beside_other_tools", |alone| {
        let files: Vec<File> = (0..DESCRIPTORS / 2).map(|_| File::open("/dev/null").unwrap()).collect();
        let sockets: Vec<UdpSocket> =
            (files.len()..DESCRIPTORS).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let (fd, port) = listening("127.0.0.1", None, REUSE);
        let sharer = Sleeper::fork(alone);
        drop(fd);
        let (fd, other) = listening("127.0.0.1", None, REUSE);
        // Everybody has the second listener, and the first one has a single owner.
        let crowd: Vec<Sleeper> = (0..PROCESSES).map(|_| Sleeper::fork(alone)).collect();
        let of_sharer = procfs::owners(&all_inodes()).owners;
        let lone = *of_sharer.iter().find(|(_, owners)| **owners == [sharer.tgid()]).unwrap().0;
        println!(
            "{PROCESSES} processes with {DESCRIPTORS} descriptors each (half of them sockets), median of {ROUNDS}"
        );
        for (what, inode, port) in [("one owner", lone, port), ("everybody an owner", inode_of(&fd), other)] {
            println!("{what}:");
            let inodes = BTreeSet::from([inode]);
            let mut lookup = match OwnerLookup::load() {
                Ok(lookup) => lookup,
                Err(error) => panic!("no lookup by BPF here: {error}"),
            };
            report("BPF, one pass", || lookup.descriptors(&inodes).unwrap().len());
            report("BPF, loaded for one pass", || {
                OwnerLookup::load().unwrap().descriptors(&inodes).unwrap().len()
            });
            report("/proc", || procfs::owners(&inodes).owners[&inode].len());
            let port = port.to_string();
            peer("ss -Htlnp", &["ss", "-Htlnp", &format!("sport = :{port}")]);
            peer("lsof -nP -iTCP", &["lsof", "-nP", &format!("-iTCP:{port}"), "-sTCP:LISTEN"]);
            peer("fuser PORT/tcp", &["fuser", &format!("{port}/tcp")]);
        }
        drop((files, sockets, crowd));
    });
}

/// Every listener here.
fn all_inodes() -> BTreeSet<guard_core::model::SocketInode> {
    let text = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let inode = |line: &str| line.split_ascii_whitespace().nth(9)?.parse().ok();
    text.lines().skip(1).filter_map(inode).map(guard_core::model::SocketInode).collect()
}

fn report(what: &str, mut work: impl FnMut() -> usize) {
    let found = work();
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Clock::now();
            work();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!(
        "  {what:26} {:>9.2} ms (fastest {:.2}), found {found}",
        times[ROUNDS / 2].as_secs_f64() * 1e3,
        times[0].as_secs_f64() * 1e3
    );
}

fn peer(what: &str, line: &[&str]) {
    let run = || Command::new(line[0]).args(&line[1..]).stderr(Stdio::null()).output();
    match run() {
        Ok(_) => report(what, || run().unwrap().stdout.len()),
        Err(error) => println!("  {what:26} not found here: {error}"),
    }
}
