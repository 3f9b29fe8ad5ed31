//! A running sidecar and its clients.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::caller::Caller;
use crate::child::{Child, output};
use crate::events::Event;
use crate::kernel::{BpfId, bpf_ids};
use crate::portguard::binary;
use crate::standin::Plan;
use crate::tier::Tier;
use crate::world::World;
use crate::{DEADLINE, wait_until};

/// `portguard run` with a configuration of its own.
#[derive(Debug)]
pub struct Sidecar {
    /// The process.
    pub child: Child,
    /// Its socket.
    pub socket: PathBuf,
    program: PathBuf,
    folder: tempfile::TempDir,
    head: String,
    /// Those that were before; what they started lives as long as they are not dropped.
    before: Vec<Child>,
}

/// What a client was answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The body.
    pub text: String,
}

/// One service of a configuration, on `127.0.0.1`, whose processes are stand-ins.
pub fn service(name: &str, port: u16, start: Option<&Plan>, more: &str) -> String {
    let restart = start
        .map_or_else(String::new, |plan| format!("restart = {{ command = {:?} }}\n", plan.command_line()));
    format!(
        "[service.{name}]\nendpoints = [\"127.0.0.1:{port}\"]\nrecognise = {{ match = [\"standin\"] }}\n{restart}{more}\n"
    )
}

impl Sidecar {
    /// Starts one in the world's tier and waits until it answers. `api` holds further keys of the
    /// table of that name.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(world: &World, api: &str, services: &str) -> Self {
        Self::in_tier(world.tier, api, services)
    }

    /// Starts one in this tier and in the calling thread's network namespace, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn in_tier(tier: Tier, api: &str, services: &str) -> Self {
        Self::of(binary(), tier, api, services)
    }

    /// Starts this `portguard` in place of the one under test.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn of(program: PathBuf, tier: Tier, api: &str, services: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Other users' clients pass through it.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("permissions");
        let socket = folder.path().join("portguard.sock");
        let head = format!("tier = \"{tier}\"\n[api]\nsocket = {socket:?}\nmode = \"0666\"\n{api}\n");
        let child = Self::spawn(&program, &folder, &head, services);
        let sidecar = Self { child, socket, program, folder, head, before: Vec::new() };
        sidecar.answers();
        sidecar
    }

    fn spawn(program: &Path, folder: &tempfile::TempDir, head: &str, services: &str) -> Child {
        let config = folder.path().join("portguard.toml");
        std::fs::write(&config, format!("{head}{services}")).expect("a configuration");
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(config);
        Child::start(command, "portguard run")
    }

    /// Waits until it answers.
    pub fn answers(&self) {
        // The one before may have left its socket, on which nobody listens.
        let works =
            || ask(&self.socket, &Caller::default(), &[], "/healthz").is_ok_and(|answer| answer.code == 200);
        let there = || works() || !self.child.alive();
        assert!(wait_until(DEADLINE, there), "no answer\n{}", self.child.said());
        assert!(works(), "{}", self.child.said());
    }

    /// Starts another one in its place, with the same configuration.
    pub fn start_again(&mut self, services: &str) {
        let next = Self::spawn(&self.program, &self.folder, &self.head, services);
        self.before.push(std::mem::replace(&mut self.child, next));
        self.answers();
    }

    /// Writes other services into its configuration.
    pub fn rewrite(&self, services: &str) {
        let config = self.folder.path().join("portguard.toml");
        std::fs::write(config, format!("{}{services}", self.head)).expect("a configuration");
    }

    fn curl(&self, caller: &Caller, arguments: &[&str], path: &str) -> Command {
        curl(&self.socket, caller, arguments, path)
    }

    /// `GET path`
    pub fn get(&self, path: &str) -> Answer {
        self.ask(&Caller::default(), &[], path)
    }

    /// `POST path`
    pub fn post(&self, path: &str) -> Answer {
        self.ask(&Caller::default(), &["--request", "POST"], path)
    }

    /// Asks with curl, as `caller`.
    ///
    /// # Panics
    /// When there is no answer in time.
    pub fn ask(&self, caller: &Caller, arguments: &[&str], path: &str) -> Answer {
        ask(&self.socket, caller, arguments, path)
            .unwrap_or_else(|why| panic!("{path}: {why}\n{}", self.child.said()))
    }

    /// A curl that follows the events, one a line, once it has the first.
    ///
    /// # Panics
    /// When there is none.
    pub fn follow(&self, arguments: &[&str]) -> Child {
        let whole: Vec<&str> = ["--header", "Accept: application/x-ndjson"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        let follower = Child::start(self.curl(&Caller::default(), &whole, "/v1/events"), "curl /v1/events");
        assert!(
            follower.stdout.wait_for(DEADLINE, Event::parse).is_some(),
            "the stream began with nothing\n{}\n{}",
            follower.said(),
            self.child.said()
        );
        follower
    }

    /// A connection on which nothing was said yet.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).expect("a connection");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream
    }

    /// Says `bytes`, and reads until the sidecar closes.
    pub fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may close before it has read all: what it answered is read all the same.
        let _closed = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _broken = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The document of a run, once it is finished.
    ///
    /// # Panics
    /// When it does not finish in time.
    pub fn finished(&self, run: &str) -> Value {
        let mut document = Value::Null;
        let done = wait_until(Duration::from_secs(30), || {
            document = self.get(&format!("/v1/runs/{run}")).json();
            document["state"] == "finished"
        });
        assert!(done, "the run does not finish: {document}\n{}", self.child.said());
        document
    }

    /// Whether one of its BPF programs is loaded and attached to nothing (raw tracepoints: classic ones may have no
    /// links): all its services listen, and it has been calm for a while.
    pub fn rests(&self) -> bool {
        let ids = bpf_ids(self.child.id.pid);
        let count = |of: fn(&BpfId) -> bool| ids.iter().filter(|id| of(id)).count();
        count(|id| matches!(id, BpfId::Link(_))) < count(|id| matches!(id, BpfId::Prog(_)))
    }

    /// The verdict on a service, looked at now.
    pub fn verdict(&self, name: &str) -> String {
        let document = self.get(&format!("/v1/services/{name}")).json();
        document["verdict"].as_str().unwrap_or_else(|| panic!("no verdict in {document}")).to_owned()
    }
}

