//! The crate against the real things: the kernel's EROFS and overlayfs, `fsck.erofs` and GNU tar. Mounting
//! needs root; the tools are in Debian's erofs-utils and tar.

#![allow(clippy::disallowed_methods)] // tests reach the real world

mod erofs;
mod export;
mod import;
mod known;
mod mounts;
mod prune;
mod random;
mod share;
mod store;
mod tar;
mod tree;
