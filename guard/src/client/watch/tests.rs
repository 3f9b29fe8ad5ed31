//! The view, drawn on a terminal that exists in memory.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

use super::draw::draw;
use super::follow::{Known, News};
use super::in_words;
use super::view::View;
use crate::client::ClientError;
use crate::client::sse::Told;
use crate::sidecar::documents::ServiceList;

fn known(names: &[&str]) -> News {
    let service = |name: &&str| {
        json!({ "name": name, "verdict": "unknown", "tier": "netlink", "shortfall": null,
                "looked_mono_ns": null, "endpoints": [], "netns": null, "can_restart": true, "unit": null, "run": null, "last_run": null })
    };
    let services: Vec<Value> = names.iter().map(service).collect();
    let list: ServiceList = serde_json::from_value(json!({ "services": services })).expect("a list");
    News::Known(Known { services: list.services, runs: Vec::new() })
}

fn told(seq: u64, service: Option<&str>, mut event: Value) -> News {
    event["v"] = 1.into();
    event["seq"] = seq.into();
    event["time"] = "2026-01-01T00:00:00.000000Z".into();
    event["mono_ns"] = (seq * 1_000_000).into();
    event["service"] = service.into();
    News::Told(Told { id: format!("e-{seq}"), json: event.to_string() })
}

fn busy(comm: &str) -> Value {
    json!({ "type": "snapshot", "verdict": "busy", "reason": null, "tier": "netlink", "took_us": null,
        "endpoints": [{ "address": "127.0.0.1", "port": 18789, "verdict": "busy", "reason": null }],
        "holders": [{ "state": "LISTEN", "address": "127.0.0.1", "port": 18789, "remote": null, "uid": 0,
            "kernel_held": false, "time_wait_remaining_ms": null,
            "owners": { "visibility": "all", "why": null, "processes": [
                { "pid": 4711, "uid": 1000, "comm": comm, "exe": "/usr/bin/node", "argv": ["node", "gw.js"],
                  "cgroup": "/system.slice/gw.service", "class": "stale",
                  "reasons": [{ "text": "argv matches /gw/" }] }] } }],
        "holders_left_out": 0 })
}

fn screen(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, view, "/run/p.sock", true)).expect("a picture");
    terminal.backend().to_string()
}

fn shows(view: &View, texts: &[&str]) {
    let screen = screen(view, 130, 24);
    for text in texts {
        assert!(screen.contains(text), "{text:?} is not on the screen\n{screen}");
    }
}

fn a_view(news: impl IntoIterator<Item = News>) -> View {
    let mut view = View::default();
    news.into_iter().for_each(|news| view.take(news));
    view
}

#[test]
fn a_service_is_shown_with_its_holders_and_why_they_would_be_ended() {
    let view = a_view([known(&["gateway", "idle"]), told(1, Some("gateway"), busy("node"))]);
    shows(
        &view,
        &[
            "/run/p.sock  2 services  connected",
            "gateway  busy     netlink  127.0.0.1:18789",
            "pid 4711 (node, stale)",
            "127.0.0.1:18789 is busy",
            "LISTEN 127.0.0.1:18789",
            "pid 4711 (node, uid 1000, gw.service): node gw.js",
            "stale: argv matches /gw/",
            "no run yet",
        ],
    );
}

