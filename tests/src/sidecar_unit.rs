//! The sidecar as its own unit file runs it, in a [`Machine`].

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::caller::Caller;
use crate::sidecar::{Answer, ask};
use crate::systemd::Machine;
use crate::world::World;
use crate::{DEADLINE, wait_until};

/// The unit file that is delivered.
const DELIVERED: &str = include_str!("../../guard/dist/portguard.service");

/// Its name.
pub const UNIT: &str = "portguard.service";

/// Where its socket is, for whoever is in the machine.
pub const SOCKET: &str = "/run/portguard/portguard.sock";

/// `portguard.service`, with all of its sandbox.
#[derive(Debug)]
pub struct SidecarUnit<'m> {
    machine: &'m Machine,
    head: String,
    config: PathBuf,
}

impl<'m> SidecarUnit<'m> {
    /// Starts it in the world's tier and waits until systemd says that it is ready.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(world: &World, machine: &'m Machine, services: &str) -> Self {
        Self::with(world, machine, "mode = \"0666\"", services)
    }

    /// As [`SidecarUnit::start`], with these keys of the table `api`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn with(world: &World, machine: &'m Machine, api: &str, services: &str) -> Self {
        let head = format!("tier = \"{}\"\n[api]\n{api}\n", world.tier);
        let config = machine.folder().join("portguard.toml");
        let program = machine.reachable("portguard").display().to_string();
        let unit = DELIVERED
            .replace(
                "/usr/local/sbin/portguard check-config",
                &format!("{program} check-config {}", config.display()),
            )
            .replace(
                "/usr/local/sbin/portguard run",
                &format!("{program} run --config {}", config.display()),
            );
        assert!(!unit.contains("/usr/local"), "{unit}");
        // PrivateTmp= would hide the test's own folder, where the program and its configuration are.
        let folder = machine.folder().display();
        let output = machine.folder().join("portguard.out").display().to_string();
        let more = format!("[Service]\nBindPaths={folder}\nStandardError=append:{output}\n");
        let sidecar = Self { machine, head, config };
        sidecar.rewrite(services);
        machine.install_text(UNIT, &format!("{unit}\n{more}"));
        let started = machine.try_systemctl(&["start", UNIT]);
        assert!(started.status.success(), "{started:?}\n{}", sidecar.said());
        sidecar
    }

    /// Writes other services into its configuration.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn rewrite(&self, services: &str) {
        std::fs::write(&self.config, format!("{}{services}", self.head)).expect("a configuration");
    }

    /// What it and systemd say, for messages.
    pub fn said(&self) -> String {
        let errors = std::fs::read_to_string(self.machine.folder().join("portguard.out")).unwrap_or_default();
        format!("{}\n{errors}", self.machine.status(UNIT))
    }

    /// `GET path`
    pub fn get(&self, path: &str) -> Answer {
        self.ask(&[], path)
    }

    /// `POST path`
    pub fn post(&self, path: &str) -> Answer {
        self.ask(&["--request", "POST"], path)
    }

    fn ask(&self, arguments: &[&str], path: &str) -> Answer {
        let socket = self.machine.root().join(SOCKET.trim_start_matches('/'));
        ask(&socket, &Caller::default(), arguments, path)
            .unwrap_or_else(|why| panic!("{path}: {why}\n{}", self.said()))
    }

    /// The document of a run, once it is finished.
    ///
    /// # Panics
    /// When it does not finish in time.
    pub fn finished(&self, run: &str) -> Value {
        let document = self.get(&format!("/v1/runs/{run}?wait=15s")).json();
        assert_eq!(document["state"], "finished", "{document:#}\n{}", self.said());
        document
    }

    /// Restarts a service; the document of the run.
    pub fn restart(&self, service: &str) -> Value {
        let run = self.post(&format!("/v1/services/{service}/restart")).expect(202).run();
        self.finished(&run)
    }

    /// Waits until a run has told of this.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn waits_for(&self, run: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut document = Value::Null;
        let came = wait_until(DEADLINE.min(Duration::from_secs(15)), || {
            document = self.get(&format!("/v1/runs/{run}")).json();
            document["events"].as_array().is_some_and(|events| events.iter().any(&wanted))
        });
        assert!(came, "{document:#}\n{}", self.said());
        document
    }
}

/// The texts of the `run_step` events of this name in the document of a run.
pub fn steps<'d>(document: &'d Value, step: &str) -> Vec<&'d str> {
    let events = document["events"].as_array().into_iter().flatten();
    events
        .filter(|event| event["type"] == "run_step" && event["step"] == step)
        .map(|event| event["detail"].as_str().unwrap_or_default())
        .collect()
}

/// The signals that a run has sent, in order: to whom, and which.
pub fn signals(document: &Value) -> Vec<(i64, &str)> {
    let events = document["events"].as_array().into_iter().flatten();
    events
        .filter(|event| event["type"] == "signal_sent")
        .filter_map(|event| Some((event["pid"].as_i64()?, event["signal"].as_str()?)))
        .collect()
}
