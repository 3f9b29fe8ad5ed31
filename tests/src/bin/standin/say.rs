//! JSON lines on stdout.

use std::io::Write;

use serde_json::Value;

/// Writes one line in one write, so that lines of forked children never mix.
/// A reader that went away is no reason to fail: the test is over then.
pub(crate) fn line(value: &Value) {
    let mut text = value.to_string();
    text.push('\n');
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}
