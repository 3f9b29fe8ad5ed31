//! Clients of the sidecar: the allowed and the refused, the slow, the many and the malicious.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use guard_tests::caller::NOBODY;
use guard_tests::child::{Child, output, status};
use guard_tests::sidecar::{event, service};
use guard_tests::{Caller, DEADLINE, Sidecar, Tier, World, each_tier, stays, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

each_tier!(
    who_may_do_what,
    a_reader_that_comes_back,
    a_reader_that_never_reads,
    five_hundred_clients,
    whoever_comes_after_others_have_left_is_served,
    out_of_descriptors_it_waits_and_does_not_spin,
    nonsense,
    a_node_client,
    a_socket_that_was_handed_over
);

fn who_may_do_what(world: &World) {
    let next = world.standin("--on-term exit").listen("127.0.0.1", world.port());
    let rules = |more: &str| service("a", world.port(), Some(&next), more).replace("[service.a]", "");
    let services = format!(
        "[service.open]{}[service.shut]{}[service.hers]{}",
        rules(""),
        rules("observe = { uid = [4711] }"),
        rules(&format!("control = {{ uid = [{NOBODY}] }}")),
    );
    let sidecar = Sidecar::start(world, "", &services);
    let nobody = Caller::user(NOBODY);
    let ask = |what: &str| sidecar.ask(&nobody, &["--request", "POST"], &format!("/v1/services/{what}"));
    let post = |name: &str| ask(&format!("{name}/restart")).code;
    assert_eq!((post("open"), post("shut"), post("hers"), post("none")), (403, 404, 202, 404));
    let refused = ask("hers/free").expect(403).json();
    assert!(
        refused["message"].as_str().is_some_and(|why| why.contains("only root")),
        "who may restart may not leave it stopped: {refused}"
    );
    let get = |path: &str| sidecar.ask(&nobody, &[], path);
    assert_eq!(get("/v1/services/open").code, 200);
    assert_eq!(get("/v1/services/shut").code, 404);
    assert_eq!(get("/v1/gate/shut").code, 404);
    assert_eq!(get("/v1/events?service=shut").code, 404);
    let list = get("/v1/services").expect(200).text;
    assert!(list.contains("\"open\"") && !list.contains("\"shut\""), "{list}");
    assert!(!get("/metrics").expect(200).text.contains("shut"));
    let run = sidecar.post("/v1/services/shut/restart").expect(202).run();
    sidecar.finished(&run);
    assert_eq!(get(&format!("/v1/runs/{run}")).code, 404, "a run of what may not be seen");
}

fn a_reader_that_comes_back(world: &World) {
    let port = world.port();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar = Sidecar::start(world, "history = 64", &service("web", port, Some(&next), ""));
    sidecar.finished(&sidecar.post("/v1/services/web/restart").expect(202).run());
    let mut first = Child::start(
        {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--no-buffer", "--unix-socket"])
                .arg(&sidecar.socket)
                .arg("http://portguard/v1/events");
            curl
        },
        "curl",
    );
    let id = |line: &str| line.strip_prefix("id: ").map(str::to_owned);
    let seen = first.stdout.wait_for(DEADLINE, id).expect("an id");
    first.signal(Signal::SIGKILL);
    first.wait(DEADLINE);
    let run = sidecar.post("/v1/services/web/restart").expect(202).run();
    sidecar.finished(&run);
    let resumed = sidecar.follow(&["--header", &format!("Last-Event-ID: {seen}")]);
    let last = event(&resumed, "the end of the run", |event| {
        event["type"] == "run_finished" && event["run"] == *run
    });
    let events: Vec<Value> =
        resumed.stdout.so_far().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(events.iter().any(|event| event["type"] == "run_started" && event["run"] == *run), "{events:?}");
    assert!(events.iter().all(|event| event["type"] != "lagged"), "{events:?}");
    let seqs: Vec<u64> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");
    assert_eq!(
        seqs.first().copied(),
        seen.rsplit_once('-').and_then(|(_, seq)| seq.parse::<u64>().ok()).map(|seq| seq + 1)
    );
    // From a place that is no longer kept, or from another life: told, and a snapshot.
    let past = last["seq"].as_u64().expect("a number");
    for _ in 0..6 {
        sidecar.finished(&sidecar.post("/v1/services/web/restart").expect(202).run());
    }
    let epoch = seen.rsplit_once('-').expect("an epoch").0;
    for (id, knows) in [(format!("{epoch}-{}", past.saturating_sub(1)), true), ("stale-7".to_owned(), false)]
    {
        let late = sidecar.follow(&["--header", &format!("Last-Event-ID: {id}")]);
        let lagged = event(&late, "lagged", |event| event["type"] == "lagged");
        assert_eq!(lagged["count"].as_u64().is_some_and(|count| count > 0), knows, "{lagged}");
        event(&late, "a snapshot", |event| event["type"] == "snapshot" && event["service"] == "web");
    }
}

fn a_reader_that_never_reads(world: &World) {
    let port = world.port();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar = Sidecar::start(world, "history = 16", &service("web", port, Some(&next), ""));
    let mut idle = sidecar.connect();
    idle.write_all(b"GET /v1/events HTTP/1.1\r\nhost: p\r\naccept: application/x-ndjson\r\n\r\n")
        .expect("asked");
    // Its connection is full long before this ends, and everybody else is served.
    let flood = |sidecar: &Sidecar| {
        for _ in 0..40 {
            let document = sidecar.finished(&sidecar.post("/v1/services/web/restart").expect(202).run());
            assert_eq!(document["outcome"], "restarted", "{document}");
        }
    };
    flood(&sidecar);
    // When it reads at last, it is told what it missed, or nothing was missed.
    idle.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let mut told = Vec::new();
    let mut buffer = [0; 65_536];
    while let Ok(length @ 1..) = idle.read(&mut buffer) {
        told.extend_from_slice(&buffer[..length]);
    }
    let told = String::from_utf8_lossy(&told);
    let seqs: Vec<u64> = told
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["type"] != "lagged")
        .filter_map(|event| event["seq"].as_u64())
        .collect();
    let gap = seqs.windows(2).any(|pair| pair[1] > pair[0] + 1);
    assert!(!gap || told.contains("\"type\":\"lagged\""), "a gap that nobody told of: {told}");
}

