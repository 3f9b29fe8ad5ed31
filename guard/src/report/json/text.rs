//! Events as text, of which a part can be told again.

use guard_core::model::Instant;

use super::{Body, Event};

/// With this the fields of a body begin, which are an event's last. It is no field of the event's own, and no text
/// in it reads like that: its quotation marks are escaped.
const BODY: &str = "\"type\":";

impl Event<'_> {
    /// As it is sent.
    pub fn text(&self) -> String {
        // Text keys and finite numbers: there is nothing in it that JSON cannot say.
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }

    /// An event of another number and moment with the same body as the one with this text.
    pub fn told_again(text: &str, seq: u64, at: Instant, service: &str) -> String {
        let mut told = Event::new(seq, at, Some(service), None, &Body::ServiceRemoved {}).text();
        told.truncate(told.len() - body(&told).len());
        told.push_str(body(text));
        told
    }
}

impl Body {
    /// The event with this text says the same.
    pub fn is_that_of(&self, text: &str) -> bool {
        body(&Event::new(0, Instant::from_nanos(0), None, None, self).text()) == body(text)
    }

    /// The body of the event with this text.
    pub fn in_event(text: &str) -> Option<serde_json::Value> {
        serde_json::from_str(&format!("{{{}", body(text))).ok()
    }
}

/// From the first field of the body to the end of the event.
fn body(text: &str) -> &str {
    text.find(BODY).map_or("", |at| &text[at..])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_event_that_is_told_again_says_the_same_at_another_time() {
        let odd = "\"type\": \"type\":";
        let step = |detail: &str| Body::step("one", Some(7), Some(detail.to_owned()));
        let first = Event::new(3, Instant::from_nanos(5), Some("web"), Some("e-1"), &step(odd)).text();
        let again = Event::told_again(&first, 9, Instant::from_nanos(8), "web");
        let parsed = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let whole = |event: Event<'_>| parsed(&event.text());
        let mut expected = whole(Event::new(9, Instant::from_nanos(8), Some("web"), None, &step(odd)));
        let mut again = parsed(&again);
        // Read from the clocks' distance, which is not the same twice.
        for event in [&mut expected, &mut again] {
            assert!(event["time"].take().is_string());
        }
        assert_eq!(again, expected);
        assert!(step(odd).is_that_of(&first) && !step("else").is_that_of(&first));
        let body = json!({ "type": "run_step", "step": "one", "pid": 7, "detail": odd });
        assert_eq!(Body::in_event(&first), Some(body));
    }
}
