//! `kiln supervise`: the process that keeps the others running.

use kiln_supervise::SuperviseOptions;

use crate::args;
use crate::failure::{Exit, Failure};
use crate::{settings, start};

pub(crate) fn run(args: args::Supervise) -> Result<Exit, Failure> {
    settings::need_root("`kiln supervise`")?;
    let root = settings::root(args.root)?;
    if args.new_session {
        // Fails for the leader of a process group, which `kiln up` never makes of us; then it is in a session of
        // its own already or was started by hand.
        let _ = rustix::process::setsid();
    }
    start::mark_started(&root)?;
    let options = SuperviseOptions::new(root).map_err(Failure::Spawn)?;
    kiln_supervise::run(options)?;
    Ok(Exit::Done)
}
