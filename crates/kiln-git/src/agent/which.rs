use std::path::PathBuf;
use std::sync::Arc;

use super::keys::SshKeys;

/// Who signs for a step.
#[derive(Clone, Debug)]
pub enum SshAgent {
    /// An agent of the caller's, at its socket.
    Socket(PathBuf),
    Keys(Arc<SshKeys>),
}
