//! Holds every file against the tables in `layers`.

use std::collections::BTreeSet;

use crate::layers::{EMPTY_NAMES, EXCEPTIONS, Exception, FORBIDDEN, HOUSES, LINES, RESERVED, ROOMS, Room};
use crate::source::{Code, Path};

/// A file of the checkout: its path from the root, and its text.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// With forward slashes, for example `guard/src/cli/gate.rs`.
    pub(crate) path: String,
    /// The whole text.
    pub(crate) text: String,
}

/// Everything in these files that breaks a rule, one line each.
pub(crate) fn breaches(files: &[File]) -> Vec<String> {
    check_against(files, EXCEPTIONS)
}

fn check_against(files: &[File], exceptions: &[Exception]) -> Vec<String> {
    let mut checker = Checker { exceptions, used: BTreeSet::new(), found: Vec::new() };
    let tests = test_files(files);
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        checker.shape(file);
        checker.ignored(file);
        let is_test = tests.contains(&file.path) || file.path.starts_with("tests/");
        let code = if is_test { Code::all(&file.text) } else { Code::product(&file.text) };
        if !tests.contains(&file.path) {
            checker.words(file, &code);
        }
        if !is_test {
            checker.rooms(file, &code);
            checker.reserved(file, &code);
        }
    }
    for (index, exception) in exceptions.iter().enumerate() {
        if !checker.used.contains(&index) {
            let Exception { file, what, .. } = exception;
            checker
                .found
                .push(format!("xtask/src/layers.rs: the exception for {what} in {file} is not needed"));
        }
    }
    checker.found
}

/// Files of modules that are declared under `#[cfg(test)]`.
fn test_files(files: &[File]) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        let folder = module_folder(&file.path);
        for module in Code::product(&file.text).test_modules {
            let stem = format!("{folder}{module}");
            let belongs = |path: &str| path == format!("{stem}.rs") || path.starts_with(&format!("{stem}/"));
            tests.extend(files.iter().map(|file| file.path.clone()).filter(|path| belongs(path)));
        }
    }
    tests
}

/// The folder in which a file's child modules live, with a closing slash.
fn module_folder(path: &str) -> String {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "mod.rs" | "lib.rs" | "main.rs" => format!("{folder}/"),
        other => format!("{folder}/{}/", other.trim_end_matches(".rs")),
    }
}

struct Checker<'a> {
    exceptions: &'a [Exception],
    used: BTreeSet<usize>,
    found: Vec<String>,
}

impl Checker<'_> {
    fn report(&mut self, file: &File, line: usize, what: &str, why: &str) {
        let excused = self
            .exceptions
            .iter()
            .position(|exception| file.path.starts_with(exception.file) && exception.what == what);
        match excused {
            Some(index) => {
                self.used.insert(index);
            }
            None => {
                let breach = format!("{}:{line}: {what}: {why}", file.path);
                // One `use` of five items is one thing to mend.
                if self.found.last() != Some(&breach) {
                    self.found.push(breach);
                }
            }
        }
    }

    /// Length and name.
    fn shape(&mut self, file: &File) {
        let lines = file.text.lines().count();
        if lines > LINES {
            self.report(file, lines, "length", &format!("{lines} lines; split at {LINES}"));
        }
        for part in file.path.trim_end_matches(".rs").split('/') {
            if EMPTY_NAMES.contains(&part) {
                self.report(file, 1, part, "a name that says nothing about what is inside");
            }
        }
    }

    /// A test that does not run says why.
    fn ignored(&mut self, file: &File) {
        let all = Code::all(&file.text);
        for (line, _) in all.lines().filter(|(_, text)| text.contains("#[ignore]")) {
            self.report(file, line, "#[ignore]", "an ignored test gives its reason");
        }
    }

    /// Who uses whom.
    fn rooms(&mut self, file: &File, code: &Code) {
        let Some(room) = room_of(&file.path) else {
            if HOUSES.iter().any(|house| file.path.starts_with(house)) {
                self.report(file, 1, "room", "this file is in no room; give it a row in xtask/src/layers.rs");
            }
            return;
        };
        for path in code.paths() {
            let Some(used) = used_room(file, &path) else { continue };
            if used.name != room.name && !room.uses.contains(&used.name) {
                let may = if room.uses.is_empty() { "no other room".into() } else { room.uses.join(", ") };
                self.report(file, path.line, used.name, &format!("{} may use {may}", room.name));
            }
        }
    }

    /// Who names what.
    fn reserved(&mut self, file: &File, code: &Code) {
        let local = code.local_names();
        for rule in RESERVED.iter().filter(|rule| applies(file, rule.within, rule.allowed)) {
            for path in code.paths() {
                let named = |name: &&&str| {
                    let wanted: Vec<&str> = name.split("::").collect();
                    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
                    // `use std::*`-style globs hide what they bring in, so they count as everything.
                    let glob =
                        segments.last() == Some(&"*") && wanted.starts_with(&segments[..segments.len() - 1]);
                    segments.starts_with(&wanted) || glob
                };
                if let Some(name) = rule.names.iter().find(named)
                    && !local.contains(&path.segments[0])
                {
                    self.report(file, path.line, name, rule.why);
                }
            }
        }
    }

    /// Who writes what.
    fn words(&mut self, file: &File, code: &Code) {
        for rule in FORBIDDEN.iter().filter(|rule| applies(file, rule.within, rule.allowed)) {
            for (line, text) in code.lines() {
                for word in rule.words.iter().filter(|word| has_word(text, word)) {
                    self.report(file, line, word, rule.why);
                }
            }
        }
    }
}

