//! What the proxy says to people, in its own log.

use std::io::{self, Write};

use kiln_model::Timestamp;

/// For what people and other processes read. Limits go by the clock of the table.
pub(super) fn wall_clock() -> Timestamp {
    let since = kiln_fs::clock::wall();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// To the proxy's own log. A log that is gone must not end it.
pub(super) fn say(message: &str) {
    let at = wall_clock().rfc3339();
    drop(writeln!(io::stderr(), "kiln proxy: {at} {message}"));
}