/// A curl at a socket; `--fail` and the like are up to the caller.
fn curl(socket: &Path, caller: &Caller, arguments: &[&str], path: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--no-buffer", "--unix-socket"]).arg(socket);
    command.args(arguments).arg(format!("http://portguard{path}"));
    caller.apply(&mut command);
    command
}

/// What curl is answered at a socket, or its complaint.
pub(crate) fn ask(socket: &Path, caller: &Caller, arguments: &[&str], path: &str) -> Result<Answer, String> {
    let whole: Vec<&str> =
        arguments.iter().copied().chain(["--max-time", "20", "--write-out", "\n%{http_code}"]).collect();
    let output = output(&mut curl(socket, caller, &whole, path)).expect("curl");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let (text, code) = said.rsplit_once('\n').ok_or_else(|| format!("no answer: {errors}"))?;
    match code.parse() {
        Ok(0) | Err(_) => Err(errors),
        Ok(code) => Ok(Answer { code, text: text.to_owned() }),
    }
}

impl Answer {
    /// The body.
    ///
    /// # Panics
    /// When it is no JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {:?}", self.text))
    }

    /// Checks the status code.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    #[must_use]
    pub fn expect(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }

    /// `run` of a restart that was accepted.
    #[track_caller]
    pub fn run(&self) -> String {
        let json = self.json();
        json["run"].as_str().unwrap_or_else(|| panic!("no run in {json}")).to_owned()
    }
}

/// Waits for an event of this type on a stream.
///
/// # Panics
/// When none comes.
pub fn event(follower: &Child, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let parse = |line: &str| serde_json::from_str::<Value>(line).ok().filter(|event| wanted(event));
    follower
        .stdout
        .wait_for(DEADLINE, parse)
        .unwrap_or_else(|| panic!("{what}: no such event\n{}", follower.said()))
}

/// Lets `command` find `listener` as descriptor 3, as a service manager does.
pub fn hand_over(command: &mut Command, listener: std::os::unix::net::UnixListener) {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    // SAFETY: dup2 and fcntl are async-signal-safe and are all that runs between fork and exec; the
    // listener lives in the closure.
    unsafe {
        command.pre_exec(move || {
            // A copy onto itself would stay close-on-exec.
            nix::errno::Errno::result(match listener.as_raw_fd() {
                3 => nix::libc::fcntl(3, nix::libc::F_SETFD, 0),
                other => nix::libc::dup2(other, 3),
            })?;
            Ok(())
        });
    }
}
