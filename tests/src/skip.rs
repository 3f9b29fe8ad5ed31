//! Tests that cannot run here say so, and are counted.

use std::io::Write;

/// Notes that `test` cannot run here because of `reason`.
///
/// # Panics
/// With `PORTGUARD_TEST_STRICT=1`: where everything is there, nothing may be skipped.
pub fn skip(test: &str, reason: &str) {
    let line = format!("{test}: {reason}");
    if std::env::var_os("PORTGUARD_TEST_STRICT").is_some_and(|value| value == "1") {
        panic!("SKIP {line} (not allowed with PORTGUARD_TEST_STRICT=1)");
    }
    println!("SKIP {line}");
    if let Some(file) = std::env::var_os("PORTGUARD_TEST_SKIPS") {
        let written = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            panic!("note the skipped test in {}: {error}", file.display());
        }
    }
}
