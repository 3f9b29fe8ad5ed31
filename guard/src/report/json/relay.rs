//! Events of a sidecar in the stream of a command that goes through it.

use std::io::Write;

use bytes::{BufMut, BytesMut};
use guard_core::model::Instant;
use serde_json::{Map, Value};

use super::{Json, VERSION};
use crate::runtime::wall_clock;

impl<W: Write> Json<W> {
    /// Tells `event`, which a sidecar sent or which stands for what it answered, through `socket`.
    /// Its number is this stream's own.
    pub fn relay(&mut self, at: Instant, service: &str, socket: &str, event: Value) {
        let Value::Object(mut event) = event else { return };
        if event.get("type").is_some_and(|kind| kind == "run_started") {
            self.begun = true;
        }
        self.seq += 1;
        let time = humantime::format_rfc3339_micros(wall_clock(at)).to_string();
        let head = [("v", VERSION.into()), ("time", time.into()), ("mono_ns", at.as_nanos().into())];
        for (name, value) in head.into_iter().chain([("service", service.into())]) {
            event.entry(name).or_insert(value);
        }
        event.insert("seq".to_owned(), self.seq.into());
        event.insert("through".to_owned(), socket.into());
        self.put(&event);
    }

    fn put(&mut self, event: &Map<String, Value>) {
        let mut line = BytesMut::new();
        if serde_json::to_writer((&mut line).writer(), event).is_ok() {
            line.put_u8(b'\n');
            // As with the events of this command's own runs: nobody may be reading.
            let _reader_gone = self.out.write_all(&line).and_then(|()| self.out.flush());
        }
    }
}
