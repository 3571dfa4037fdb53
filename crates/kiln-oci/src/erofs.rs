//! A layer as an EROFS file that the kernel mounts as it is (kernel documentation, "EROFS - Enhanced
//! Read-Only File System"; the structures are those of `fs/erofs/erofs_fs.h`).
//!
//! Uncompressed, in blocks of 4096 bytes: superblock, then all metadata, then the contents. The layout is
//! decided from the tree's metadata alone, so that the file is written from front to back in one pass, hashed
//! on the way, in memory of the size of the metadata. It depends on the tree, and what it shares, and on nothing else: no
//! random uuid, no time of day. Whiteouts and opaque directories are in overlayfs's form, so that layers stack.

//!
//! A file's content may be in another EROFS file that the store has: its inode then says in which one and where, by
//! chunks, and the superblock names those files by their digests. They are given to the kernel as further devices
//! (since Linux 5.16; as files, as the layer itself, since 6.12).

mod check;
mod disk;
mod donors;
mod layout;
mod pieces;
mod write;

pub use check::{CheckError, check};
pub(crate) use donors::blocks;
pub use donors::{donor_paths, donors};
pub(crate) use layout::has_form;
pub(crate) use pieces::{Donor, Extent, Pieces, Sharing};
pub use write::write;
pub(crate) use write::write_shared;

/// 2^12: the page size of every machine kiln runs on; the kernel refuses blocks larger than a page.
pub(crate) const BLOCK_BITS: u8 = 12;
pub(crate) const BLOCK: usize = 1 << BLOCK_BITS;
