//! What kiln starts its own processes with; nobody has to type it.

use clap::Args as Group;

use super::Root;

#[derive(Debug, Group)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) root: Root,
}

#[derive(Debug, Group)]
pub(crate) struct Supervise {
    /// Leave the terminal's session first
    #[arg(long, hide = true)]
    pub(crate) new_session: bool,
    #[command(flatten)]
    pub(crate) root: Root,
}

#[derive(Debug, Group)]
pub(crate) struct Proxy {
    /// Who the proxy is once its files are open
    #[arg(long, default_value_t = PROXY_ID)]
    pub(crate) uid: u32,
    #[arg(long, default_value_t = PROXY_ID)]
    pub(crate) gid: u32,
    #[command(flatten)]
    pub(crate) root: Root,
}

/// In the range that systemd's "Users, Groups, UIDs and GIDs" calls unused (60706 to 61183), so that it is no
/// other program's: `nobody` is shared with anyone.
const PROXY_ID: u32 = 61_007;
