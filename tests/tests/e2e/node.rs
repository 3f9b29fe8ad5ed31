//! A real Node HTTP server, with the clients that keep gateways from closing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use guard_tests::child::{Child, output};
use guard_tests::{DEADLINE, World, each_tier};
use nix::sys::signal::Signal;
use serde_json::Value;

each_tier!(
    idle,
    keep_alive_client,
    stalled_websocket_holds_the_process,
    stalled_websocket_holds_the_port,
    restarted
);

fn idle(world: &World) {
    let Some(server) = Server::start(world, "127.0.0.1,::1", "close-first") else { return };
    server.ends(world, "10s", None);
}

/// An idle keep-alive connection does not keep Node's `server.close()` waiting.
fn keep_alive_client(world: &World) {
    let Some(server) = Server::start(world, "127.0.0.1,::1", "close-first") else { return };
    let _client = server.get();
    server.ends(world, "10s", None);
}

/// The port is free at once, the process stays: it is ended before the gate opens.
fn stalled_websocket_holds_the_process(world: &World) {
    let Some(server) = Server::start(world, "127.0.0.1,::1", "close-first") else { return };
    let (_client, _stalled) = (server.get(), server.websocket());
    server.ends(world, "500ms", Some(Signal::SIGKILL));
}

fn stalled_websocket_holds_the_port(world: &World) {
    let Some(server) = Server::start(world, "127.0.0.1,::1", "close-last") else { return };
    let (_client, _stalled) = (server.get(), server.websocket());
    server.ends(world, "500ms", Some(Signal::SIGKILL));
}

/// A new Node server on `[::]`, with the old one's clients still there.
fn restarted(world: &World) {
    let Some(server) = Server::start(world, "::", "close-last") else { return };
    let (_client, _stalled) = (server.get(), server.websocket());
    let run = world
        .portguard("restart", server.port)
        .matching("server\\.js")
        .drain("300ms")
        .timeout("15s")
        .then(&["node", &script(), &server.port.to_string(), "::", "close-first"])
        .start();
    let first = run
        .child
        .stdout
        .wait_for(DEADLINE, node_line)
        .unwrap_or_else(|| panic!("the new server said nothing\n{}", run.child.said()));
    assert_eq!(first["node"], "ready", "{}", run.child.said());
    assert!(!server.child.alive());
    let mut answer = String::new();
    let mut client = TcpStream::connect(("127.0.0.1", server.port)).expect("connect to the new server");
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("ask");
    client.read_to_string(&mut answer).expect("be answered");
    assert!(answer.ends_with("alive\n"), "{answer}");
}

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// `None`, and the test is noted as skipped, where there is no Node.
    fn start(world: &World, hosts: &str, mode: &str) -> Option<Self> {
        if output(Command::new("node").arg("--version")).is_err() {
            world.skip("no node on this machine");
            return None;
        }
        let port = world.port();
        let mut command = Command::new("node");
        command.arg(script()).arg(port.to_string()).arg(hosts).arg(mode);
        let child = Child::start(command, "node server.js");
        let ready =
            child.stdout.wait_for(DEADLINE, |line| node_line(line).filter(|line| line["node"] == "ready"));
        assert!(ready.is_some(), "the server never was ready\n{}", child.said());
        Some(Self { child, port })
    }

    /// One request; the connection stays open.
    fn get(&self) -> TcpStream {
        let mut client = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: keep-alive\r\n\r\n").expect("ask");
        read_past(&mut client, "alive\n");
        client
    }

    /// A WebSocket whose client never answers again.
    fn websocket(&self) -> TcpStream {
        let mut client = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        client
            .write_all(
                b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: cG9ydGd1YXJkIHRlc3RzIQ==\r\n\r\n",
            )
            .expect("ask");
        read_past(&mut client, "\r\n\r\n");
        client
    }

    /// `free` ends it, by this signal or by its own will.
    fn ends(mut self, world: &World, drain: &str, by: Option<Signal>) {
        let finished = world
            .free(self.port)
            .address("127.0.0.1")
            .address("::1")
            .matching("server\\.js")
            .drain(drain)
            .run()
            .expect(0);
        assert!(!self.child.alive(), "the gate opened before the server was gone\n{finished}");
        assert!(world.netns.bindable("127.0.0.1", self.port), "{finished}");
        assert!(world.netns.bindable("::1", self.port), "{finished}");
        assert_eq!(self.child.killed_by(), by, "{finished}");
        let signals = finished.signals_to(self.child.id);
        assert_eq!(signals.len(), if by.is_some() { 2 } else { 1 }, "{finished}");
    }
}

fn script() -> String {
    let beside = || concat!(env!("CARGO_MANIFEST_DIR"), "/node").to_owned();
    std::env::var("PORTGUARD_TEST_NODE_DIR").unwrap_or_else(|_| beside()) + "/server.js"
}

fn node_line(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok().filter(|value: &Value| value["node"].is_string())
}

fn read_past(client: &mut TcpStream, end: &str) {
    client.set_read_timeout(Some(DEADLINE)).expect("a deadline for the answer");
    let mut seen = Vec::new();
    while !seen.ends_with(end.as_bytes()) {
        let mut byte = [0];
        client
            .read_exact(&mut byte)
            .unwrap_or_else(|error| panic!("{error} before {end:?}: {:?}", String::from_utf8_lossy(&seen)));
        seen.push(byte[0]);
    }
}
