//! Which other files an EROFS file of kiln's needs to be mounted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln_model::Digest;

use super::BLOCK;
use super::disk::{DEVICE, DEVICES_OFFSET, MAGIC, SUPER_OFFSET};

/// The digests of the EROFS files that `file` takes blocks from, in the order of their devices; each is beside it as
/// `<digest>.erofs`. None for what is no EROFS file.
pub fn donors(file: &File) -> io::Result<Vec<Digest>> {
    let Some(block) = first(file)? else {
        return Ok(Vec::new());
    };
    let sb = &block[SUPER_OFFSET..];
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

/// The digests and the places of the files that the one at `path` takes blocks from. An error says of which file it is.
pub fn donor_paths(path: &Path) -> io::Result<Vec<(Digest, PathBuf)>> {
    let said =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let folder = path.parent().unwrap_or(path);
    let donors = File::open(path).and_then(|file| donors(&file));
    let place = |donor: &Digest| folder.join(format!("{}.erofs", donor.hex()));
    let donors = donors.map_err(said)?.into_iter();
    Ok(donors.map(|donor| (donor, place(&donor))).collect())
}

/// The number of blocks that `file` has. None for what is no EROFS file, or not as long as it says itself.
pub(crate) fn blocks(file: &File) -> io::Result<Option<u64>> {
    let Some(block) = first(file)? else {
        return Ok(None);
    };
    let [.., a, b, c, d] = block[..SUPER_OFFSET + 40] else {
        return Ok(None);
    };
    let blocks = u64::from(u32::from_le_bytes([a, b, c, d]));
    let length = file.metadata()?.len();
    Ok((length == blocks * BLOCK as u64).then_some(blocks))
}

/// The first block of an EROFS file.
fn first(file: &File) -> io::Result<Option<[u8; BLOCK]>> {
    let mut block = [0; BLOCK];
    match file.read_exact_at(&mut block, 0) {
        Ok(()) => Ok(block[SUPER_OFFSET..]
            .starts_with(&MAGIC.to_le_bytes())
            .then_some(block)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}
