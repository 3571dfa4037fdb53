//! Names of signals, as signal(7) has them.

use kiln_model::{signal_names, signal_number};

use crate::suggest;

/// By its whole name.
pub(crate) fn is_one(name: &str) -> bool {
    name.starts_with("SIG") && signal_number(name).is_some()
}

/// What to write in place of what is no signal's name.
pub(crate) fn nearest(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    match suggest::nearest(bare, signal_names()) {
        Some(near) => format!("write \"SIG{near}\""),
        None => "write \"SIGTERM\", \"SIGINT\" or \"SIGQUIT\"".to_owned(),
    }
}
