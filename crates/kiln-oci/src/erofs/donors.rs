//! Which other files an EROFS file of kiln's needs to be mounted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use kiln_model::Digest;

use super::BLOCK;
use super::disk::{DEVICE, DEVICES_OFFSET, MAGIC, SUPER_OFFSET};

/// The digests of the EROFS files that `file` takes blocks from, in the order of their devices; each is beside it as
/// `<digest>.erofs`. None for what is no EROFS file.
pub fn donors(file: &File) -> io::Result<Vec<Digest>> {
    let mut block = [0; BLOCK];
    match file.read_exact_at(&mut block, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let sb = &block[SUPER_OFFSET..];
    if sb[..4] != MAGIC.to_le_bytes() {
        return Ok(Vec::new());
    }
    let count = usize::from(u16::from_le_bytes([sb[86], sb[87]]));
    let tags = block[DEVICES_OFFSET..].chunks_exact(DEVICE).take(count);
    let digest = |device: &[u8]| {
        let tag = std::str::from_utf8(&device[..64]).ok();
        tag.and_then(|tag| Digest::from_hex(tag).ok())
    };
    let donors: Vec<_> = tags.filter_map(digest).collect();
    if donors.len() != count {
        let problem = "its list of devices is none of kiln's";
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(donors)
}