/// This process may open as many files as it is allowed to allow itself.
fn more_descriptors() {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit.1, limit.1)
        .expect("more descriptors");
}

/// So many connections that have asked for the events.
fn listeners_to_events(sidecar: &Sidecar, count: usize) -> Vec<UnixStream> {
    let mut clients: Vec<_> = (0..count).map(|_| sidecar.connect()).collect();
    for client in &mut clients {
        client
            .write_all(b"GET /v1/events HTTP/1.1\r\nhost: p\r\naccept: application/x-ndjson\r\n\r\n")
            .expect("asked");
    }
    clients
}

fn five_hundred_clients(world: &World) {
    let port = world.port();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar = Sidecar::start(world, "clients = 510", &service("web", port, Some(&next), ""));
    more_descriptors();
    let mut clients = listeners_to_events(&sidecar, 500);
    let run = sidecar.post("/v1/services/web/restart").expect(202).run();
    assert_eq!(sidecar.finished(&run)["outcome"], "restarted");
    for client in &mut clients {
        let mut told = String::new();
        let mut buffer = [0; 16_384];
        while !told.contains("run_finished") {
            let length = client.read(&mut buffer).expect("events");
            assert_ne!(length, 0, "the stream was cut: {told}");
            told.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }
    // The bound holds.
    let more: Vec<_> = (0..20).map(|_| sidecar.connect()).collect();
    let refused = |stream: &UnixStream| {
        let mut answer = [0; 12];
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        (&*stream).read_exact(&mut answer).is_ok() && &answer == b"HTTP/1.1 503"
    };
    assert!(more.iter().skip(10).any(refused), "{}", sidecar.child.said());
}

fn whoever_comes_after_others_have_left_is_served(world: &World) {
    let port = world.port();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar = Sidecar::start(world, "clients = 500", &service("web", port, Some(&next), ""));
    more_descriptors();
    let healthz = b"GET /healthz HTTP/1.1\r\nhost: p\r\nconnection: close\r\n\r\n";
    for round in 0..5 {
        let mut clients = listeners_to_events(&sidecar, 500);
        for client in &mut clients {
            let mut first = [0; 12];
            client.read_exact(&mut first).expect("an answer");
            assert_eq!(&first, b"HTTP/1.1 200", "round {round}");
        }
        let refused = sidecar.say(healthz);
        assert!(refused.starts_with("HTTP/1.1 503"), "round {round}: {refused}");
        // Not by closing alone: a child that another test starts now has copies of all descriptors.
        for client in &clients {
            client.shutdown(Shutdown::Both).expect("shut");
        }
        let served = sidecar.say(healthz);
        assert!(served.starts_with("HTTP/1.1 200"), "round {round}: {served}");
    }
}

fn nonsense(world: &World) {
    let port = world.port();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar = Sidecar::start(world, "", &service("web", port, Some(&next), ""));
    let half = sidecar.connect();
    (&half).write_all(b"POST /v1/services/web/rest").expect("half a request");
    let endless = vec![b'a'; 64 * 1024];
    let too_long = [b"GET /".as_slice(), &endless, b" HTTP/1.1\r\n\r\n"].concat();
    let header = [b"GET / HTTP/1.1\r\nx: ".as_slice(), &endless, b"\r\n\r\n"].concat();
    for garbage in [b"\0\xff\x16\x03\x01\r\n\r\n".as_slice(), b"GET\r\n\r\n", &too_long, &header] {
        let answer = sidecar.say(garbage);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let giant = sidecar
        .say(b"POST /v1/services/web/restart HTTP/1.1\r\nhost: p\r\ncontent-length: 99999999999\r\n\r\nxx");
    assert!(giant.starts_with("HTTP/1.1 413"), "{giant}");
    let chunked = sidecar.say(
        b"POST /v1/services/web/restart HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\nffffff\r\n",
    );
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");
    for (path, code) in
        [("/", 404), ("/v1/services/web/", 404), ("/v1/services/..%2f..%2fetc", 404), ("/v2", 404)]
    {
        assert_eq!(sidecar.get(path).code, code, "{path}");
    }
    assert_eq!(sidecar.post("/v1/services").code, 405);
    assert_eq!(sidecar.get("/v1/services/web/restart").code, 405);
    assert_eq!(sidecar.get("/v1/gate/web?timeout=soon").code, 400);
    assert_eq!(sidecar.get("/v1/runs/nonsense").code, 404);
    // Half a request is given up in the end, and was nobody's business meanwhile.
    let mut rest = Vec::new();
    let _broken = (&half).read_to_end(&mut rest);
    let run = sidecar.post("/v1/services/web/restart").expect(202).run();
    assert_eq!(sidecar.finished(&run)["outcome"], "restarted");
}

fn a_node_client(world: &World) {
    let port = world.port();
    let old = world.standin("--on-term hang").listen("127.0.0.1", port).start();
    let next = world.standin("--on-term exit").listen("127.0.0.1", port);
    let sidecar =
        Sidecar::start(world, "", &service("web", port, Some(&next), "budget = { drain = \"50ms\" }"));
    let mut command = Command::new("node");
    command.arg(example("node-restart.mjs")).arg("web").env("PORTGUARD_SOCKET", &sidecar.socket);
    let mut node = Child::start(command, "node");
    let status = node.wait(DEADLINE);
    assert_eq!(status.code(), Some(0), "{}\n{}", node.said(), sidecar.child.said());
    assert!(node.stdout.ended_within(DEADLINE) && node.said().contains("restarted"), "{}", node.said());
    assert!(!old.child.alive());
    let mut command = Command::new("sh");
    command.arg(example("curl-restart.sh")).arg("web").env("PORTGUARD_SOCKET", &sidecar.socket);
    let mut shell = Child::start(command, "sh");
    assert_eq!(shell.wait(DEADLINE).code(), Some(0), "{}\n{}", shell.said(), sidecar.child.said());
}

fn example(name: &str) -> String {
    let here = || concat!(env!("CARGO_MANIFEST_DIR"), "/../guard/examples").to_owned();
    std::env::var("PORTGUARD_TEST_EXAMPLES_DIR").unwrap_or_else(|_| here()) + "/" + name
}

fn a_socket_that_was_handed_over(world: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("handed.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let config = folder.path().join("portguard.toml");
    let text = format!("tier = \"{}\"\n{}", world.tier, service("web", world.port(), None, ""));
    std::fs::write(&config, text).expect("a configuration");
    let notify = folder.path().join("notify.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&notify).expect("a socket");
    manager.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut command = Command::new("sh");
    // The descriptor is 3 for the shell already: LISTEN_PID is known only to the process itself.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" run --config \"$1\"";
    command.arg("-c").arg(script).arg(guard_tests::portguard::binary()).arg(&config);
    command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "200000");
    guard_tests::sidecar::hand_over(&mut command, listener);
    let mut sidecar = Child::start(command, "portguard run, socket activated");
    let told = |what: &str| {
        let mut buffer = [0; 256];
        wait_until(DEADLINE, || {
            let length = manager.recv(&mut buffer);
            length.is_ok_and(|length| String::from_utf8_lossy(&buffer[..length]).contains(what))
        })
    };
    assert!(told("READY=1"), "{}", sidecar.said());
    assert!(told("WATCHDOG=1"), "{}", sidecar.said());
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "20", "--unix-socket"]).arg(&path).arg("http://portguard/healthz");
    let output = output(&mut curl).expect("curl");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"ok\""), "{output:?}\n{}", sidecar.said());
    sidecar.signal(Signal::SIGHUP);
    assert!(told("RELOADING=1"), "{}", sidecar.said());
    sidecar.signal(Signal::SIGTERM);
    assert!(told("STOPPING=1"), "{}", sidecar.said());
    assert_eq!(sidecar.wait(DEADLINE).code(), Some(0), "{}", sidecar.said());
    assert!(path.exists() && stays(Duration::ZERO, || path.exists()), "the service manager's socket stays");
}

