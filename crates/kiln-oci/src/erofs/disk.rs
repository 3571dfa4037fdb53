//! EROFS structures as they lie on disk, all little-endian.

use super::pieces::Donor;
use super::{BLOCK, BLOCK_BITS};

/// Where the superblock begins; what is before it is left to boot loaders.
pub(super) const SUPER_OFFSET: usize = 1024;
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_CHECKSUM: u32 = 1;
/// The times in inodes are modification times.
const COMPAT_MTIME: u32 = 2;
/// Inodes are addressed in units of 32 bytes.
pub(super) const SLOT: usize = 32;
pub(super) const COMPACT: usize = 32;
pub(super) const EXTENDED: usize = 64;
/// Before a block's names: nid, offset of the name, file type.
pub(super) const DIRENT: usize = 12;
/// Before an inode's attributes: name filter, count of shared ones.
const XATTR_HEADER: usize = 12;
const XATTR_ENTRY: usize = 4;

const INCOMPAT_CHUNKS: u32 = 4;
const INCOMPAT_DEVICES: u32 = 8;
pub(super) const DEVICE: usize = 128;
/// The devices are in the first block, behind the superblock.
pub(super) const DEVICES_OFFSET: usize = SUPER_OFFSET + 128;
/// Of an inode of chunks: they are listed with their devices; the lower bits are their size.
const CHUNK_INDEXES: u32 = 0x20;
/// A chunk's device and block.
pub(super) const CHUNK: usize = 8;

/// How an inode's data lies: in whole blocks, with its last part behind the inode, or in chunks listed there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DataLayout {
    Plain = 0,
    Inline = 2,
    Chunks = 4,
}

pub(super) struct Super {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) build_time: i64,
    pub(super) blocks: u32,
    pub(super) donors: Vec<Donor>,
    pub(super) has_chunks: bool,
}

impl Super {
    /// The first block, with its checksum.
    pub(super) fn block(&self) -> Vec<u8> {
        let mut sb = Vec::with_capacity(128);
        put32(&mut sb, MAGIC);
        put32(&mut sb, 0); // the checksum
        put32(&mut sb, COMPAT_CHECKSUM | COMPAT_MTIME);
        sb.push(BLOCK_BITS);
        sb.push(0); // no extension slots
        put16(&mut sb, self.root_nid);
        put64(&mut sb, self.inodes);
        put64(&mut sb, self.build_time as u64);
        put32(&mut sb, 0); // nanoseconds
        put32(&mut sb, self.blocks);
        put32(&mut sb, 0); // metadata is addressed from the start of the file
        put32(&mut sb, 0); // no shared attributes
        sb.resize(80, 0); // uuid, volume name
        let mut features = 0;
        if self.has_chunks {
            features |= INCOMPAT_CHUNKS;
        }
        if !self.donors.is_empty() {
            features |= INCOMPAT_DEVICES;
        }
        put32(&mut sb, features);
        put16(&mut sb, 0); // no compression
        put16(&mut sb, self.donors.len() as u16);
        put16(&mut sb, (DEVICES_OFFSET / DEVICE) as u16);
        sb.resize(128, 0);
        let mut block = vec![0; BLOCK];
        for (at, donor) in self.donors.iter().enumerate() {
            let mut device = donor.erofs.hex().as_bytes().to_vec();
            put32(&mut device, donor.blocks as u32);
            device.resize(DEVICE, 0);
            let start = DEVICES_OFFSET + at * DEVICE;
            block[start..start + DEVICE].copy_from_slice(&device);
        }
        block[SUPER_OFFSET..SUPER_OFFSET + 128].copy_from_slice(&sb);
        let sum = crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
        block
    }
}

/// What an inode says, in either of its two forms.
pub(super) struct Inode {
    pub(super) extended: bool,
    pub(super) layout: DataLayout,
    pub(super) xattr_size: usize,
    pub(super) mode: u16,
    pub(super) nlink: u32,
    pub(super) size: u64,
    /// The first block of the data, or the device number.
    pub(super) union: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
}

impl Inode {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        put16(out, u16::from(self.extended) | ((self.layout as u16) << 1));
        let count = match self.xattr_size {
            0 => 0,
            size => (size - XATTR_HEADER) / XATTR_ENTRY + 1,
        };
        put16(out, count as u16);
        put16(out, self.mode);
        if self.extended {
            put16(out, 0);
            put64(out, self.size);
            put32(out, self.union);
            put32(out, self.number);
            put32(out, self.uid);
            put32(out, self.gid);
            put64(out, self.mtime as u64);
            put32(out, 0);
            put32(out, self.nlink);
            out.resize(start + EXTENDED, 0);
        } else {
            put16(out, self.nlink as u16);
            put32(out, self.size as u32);
            put32(out, 0);
            put32(out, self.union);
            put32(out, self.number);
            put16(out, self.uid as u16);
            put16(out, self.gid as u16);
            out.resize(start + COMPACT, 0);
        }
    }
}

/// What an inode of chunks says in place of its first block: that they have 2^`bits` blocks each.
pub(super) fn chunk_format(bits: u32) -> u32 {
    CHUNK_INDEXES | bits
}

/// The entry of a chunk: 0 is the file itself, others count from 1.
pub(super) fn put_chunk(out: &mut Vec<u8>, device: u16, block: u64) {
    put16(out, 0);
    put16(out, device);
    put32(out, block as u32);
}

/// A device number as the kernel encodes it for disks (`new_encode_dev`).
pub(super) fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The index of an attribute's prefix and what follows it. None for a name that EROFS has no form for.
pub(super) fn split_xattr(name: &[u8]) -> Option<(u8, &[u8])> {
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    [
        (1, b"user.".as_slice()),
        (4, b"trusted."),
        (6, b"security."),
    ]
    .into_iter()
    .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
    .filter(|(_, rest)| !rest.is_empty() && rest.len() <= 255)
}

/// The bytes that these attributes take behind an inode: none, or a header and the entries.
pub(super) fn xattr_size<'a>(xattrs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> usize {
    let entries: usize = xattrs
        .map(|(suffix, value)| (XATTR_ENTRY + suffix.len() + value.len()).next_multiple_of(4))
        .sum();
    match entries {
        0 => 0,
        entries => XATTR_HEADER + entries,
    }
}

pub(super) fn put_xattrs<'a>(
    out: &mut Vec<u8>,
    xattrs: impl Iterator<Item = (u8, &'a [u8], &'a [u8])>,
) {
    out.extend_from_slice(&[0; XATTR_HEADER]);
    for (index, suffix, value) in xattrs {
        out.push(suffix.len() as u8);
        out.push(index);
        put16(out, value.len() as u16);
        out.extend_from_slice(suffix);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

pub(super) fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// CRC-32C as the kernel computes it here: all ones at the start, not inverted at the end. Over one block in
/// the life of an image, so bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string() {
        // RFC 3720's polynomial; the published check value is inverted at the end.
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn device_numbers_of_linux() {
        assert_eq!(device(0, 0), 0);
        assert_eq!(device(8, 1), 0x801);
        assert_eq!(device(259, 0x12345), 0x1231_0345);
    }
}
