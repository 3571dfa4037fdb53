//! Secrets that the bake itself was given, in what its steps made.

use std::io;
use std::path::Path;

use aho_corasick::AhoCorasick;
use kiln_oci::{Kind, Tree};

use super::content::CHUNK;
use super::finding::{Finding, GIVEN};
use crate::error::BakeError;

/// Shorter ones would be found in anything.
const GIVEN_MIN: usize = 8;

/// Searches the files of a layer for what a step was given as a secret.
pub(crate) fn given<'a>(
    tree: &Tree,
    secrets: impl Iterator<Item = &'a Vec<u8>>,
) -> Result<Vec<Finding>, BakeError> {
    // Often there is a line's end in the file that it was read from, which a step drops.
    let secrets: Vec<&[u8]> = secrets
        .map(|secret| secret.trim_ascii())
        .filter(|secret| secret.len() >= GIVEN_MIN)
        .collect();
    let mut found = Vec::new();
    if secrets.is_empty() {
        return Ok(found);
    }
    let search =
        AhoCorasick::new(&secrets).map_err(|error| BakeError::View(io::Error::other(error)))?;
    for (path, entry) in tree.iter() {
        let Kind::File { content, size } = &entry.kind else {
            continue;
        };
        let mut bytes = vec![0; CHUNK];
        let overlap = secrets.iter().map(|secret| secret.len()).max().unwrap_or(0);
        bytes.resize(CHUNK.max(overlap * 2), 0);
        let file = content.open().map_err(BakeError::io(path))?;
        let mut at = 0;
        while at < *size {
            let read = file
                .read_within(*size, &mut bytes, at)
                .map_err(BakeError::io(path))?;
            if search.is_match(&bytes[..read]) {
                let place = Path::new("/").join(path).to_string_lossy().into_owned();
                found.push(Finding::new(GIVEN, place));
                break;
            }
            let end = at + read as u64;
            if end == *size {
                break;
            }
            // Shorter than it is said to be: its end would go out unseen.
            if read < bytes.len() {
                return Err(BakeError::io(path)(io::ErrorKind::UnexpectedEof.into()));
            }
            at = end - overlap as u64;
        }
    }
    Ok(found)
}