#[test]
fn a_run_is_followed_to_its_end() {
    let run = |event: Value| {
        let mut event = event;
        event["run"] = "e-7".into();
        event
    };
    let mut view = a_view([
        known(&["a", "gateway"]),
        told(10, Some("gateway"), run(json!({ "type": "run_started", "command": "restart" }))),
        told(
            12,
            Some("gateway"),
            run(json!({ "type": "run_step", "step": "probed", "outcomes": ["EADDRINUSE"] })),
        ),
        told(13, Some("gateway"), run(json!({ "type": "signal_sent", "pid": 4711, "signal": "SIGTERM" }))),
    ]);
    shows(&view, &["restart under way", "restart e-7 under way", "+3.0 ms  SIGTERM to pid 4711"]);
    assert!(!screen(&view, 130, 24).contains("probe"), "probes are noise");
    let end = json!({ "type": "run_finished", "outcome": "restarted", "exit_code": 0, "detail": null,
        "took_us": 12_300.0 });
    view.take(told(20, Some("gateway"), run(end.clone())));
    view.take(told(20, Some("gateway"), run(end)));
    shows(&view, &["  restarted in 12.3 ms", "+10.0 ms  restarted after 12.3 ms"]);
    assert_eq!(screen(&view, 130, 24).matches("restarted after").count(), 1, "it was told twice");
    // Somebody who chose a service keeps it.
    view.choose(false);
    assert_eq!(view.selected().map(|(_, name, _)| name), Some("a"));
}

#[test]
fn that_the_sidecar_is_gone_and_back_is_said() {
    let mut view = a_view([known(&["a", "b"])]);
    view.take(News::Lost(ClientError::Broken { path: "/run/p.sock".into(), why: "it ended".to_owned() }));
    shows(&view, &["GONE, waiting for the next sidecar", "it ended"]);
    view.take(told(3, None, json!({ "type": "lagged", "count": null })));
    view.take(known(&["b"]));
    shows(&view, &["1 service  connected to sidecar number 2", "some events missed"]);
}

#[test]
fn what_a_reload_has_dropped_is_shown_no_longer() {
    let run = |mut event: Value| {
        event["run"] = "e-7".into();
        event
    };
    let mut view = a_view([known(&["a", "b"]), told(1, Some("b"), busy("node"))]);
    view.take(told(2, Some("b"), run(json!({ "type": "run_started", "command": "restart" }))));
    view.take(told(3, Some("b"), json!({ "type": "service_removed" })));
    shows(&view, &["1 service  connected"]);
    // Its run goes on, and brings it back no more.
    view.take(told(4, Some("b"), run(json!({ "type": "signal_sent", "pid": 4711, "signal": "SIGTERM" }))));
    assert_eq!(view.services.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(view.selected().map(|(_, name, _)| name), Some("a"));
    view.take(told(5, Some("b"), busy("node")));
    shows(&view, &["2 services", "b        busy"]);
}

#[test]
fn losses_are_counted() {
    let lost = |count: u64| json!({ "type": "events_lost", "count": count });
    let mut view = a_view([known(&["a"]), told(1, Some("a"), lost(3)), told(2, Some("a"), lost(4))]);
    view.take(told(3, None, lost(40)));
    view.take(told(4, None, json!({ "type": "lagged", "count": 5 })));
    view.take(told(5, None, json!({ "type": "lagged", "count": 6 })));
    shows(&view, &["40 kernel events lost", "11 events missed"]);
    assert_eq!(view.services["a"].lost, 7);
}

#[test]
fn no_process_steers_the_terminal() {
    let view = a_view([known(&["a"]), told(1, Some("a"), busy("\u{1b}[2Jx\u{202e}"))]);
    let screen = screen(&view, 130, 24);
    assert!(!screen.contains(['\u{1b}', '\u{202e}']), "{screen}");
    assert!(screen.contains("(\u{fffd}[2Jx\u{fffd}"), "{screen}");
}

#[test]
fn every_size_can_be_drawn() {
    let view = a_view([known(&["a", "b", "c"]), told(1, Some("a"), busy("node"))]);
    for (width, height) in [(1, 1), (2, 3), (20, 4), (79, 5), (80, 24), (300, 100)] {
        screen(&view, width, height);
    }
    screen(&View::default(), 80, 24);
}

#[test]
fn without_a_terminal_an_event_is_a_line() {
    let News::Told(told) = told(1, Some("gateway"), busy("node")) else { unreachable!("it is one") };
    let line = in_words(&told.json).expect("a line");
    assert_eq!(
        line,
        "2026-01-01T00:00:00.000000Z gateway: busy: 127.0.0.1:18789, held by pid 4711 (node, stale)"
    );
}
