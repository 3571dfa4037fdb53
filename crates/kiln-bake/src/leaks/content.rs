//! The search of one file's content, in one pass for all rules, with a bounded buffer.

use std::collections::BTreeSet;
use std::io;

use kiln_oci::Content;

use super::tokens::in_bytes;

/// What is read of a file at a time.
pub(super) const CHUNK: usize = 256 << 10;
/// As much of a chunk is looked at again with the next one: no secret's beginning is longer.
pub(super) const OVERLAP: usize = 4 << 10;
/// Whether no rule finds something in a file, whatever its name is.
pub(crate) fn is_clean(content: &Content, size: u64, buffer: &mut [u8]) -> io::Result<bool> {
    Ok(in_file(content, size, buffer)?.0.is_empty())
}

/// The rules that find something, and whether what they went through is what the file is known to hold.
pub(super) fn in_file(
    content: &Content,
    size: u64,
    buffer: &mut [u8],
) -> io::Result<(BTreeSet<&'static str>, bool)> {
    let file = content.open()?;
    let mut found = BTreeSet::new();
    let (mut kept, mut at) = (0, 0);
    loop {
        let count = file.read_within(size, &mut buffer[kept..], at)?;
        at += count as u64;
        let filled = kept + count;
        let is_end = filled < buffer.len();
        in_bytes(&buffer[..filled], &mut found);
        if is_end {
            let is_known = file.is_as_known()?;
            return Ok((found, is_known));
        }
        buffer.copy_within(filled - OVERLAP..filled, 0);
        kept = OVERLAP;
    }
}
