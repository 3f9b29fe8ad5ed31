//! Starting stand-ins (the program in `src/bin/standin`).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::caller::Caller;
use crate::child::Child;
use crate::process::Proc;
use crate::{DEADLINE, wait_until};

/// Where the programs of this package and `portguard` are: beside the tests'
/// own folder in the target directory, unless `PORTGUARD_TEST_BIN_DIR` names another.
pub fn built(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("PORTGUARD_TEST_BIN_DIR") {
        return PathBuf::from(folder).join(name);
    }
    let mut folder = std::env::current_exe().expect("the path of this program");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    folder.join(name)
}

/// A stand-in to be started.
#[derive(Debug)]
pub struct Plan {
    arguments: Vec<String>,
    caller: Caller,
}

/// A stand-in that reached its state.
#[derive(Debug)]
pub struct Standin {
    /// The process.
    pub child: Child,
    /// Its `ready` line.
    pub ready: Value,
    /// Its forked children.
    pub sharers: Vec<Proc>,
}

impl Plan {
    /// A stand-in with these arguments.
    pub fn new<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Self {
        Self { arguments: arguments.into_iter().map(str::to_owned).collect(), caller: Caller::default() }
    }

    /// Binds `address:port` too.
    #[must_use]
    pub fn listen(mut self, address: &str, port: u16) -> Self {
        let address: IpAddr = address.parse().expect("an IP address");
        self.arguments.push(format!("--listen={}", SocketAddr::new(address, port)));
        self
    }

    /// More arguments, separated by spaces.
    #[must_use]
    pub fn with(mut self, arguments: &str) -> Self {
        self.arguments.extend(arguments.split_whitespace().map(str::to_owned));
        self
    }

    /// Runs this once ready; must come last.
    #[must_use]
    pub fn then_run<'a>(mut self, command: impl IntoIterator<Item = &'a str>) -> Self {
        self.arguments.push("--".to_owned());
        self.arguments.extend(command.into_iter().map(str::to_owned));
        self
    }

    /// Runs as this user.
    #[must_use]
    pub fn by(mut self, caller: Caller) -> Self {
        self.caller = caller;
        self
    }

    /// The command line, for `portguard restart … -- CMD`.
    pub fn command_line(&self) -> Vec<String> {
        let program = built("standin").into_os_string().into_string().expect("a path in UTF-8");
        std::iter::once(program).chain(self.arguments.iter().cloned()).collect()
    }

    /// Starts it, lets it end by itself, and says whether it could bind all that it was asked to.
    ///
    /// # Panics
    /// When it does not end within [`DEADLINE`], or ends for another reason.
    pub fn binds(&self) -> bool {
        /// What the stand-in exits with when it met `EADDRINUSE`.
        const EXIT_IN_USE: i32 = 98;
        let mut child = self.spawn();
        match child.wait(DEADLINE).code() {
            Some(0) => true,
            Some(EXIT_IN_USE) => false,
            other => panic!("ended with {other:?}\n{}", child.said()),
        }
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it is not ready within [`DEADLINE`].
    pub fn start(&self) -> Standin {
        let child = self.spawn();
        let ready = child
            .stdout
            .wait_for(DEADLINE, |line| said(line, "ready"))
            .unwrap_or_else(|| panic!("the stand-in never was ready\n{}", child.said()));
        let sharers = ready["children"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pid| {
                let pid = i32::try_from(pid.as_i64().expect("a PID")).expect("a PID");
                Proc::of(pid).expect("a sharer that lives")
            })
            .collect();
        Standin { child, ready, sharers }
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&self) -> Child {
        let program = self.caller.reachable(&built("standin"));
        let mut command = Command::new(program);
        command.args(&self.arguments);
        self.caller.apply(&mut command);
        Child::start(command, &format!("standin {}", self.arguments.join(" ")))
    }
}

impl Standin {
    /// The process that was started.
    pub fn id(&self) -> Proc {
        self.child.id
    }

    /// It, and every child it forked, is alive.
    pub fn all_alive(&self) -> bool {
        self.child.alive() && self.sharers.iter().all(Proc::alive)
    }

    /// It, and every child it forked, is gone within [`DEADLINE`].
    pub fn all_gone(&self) -> bool {
        wait_until(DEADLINE, || !self.child.alive() && !self.sharers.iter().any(Proc::alive))
    }

    /// Whether SIGTERM reached it or one of its children; not known of one that ignores it.
    pub fn termed(&self) -> bool {
        self.child.stdout.so_far().iter().any(|line| said(line, "term").is_some())
    }

    /// Waits for the line that SIGTERM leads to.
    pub fn termed_within(&self, deadline: Duration) -> bool {
        self.child.stdout.wait_for(deadline, |line| said(line, "term")).is_some()
    }

    /// Waits for another of its lines.
    ///
    /// # Panics
    /// When it does not come within [`DEADLINE`].
    pub fn line(&self, what: &str, mut matching: impl FnMut(&Value) -> bool) -> Value {
        self.child
            .stdout
            .wait_for(DEADLINE, |line| said(line, what).filter(|value| matching(value)))
            .unwrap_or_else(|| panic!("no {what} line\n{}", self.child.said()))
    }

    /// The inode of its first listener.
    ///
    /// # Panics
    /// When it has none.
    pub fn inode(&self) -> u64 {
        self.ready["listeners"][0]["inode"].as_u64().expect("a listener's inode")
    }
}

/// `line` as a stand-in's line of this kind.
pub fn said(line: &str, what: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    (value["standin"] == what).then_some(value)
}
