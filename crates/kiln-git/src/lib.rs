//! Git repositories of the network: the files of one commit, by version 2 of the smart protocol (gitprotocol-v2(5)).
//!
//! Only that commit is fetched, without its history, and the commits of its submodules. Everything that arrives is checked against Git's own
//! names. Addresses, names and packs are anybody's, so each has a bound and nothing is written outside of the folder that is asked for.
//!
//! A [`GitSource`] is an address. [`GitSource::resolve`] asks which commit it names, [`GitSource::check_out`] writes that commit's files.

#![warn(clippy::too_many_lines)] // of more than 120 (clippy.toml) a function is several
#![allow(clippy::disallowed_methods)] // the edge: a client of ssh is waited for with a deadline

mod access;
mod agent;
mod checkout;
mod error;
mod fetch;
mod git_dir;
mod http;
mod modules;
pub mod object;
mod pack;
mod pkt_line;
mod protocol;
mod reference;
mod source;
mod ssh;
mod tcp;
mod transport;

pub use access::Access;
pub use agent::{ForwardedAgent, SshAgent, SshKeys};
pub use error::GitError;
pub use reference::Resolved;
pub use source::GitSource;
