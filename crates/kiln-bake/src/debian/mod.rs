//! Debian: its archive, the choice of packages, their lock, and the steps that are made of them.
//!
//! [`archive`] fetches and verifies indices ([`signature`]), [`resolve`] chooses from them as apt does ([`mark_install`]), [`lock`] keeps the
//! choice. [`install`] unpacks packages ([`deb`]) with dpkg's database beside them, [`configure`] runs their scripts.

pub(crate) mod archive;
pub(crate) mod changelog;
pub(crate) mod configure;
pub(crate) mod control;
pub(crate) mod database;
pub(crate) mod deb;
pub(crate) mod fetch;
pub(crate) mod install;
pub(crate) mod licence;
pub(crate) mod lock;
pub(crate) mod lock_entry;
pub(crate) mod lock_update;
pub(crate) mod mark_install;
pub(crate) mod memory;
pub(crate) mod repack;
pub(crate) mod resolve;
pub(crate) mod signature;
pub(crate) mod slim;
pub(crate) mod sources;
pub(crate) mod status;
pub(crate) mod steps;
pub(crate) mod universe;
pub(crate) mod upper_dir;
pub(crate) mod version;
