//! What people use today, as command lines. Each is somebody's real habit; none is made slower than it is.

use std::path::{Path, PathBuf};

/// What a tool does about a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Waits until it is free; somebody else ends the holder. Says `busy` once per look.
    Waits,
    /// Ends the holder itself.
    Ends,
}

/// A tool or a habit to compare with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Its name in the tables.
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    /// The program that has to be there.
    program: &'static str,
    /// A shell script; `PORT` and `PROGRAM` are replaced.
    script: &'static str,
    /// The shell that understands it.
    shell: &'static str,
    /// How it treats a holder, for the table of restarts.
    pub(crate) manners: &'static str,
}

/// Every one.
pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "lsof, sleep 50 ms",
        role: Role::Waits,
        program: "lsof",
        script: "while PROGRAM -nP -iTCP:PORT -sTCP:LISTEN -t >/dev/null 2>&1; do echo busy; sleep 0.05; done",
        shell: "sh",
        manners: "",
    },
    Peer {
        name: "fuser, sleep 50 ms",
        role: Role::Waits,
        program: "fuser",
        script: "while PROGRAM -s PORT/tcp >/dev/null 2>&1; do echo busy; sleep 0.05; done",
        shell: "sh",
        manners: "",
    },
    Peer {
        name: "connect(), sleep 50 ms",
        role: Role::Waits,
        program: "bash",
        script: "while (exec 3<>/dev/tcp/127.0.0.1/PORT) 2>/dev/null; do echo busy; sleep 0.05; done",
        shell: "bash",
        manners: "",
    },
    Peer {
        name: "fuser -k, sleep 1 s",
        role: Role::Ends,
        program: "fuser",
        script: "PROGRAM -k -s PORT/tcp; sleep 1",
        shell: "sh",
        manners: "SIGKILL at once",
    },
    Peer {
        name: "killport",
        role: Role::Ends,
        program: "killport",
        script: "exec PROGRAM PORT",
        shell: "sh",
        manners: "SIGKILL at once",
    },
    Peer {
        name: "kill-port (npm)",
        role: Role::Ends,
        program: "kill-port",
        script: "exec PROGRAM PORT",
        shell: "sh",
        manners: "SIGKILL at once",
    },
    Peer {
        name: "fkill -t 0.6 (npm)",
        role: Role::Ends,
        program: "fkill",
        script: "exec PROGRAM --force-after-timeout 0.6 :PORT",
        shell: "sh",
        manners: "SIGTERM, SIGKILL after 600 ms",
    },
    Peer {
        name: "ss -K",
        role: Role::Ends,
        program: "ss",
        script: "exec PROGRAM -K -tln 'sport = :PORT'",
        shell: "sh",
        manners: "takes the socket away, the process lives on",
    },
    Peer {
        name: "TERM, 600 ms, KILL, 400 ms, lsof/50 ms",
        role: Role::Ends,
        program: "lsof",
        script: "listeners() { PROGRAM -nP -iTCP:PORT -sTCP:LISTEN -t 2>/dev/null; }
            found=$(listeners); [ -z \"$found\" ] || kill -TERM $found
            sleep 0.6
            found=$(listeners); [ -z \"$found\" ] || kill -KILL $found
            sleep 0.4
            while [ -n \"$(listeners)\" ]; do sleep 0.05; done",
        shell: "sh",
        manners: "SIGTERM, SIGKILL after 600 ms",
    },
];

impl Peer {
    /// Where its program is: among the installed peers, else on `PATH`.
    pub(crate) fn found(&self, installed: &Path) -> Option<PathBuf> {
        [installed.join("bin"), installed.join("node_modules/.bin")]
            .into_iter()
            .chain(path())
            .map(|folder| folder.join(self.program))
            .find(|file| file.is_file())
    }

    /// The program that has to be there.
    pub(crate) fn program(&self) -> &'static str {
        self.program
    }

    /// Shell and script for one port.
    pub(crate) fn command(&self, program: &Path, port: u16) -> std::process::Command {
        let program = format!("'{}'", program.display());
        let script = self.script.replace("PORT", &port.to_string()).replace("PROGRAM", &program);
        let mut command = std::process::Command::new(self.shell);
        command.arg("-c").arg(script);
        command
    }
}

/// Whether a bare command name can be run.
pub(crate) fn is_installed(program: &str) -> bool {
    path().any(|folder| folder.join(program).is_file())
}

/// `PATH`, and the folders of system commands that an ordinary user's may lack.
fn path() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own: Vec<PathBuf> = std::env::split_paths(&path).collect();
    own.into_iter().chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
}