fn out_of_descriptors_it_waits_and_does_not_spin(world: &World) {
    let sidecar = Sidecar::start(world, "", &service("web", world.port(), None, ""));
    let process = format!("/proc/{}", sidecar.child.id.pid);
    let open = std::fs::read_dir(format!("{process}/fd")).expect("its descriptors").count();
    let most = format!("--nofile={0}:{0}", open + 4);
    let limited = status(Command::new("prlimit").args(["--pid", &sidecar.child.id.pid.to_string(), &most]));
    assert!(limited.expect("prlimit").success());
    // Those that are not accepted wait in the socket's queue, which stays readable.
    let crowd: Vec<_> = (0..20).map(|_| sidecar.connect()).collect();
    let complaint = |line: &str| line.contains("cannot accept").then_some(());
    assert!(sidecar.child.stderr.wait_for(DEADLINE, complaint).is_some(), "{}", sidecar.child.said());
    let ticks = || {
        let stat = std::fs::read_to_string(format!("{process}/stat")).expect("its times");
        let (_, fields) = stat.rsplit_once(") ").expect("a command name");
        // Fields 14 and 15, in hundredths of a second.
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum::<u64>()
    };
    let before = ticks();
    assert!(stays(Duration::from_secs(2), || sidecar.child.alive()));
    let spent = ticks() - before;
    // One that spins takes all that it gets.
    assert!(spent < 30, "{spent} hundredths of a second in two seconds\n{}", sidecar.child.said());
    // In the poll tier its looks need descriptors too: they are tried again, and that is said once.
    let blind = |line: &String| line.contains("cannot look at the services");
    let said = sidecar.child.stderr.so_far().into_iter().filter(blind).count();
    assert!(said <= 1, "{}", sidecar.child.said());
    assert!(said == 1 || world.tier != Tier::Poll, "{}", sidecar.child.said());
    drop(crowd);
    assert_eq!(sidecar.get("/healthz").code, 200);
    assert!(wait_until(DEADLINE, || sidecar.verdict("web") == "free"), "{}", sidecar.child.said());
}
