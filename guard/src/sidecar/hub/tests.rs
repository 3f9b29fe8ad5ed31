//! What the hub keeps, and for whom.

use super::*;

fn lost(count: u64, service: Option<&str>) -> Notice {
    let what = What::Event(Body::EventsLost { count });
    Notice { at: Instant::from_nanos(count), service: service.map(Arc::from), what }
}

fn hub(most: usize) -> Hub {
    Hub::new("e".to_owned(), NonZeroUsize::new(most).expect("not zero"))
}

fn seqs(events: &[Kept]) -> Vec<u64> {
    events.iter().map(|kept| kept.seq).collect()
}

#[test]
fn a_reader_that_comes_back_gets_what_it_missed() {
    let mut hub = hub(10);
    (1..=5).for_each(|count| hub.take(lost(count, None)));
    let cursor = hub.cursor(Some("e-2"));
    let (events, cursor) = hub.read(&cursor, 2, |_| true);
    assert_eq!((seqs(&events), &cursor), (vec![3, 4], &Cursor::After(4)));
    let (events, cursor) = hub.read(&cursor, 2, |_| true);
    assert_eq!((seqs(&events), &cursor), (vec![5], &Cursor::After(5)));
    assert_eq!(hub.read(&cursor, 2, |_| true), (Vec::new(), Cursor::After(5)));
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

#[test]
fn a_reader_that_was_away_for_too_long_is_told_how_much_it_missed() {
    let mut hub = hub(3);
    (1..=9).for_each(|count| hub.take(lost(count, None)));
    let cursor = hub.cursor(Some("e-2"));
    let (events, cursor) = hub.read(&cursor, 10, |_| true);
    assert_eq!(events[0].kind, "lagged");
    assert!(events[0].json.contains("\"count\":7"), "{}", events[0].json);
    assert_eq!(cursor, Cursor::After(9));
    assert_eq!(hub.metrics.lagged, 7);
}

#[test]
fn events_of_another_sidecar_or_of_the_future_cannot_be_resumed() {
    let mut hub = hub(3);
    hub.take(lost(1, None));
    for id in ["other-1", "e-2", "e-", "x", "e-99999999999999999999999"] {
        assert_eq!(hub.cursor(Some(id)), Cursor::Fresh { missed: Some(None) }, "{id}");
    }
    assert_eq!(hub.cursor(None), Cursor::Fresh { missed: None });
}

#[test]
fn nobody_sees_the_events_of_what_it_may_not_see() {
    let mut hub = hub(10);
    hub.take(lost(1, Some("mine")));
    hub.take(lost(2, Some("theirs")));
    hub.take(lost(3, None));
    let (events, cursor) = hub.read(&Cursor::After(0), 10, |name| name == "mine");
    assert_eq!((seqs(&events), cursor), (vec![1, 3], Cursor::After(3)));
}

#[test]
fn runs_that_ended_are_forgotten_in_the_end() {
    let mut hub = hub(10);
    let finished =
        || Body::finished(std::time::Duration::ZERO, crate::runtime::Tier::Poll, "restarted", 0, None);
    for number in 0..300 {
        let what = What::Run(RunNumber(number), "restart", finished());
        hub.take(Notice { at: now(), service: Some("web".into()), what });
    }
    assert!(hub.run_document("e-0", |_| true).is_none());
    let last = hub.run_document("e-299", |_| true).expect("the last run");
    assert_eq!((last.state.as_str(), last.exit_code), ("finished", Some(0)));
    assert!(hub.run_document("e-299", |_| false).is_none(), "it may not be seen");
    assert_eq!(hub.runs.len(), FINISHED_RUNS);
}

/// Whoever asks for a look that is no older than the question would take it for one.
#[test]
fn a_look_that_began_before_the_question_and_ended_after_it_is_older_than_the_question() {
    let mut hub = hub(10);
    let moment = Instant::from_nanos;
    let what = What::Looked(moment(5), Body::EventsLost { count: 1 });
    hub.take(Notice { at: moment(9), service: Some("web".into()), what });
    assert_eq!(hub.summary("web", Profile::default()).looked_mono_ns, Some(5));
    let (events, _) = hub.read(&Cursor::Fresh { missed: None }, 10, |_| true);
    assert!(events[0].json.contains("\"mono_ns\":9"), "the event is of the moment it was told: {events:?}");
}

#[test]
fn a_service_is_known_while_there_is_something_to_tell_of_it() {
    let mut hub = hub(2);
    let (web, at): (Arc<str>, _) = ("web".into(), Instant::from_nanos(1));
    let tell = |hub: &mut Hub, what| hub.take(Notice { at, service: Some(Arc::clone(&web)), what });
    tell(&mut hub, What::Tier("poll", None));
    assert!(hub.known().contains("web"), "it is guarded");
    tell(&mut hub, What::Run(RunNumber(1), "restart", Body::step("one", None, None)));
    tell(&mut hub, What::Forgotten);
    (1..=2).for_each(|count| hub.take(lost(count, None)));
    assert!(hub.known().contains("web"), "its run is under way");
    let finished =
        || Body::finished(std::time::Duration::ZERO, crate::runtime::Tier::Poll, "restarted", 0, None);
    tell(&mut hub, What::Run(RunNumber(1), "restart", finished()));
    for number in 2..300 {
        let what = What::Run(RunNumber(number), "restart", finished());
        hub.take(Notice { at, service: Some("other".into()), what });
    }
    assert!(!hub.known().contains("web"), "nothing of it is kept");
}

#[test]
fn it_is_quiet_when_no_run_is_under_way() {
    let mut hub = hub(10);
    assert!(hub.is_quiet());
    hub.begun(RunNumber(1), &"web".into(), Kind::Restart, None);
    assert!(!hub.is_quiet());
    let finished =
        Body::finished(std::time::Duration::ZERO, crate::runtime::Tier::Poll, "restarted", 0, None);
    let what = What::Run(RunNumber(1), "restart", finished);
    hub.take(Notice { at: Instant::from_nanos(9), service: Some("web".into()), what });
    assert!(hub.is_quiet());
}

#[test]
fn a_look_that_says_the_same_is_no_event_and_keeps_its_own_moment() {
    let mut hub = hub(10);
    let look = |hub: &mut Hub, at: u64, count| {
        let what = What::Looked(Instant::from_nanos(at), Body::EventsLost { count });
        hub.take(Notice { at: Instant::from_nanos(at), service: Some("web".into()), what });
    };
    look(&mut hub, 1, 1);
    look(&mut hub, 2, 1);
    assert_eq!((hub.seq, hub.summary("web", Profile::default()).looked_mono_ns), (1, Some(2)));
    let (events, _) = hub.read(&Cursor::Fresh { missed: None }, 10, |_| true);
    assert!(events[0].json.contains("\"mono_ns\":2,"), "{events:?}");
    look(&mut hub, 3, 2);
    assert_eq!(hub.seq, 2);
    let document = hub.service("web", Profile::default());
    assert_eq!(document.snapshot, Some(serde_json::json!({ "type": "events_lost", "count": 2 })));
}

#[test]
fn a_run_that_a_client_was_told_of_is_known_before_its_first_event() {
    let mut hub = hub(10);
    let web: Arc<str> = "web".into();
    let number = RunNumber(1);
    hub.begun(number, &web, Kind::Restart, None);
    let document = hub.run_document("e-1", |name| name == "web").expect("the run");
    assert_eq!((document.state.as_str(), document.command.as_str()), ("running", "restart"));
    let what = What::Run(number, "restart", Body::step("late", None, None));
    hub.take(Notice { at: now(), service: Some(Arc::clone(&web)), what });
    hub.begun(number, &web, Kind::Restart, None);
    assert_eq!(hub.run_document("e-1", |_| true).expect("the run").events.len(), 1);
}

#[test]
fn a_run_whose_end_is_forgotten_already_does_not_begin_again() {
    let mut hub = hub(10);
    let web: Arc<str> = "web".into();
    for number in 1..=u64::try_from(FINISHED_RUNS).expect("a number") + 1 {
        let body = Body::finished(std::time::Duration::ZERO, crate::runtime::Tier::Poll, "opened", 0, None);
        let what = What::Run(RunNumber(number), "gate", body);
        hub.take(Notice { at: now(), service: Some(Arc::clone(&web)), what });
    }
    hub.begun(RunNumber(1), &web, Kind::Gate, None);
    assert!(hub.run_document("e-1", |_| true).is_none());
    hub.begun(RunNumber(1_000), &web, Kind::Gate, None);
    assert!(hub.run_document("e-1000", |_| true).is_some());
}

#[test]
fn many_gates_do_not_push_out_what_came_of_a_restart() {
    let mut hub = hub(10);
    let mut finish = |number: u64, command| {
        let body = Body::finished(std::time::Duration::ZERO, crate::runtime::Tier::Poll, "opened", 0, None);
        let what = What::Run(RunNumber(number), command, body);
        hub.take(Notice { at: now(), service: Some("web".into()), what });
    };
    finish(1, "restart");
    (2..1_000).for_each(|number| finish(number, "gate"));
    assert!(hub.run_document("e-1", |_| true).is_some());
    assert!(hub.run_document("e-2", |_| true).is_none());
}

#[test]
fn what_comes_after_the_end_of_a_run_does_not_bring_it_back() {
    let mut hub = hub(10);
    let mut tell = |body| {
        let what = What::Run(RunNumber(1), "restart", body);
        hub.take(Notice { at: now(), service: Some("web".into()), what });
    };
    tell(Body::finished(std::time::Duration::ZERO, crate::runtime::Tier::Poll, "restarted", 0, None));
    tell(Body::step("late", None, None));
    let summary = hub.summary("web", Profile { can_restart: true, ..Profile::default() });
    assert_eq!((summary.run, summary.last_run), (None, Some("e-1".to_owned())));
    assert_eq!(hub.run_document("e-1", |_| true).expect("the run").state, "finished");
}
