//! `kiln serve`: the controller, in the foreground.

use kiln_daemon::DaemonOptions;

use crate::args;
use crate::failure::{Exit, Failure};
use crate::settings;

pub(crate) fn run(args: args::Serve) -> Result<Exit, Failure> {
    settings::need_root("`kiln serve`")?;
    let root = settings::root(args.root)?;
    kiln_daemon::serve(&DaemonOptions { root })?;
    Ok(Exit::Done)
}
