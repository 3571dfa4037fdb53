//! Who signs with the caller's SSH keys: an agent of the caller's, or one of ours that has keys of files.

mod forward;
mod keys;
mod which;

pub use forward::ForwardedAgent;
pub use keys::SshKeys;
pub use which::SshAgent;
