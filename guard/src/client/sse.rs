//! Server-Sent Events, as far as the sidecar writes them.

/// One event as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// What `Last-Event-ID` takes.
    pub(super) id: String,
    /// The event: one JSON object in one line.
    pub(super) json: String,
}

/// One event is never longer: the sidecar keeps no more than this of all of them together.
const LONGEST: usize = 16 * 1024 * 1024;

/// What has come and was not taken yet.
#[derive(Debug, Default)]
pub(super) struct Unread {
    bytes: Vec<u8>,
    /// How much of it was taken.
    taken: usize,
}

impl Unread {
    /// Adds what came. `false`: this is no stream of events.
    #[must_use]
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
        self.bytes.len() <= LONGEST
    }

    /// The next event that is whole.
    pub(super) fn next(&mut self) -> Option<Told> {
        loop {
            let rest = self.bytes.get(self.taken..)?;
            let length = rest.windows(2).position(|pair| pair == b"\n\n")?;
            let event = read(rest.get(..length)?);
            self.taken += length + 2;
            if event.is_some() {
                return event;
            }
        }
    }
}

/// `None`: it is a comment, or no text.
fn read(event: &[u8]) -> Option<Told> {
    let event = std::str::from_utf8(event).ok()?;
    let field = |name: &str| {
        let values =
            event.split('\n').filter_map(move |line| line.split_once(':').filter(|(n, _)| *n == name));
        values.map(|(_, value)| value.strip_prefix(' ').unwrap_or(value)).next_back()
    };
    Some(Told { id: field("id").unwrap_or_default().to_owned(), json: field("data")?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_however_they_are_cut() {
        let stream =
            b"id: e-1\nevent: lagged\ndata: {\"a\":\"b: c\"}\n\n: nothing\n\nid: e-2\ndata:{}\n\nid: e-3\n";
        for size in 1..stream.len() {
            let mut unread = Unread::default();
            let mut told = Vec::new();
            for piece in stream.chunks(size) {
                assert!(unread.push(piece));
                told.extend(std::iter::from_fn(|| unread.next()));
            }
            let expected = [("e-1", "{\"a\":\"b: c\"}"), ("e-2", "{}")];
            let told: Vec<(&str, &str)> = told.iter().map(|told| (&*told.id, &*told.json)).collect();
            assert_eq!(told, expected, "in pieces of {size}");
        }
    }
}
