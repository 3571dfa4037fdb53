//! A layer as an EROFS file that the kernel mounts as it is (kernel documentation, "EROFS - Enhanced
//! Read-Only File System"; the structures are those of `fs/erofs/erofs_fs.h`).
//!
//! Uncompressed, in blocks of 4096 bytes: superblock, then all metadata, then the contents. The layout is
//! decided from the tree's metadata alone, so that the file is written from front to back in one pass, hashed
//! on the way, in memory of the size of the metadata. It depends on the tree and on nothing else: no random
//! uuid, no time of day. Whiteouts and opaque directories are in overlayfs's form, so that layers stack.

mod disk;
mod layout;
mod write;

pub use write::write;

/// 2^12: the page size of every machine kiln runs on; the kernel refuses blocks larger than a page.
pub(crate) const BLOCK_BITS: u8 = 12;
pub(crate) const BLOCK: usize = 1 << BLOCK_BITS;