fn applies(file: &File, within: &[&str], allowed: &[&str]) -> bool {
    let under = |prefixes: &[&str]| prefixes.iter().any(|prefix| file.path.starts_with(prefix));
    under(within) && !under(allowed)
}

fn room_of(path: &str) -> Option<&'static Room> {
    let length =
        |room: &&Room| room.files.iter().filter(|at| path.starts_with(**at)).map(|at| at.len()).max();
    ROOMS.iter().filter(|room| length(room).is_some()).max_by_key(length)
}

/// The room that a path leads into, when it leads into one by name.
fn used_room(file: &File, path: &Path) -> Option<&'static Room> {
    let named = |name: &str| ROOMS.iter().find(|room| room.name == name);
    let segments = &path.segments;
    match segments[0].as_str() {
        // Inside the other packages these are the package's own modules, which are one room.
        "crate" | "guard" => in_guard(file).then(|| named(segments.get(1)?))?,
        "super" | "self" if in_guard(file) => {
            let mut at = module_path(&file.path);
            let mut rest = segments.as_slice();
            while let Some((first, tail)) = rest.split_first() {
                match first.as_str() {
                    "self" => {}
                    "super" => {
                        at.pop();
                    }
                    _ => break,
                }
                rest = tail;
            }
            named(at.first().map_or_else(|| rest.first(), Some)?)
        }
        name @ ("guard_core" | "guard_common" | "guard_ebpf") => named(name),
        _ => None,
    }
}

fn in_guard(file: &File) -> bool {
    file.path.starts_with("guard/src/")
}

