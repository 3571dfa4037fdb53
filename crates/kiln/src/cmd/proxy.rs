//! `kiln proxy`: the data plane, started by the supervisor.

use kiln_proxy::ProxyOptions;

use crate::args;
use crate::failure::{Exit, Failure};
use crate::settings;

pub(crate) fn run(args: args::Proxy) -> Result<Exit, Failure> {
    settings::need_root("`kiln proxy`")?;
    let args::Proxy { uid, gid, root } = args;
    let root = settings::root(root)?;
    kiln_proxy::run(ProxyOptions {
        root,
        uid,
        gid,
        workers: 0,
    })?;
    Ok(Exit::Done)
}
