//! A layer as the tar stream that its diff id is the digest of (OCI image specification, "Image Layer
//! Filesystem Changeset"). Own code on both sides: writing must never differ by a byte, and reading must
//! keep binary attributes whole.

mod read;
mod write;

pub use read::Limits;
pub(crate) use write::{Parts, write_parts};
pub use write::{VERSION, write};

const BLOCK: usize = 512;
/// What marks a deleted path, before its name.
const WHITEOUT: &[u8] = b".wh.";
/// What marks a directory as hiding those below it.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Before the full name of an extended attribute in a pax record (star's convention, which all readers know).
const PAX_XATTR: &[u8] = b"SCHILY.xattr.";
