//! The hidden roles of the program: what it is executed as by itself.

use std::path::Path;

use crate::{sandbox, shim};

/// To be called first in `main`, before any thread exists. Runs the hidden roles and does not come back from them.
pub fn dispatch() {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next();
    let argument = arguments.next().unwrap_or_default();
    let code = match role.as_deref().and_then(|role| role.to_str()) {
        Some(shim::ROLE) => shim::role(Path::new(&argument)),
        Some(sandbox::ROLE) => sandbox::role(Path::new(&argument)),
        _ => return,
    };
    std::process::exit(code)
}