/// `guard/src/kernel/bpf/mod.rs` → kernel, bpf.
fn module_path(path: &str) -> Vec<String> {
    let inside = path.trim_start_matches("guard/src/").trim_end_matches(".rs");
    let mut parts: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// Whether a line contains the word, not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part);
        let after = line[at + word.len()..].chars().next().is_some_and(part);
        let starts = word.starts_with(part);
        let ends = word.ends_with(part);
        let inside = (starts && before) || (ends && after);
        !inside
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the checker says about one file, without the list of real exceptions.
    fn said(path: &str, text: &str) -> Vec<String> {
        check_against(&[File { path: path.into(), text: text.into() }], &[])
    }

    fn clean(path: &str, text: &str) {
        assert_eq!(said(path, text), Vec::<String>::new(), "{path}: {text}");
    }

    fn refused(path: &str, text: &str, what: &str) {
        let said = said(path, text);
        assert!(said.iter().any(|line| line.contains(what)), "{path}: {text}: {said:?}");
    }

    #[test]
    fn every_room_named_in_a_row_has_a_row() {
        for room in ROOMS {
            for used in room.uses {
                assert!(ROOMS.iter().any(|other| other.name == *used), "{} uses {used}", room.name);
            }
        }
    }

    #[test]
    fn lower_rooms_do_not_use_upper_ones() {
        refused("guard/src/kernel/pidfd.rs", "use crate::observe::Tier;", "observe: kernel may use");
        refused("guard/src/act/signal.rs", "fn f() { crate::runtime::go() }", "runtime: act may use");
        refused("guard/src/act/signal.rs", "use crate::{kernel::pidfd, observe};", "observe: act may use");
        refused("guard/src/report/human.rs", "use super::super::cli::Flags;", "cli: report may use");
        refused("guard/src/cli/gate.rs", "use crate::kernel::pidfd;", "kernel: cli may use");
        refused(
            "guard-common/src/lib.rs",
            "use guard_core::model::Port;",
            "guard_core: guard_common may use",
        );
        clean(
            "guard/src/runtime.rs",
            "use crate::{kernel::pidfd, observe, act::signal};\nuse guard_core::gate;",
        );
        clean(
            "guard/src/kernel/netns.rs",
            "use super::pidfd;\nuse crate::kernel::procfs;\nuse guard_core::model;",
        );
    }

    #[test]
    fn a_file_without_a_room_is_noticed() {
        refused("guard/src/attic/box.rs", "", "no room");
        clean("xtask/src/anything.rs", "");
    }

    #[test]
    fn only_one_module_names_aya() {
        refused("guard/src/observe/ebpf.rs", "use aya::maps::RingBuf;", "aya: only kernel/bpf");
        refused("guard/src/kernel/features.rs", "fn f() { aya::Ebpf::load(x) }", "aya");
        refused("guard/src/kernel/features.rs", "use ::aya_obj::btf::Btf;", "aya_obj");
        clean("guard/src/kernel/bpf/mod.rs", "use aya::maps::RingBuf;\nuse guard_common::wire;");
    }

    #[test]
    fn a_door_of_our_own_is_not_the_crate_of_the_same_name() {
        clean(
            "guard/src/observe/poll.rs",
            "use crate::kernel::{procfs, sock_diag};\nfn f() { procfs::owners() }",
        );
        refused("guard/src/observe/poll.rs", "fn f() { procfs::process::all() }", "procfs");
    }

    #[test]
    fn the_core_is_pure() {
        let core = "guard/core/src/gate/mod.rs";
        refused(core, "use std::time::{Duration, Instant};", "std::time::Instant");
        refused(core, "use std::{fs, fmt};", "std::fs");
        refused(core, "fn f() { std::thread::spawn(g); }", "std::thread");
        refused(core, "use std::time::*;", "std::time::Instant");
        refused(core, "use std::collections::HashMap;", "HashMap");
        refused(core, "fn f() { tracing::warn!(x); }", "tracing::warn");
        refused(core, "use std::net::TcpListener;", "std::net::TcpListener");
        clean(core, "use std::{net::IpAddr, time::Duration, collections::BTreeMap};\nuse tracing::debug;");
        clean(core, "#[cfg(test)]\nmod tests { use std::collections::HashMap; use std::time::Instant; }");
    }

    #[test]
    fn one_reader_of_the_clock_and_no_sleep() {
        refused("guard/src/act/probe.rs", "let t = std::time::Instant::now();", "Instant::now");
        refused("guard/src/act/probe.rs", "if t.elapsed() > x {}", ".elapsed(");
        clean("guard/src/runtime.rs", "let t = Instant::now();");
        refused("guard/src/runtime.rs", "std::thread::sleep(d);", "sleep");
        refused("guard/src/runtime.rs", "tokio::time::sleep(d).await;", "sleep");
        clean("guard/src/runtime.rs", "tokio::time::sleep_until(deadline).await; // not a sleep");
        refused("tests/tests/e2e/main.rs", "#[test] fn f() { thread::sleep(d) }", "sleep");
    }

    #[test]
    fn test_modules_in_files_of_their_own_are_tests() {
        let files = [
            File { path: "guard/src/act/probe.rs".into(), text: "#[cfg(test)]\nmod tests;\n".into() },
            File {
                path: "guard/src/act/probe/tests.rs".into(),
                text: "use std::time::Instant; fn f() { Instant::now(); }".into(),
            },
        ];
        assert_eq!(check_against(&files, &[]), Vec::<String>::new());
        assert_eq!(check_against(&files[1..], &[]).len(), 1, "the same file as product code is refused");
    }

    #[test]
    fn long_files_and_empty_names_are_noticed() {
        refused("guard/src/cli/gate.rs", &"\n".repeat(LINES + 1), "length");
        clean("guard/src/cli/gate.rs", &"\n".repeat(LINES));
        refused("guard/src/cli/utils.rs", "", "utils");
        clean("guard-common/src/lib.rs", "");
    }

    #[test]
    fn an_ignored_test_gives_its_reason() {
        refused("guard/src/act/mod.rs", "#[test]\n#[ignore]\nfn f() {}", "#[ignore]");
        clean("guard/src/act/mod.rs", "#[test]\n#[ignore = \"a benchmark\"]\nfn f() {}");
    }

    #[test]
    fn an_exception_excuses_one_thing_and_must_be_needed() {
        let file =
            File { path: "guard/src/cli/doctor.rs".into(), text: "use crate::kernel::features;".into() };
        let exceptions = [Exception { file: "guard/src/cli/doctor.rs", what: "kernel", why: "a test" }];
        assert_eq!(check_against(std::slice::from_ref(&file), &exceptions), Vec::<String>::new());
        assert_eq!(check_against(&[], &exceptions).len(), 1, "a needless exception is refused");
    }
}
