//! Where a layer's tar stream is cut into frames, which are compressed each on its own.
//!
//! A blob is those frames one after the other: one zstd stream to any reader (RFC 8878, "Frames"), and to the store
//! parts that other blobs may have too. So a cut may depend only on what is near it: after a change, or a file more, the
//! cuts further on are where they were. The content of a large file has frames of its own, in pieces of [`PIECE`] counted
//! from its beginning; small files and headers go together, up to an entry whose path says to cut.

use std::io::{self, Write};

use kiln_model::Digest;

use crate::known_file::{LARGE, PIECE};
use crate::tar::Parts;

/// A group of small entries is no shorter than this, so that there is something to compress, …
const GROUP_MIN: usize = 32 << 10;
/// … and ends after the entry that makes it this long, whatever its path says.
const GROUP_MAX: usize = 128 << 10;
/// One path of so many says to cut.
const CUT_ONE_OF: u64 = 4;

/// Cuts a tar stream, giving each frame's bytes to `emit`, with their digest where it is known before they are read.
pub(crate) struct Cutter<F> {
    emit: F,
    buffer: Vec<u8>,
    /// What is still to come of a large file's content.
    content_left: u64,
    /// The digests of its frames that are to come, the next one last.
    known: Vec<Digest>,
}

impl<F: FnMut(Vec<u8>, Option<Digest>) -> io::Result<()>> Cutter<F> {
    pub(crate) fn new(emit: F) -> Self {
        Self {
            emit,
            buffer: Vec::new(),
            content_left: 0,
            known: Vec::new(),
        }
    }

    /// Emits what is left.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.cut(None)
    }

    fn cut(&mut self, known: Option<Digest>) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        (self.emit)(std::mem::take(&mut self.buffer), known)
    }
}

impl<F: FnMut(Vec<u8>, Option<Digest>) -> io::Result<()>> Write for Cutter<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.content_left == 0 {
            self.buffer.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let left = usize::try_from(self.content_left).unwrap_or(usize::MAX);
        let count = bytes.len().min(left).min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        self.content_left -= count as u64;
        if self.buffer.len() == PIECE || self.content_left == 0 {
            let known = self.known.pop();
            self.cut(known)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F: FnMut(Vec<u8>, Option<Digest>) -> io::Result<()>> Parts for Cutter<F> {
    fn content(&mut self, size: u64, pieces: &[Digest]) -> io::Result<()> {
        if size >= LARGE {
            self.cut(None)?;
            self.content_left = size;
            self.known = pieces.iter().rev().copied().collect();
        }
        Ok(())
    }

    fn entry_end(&mut self, key: &[u8]) -> io::Result<()> {
        let length = self.buffer.len();
        let says = length >= GROUP_MIN && path_hash(key).is_multiple_of(CUT_ONE_OF);
        if says || length >= GROUP_MAX {
            self.cut(None)?;
        }
        Ok(())
    }
}

/// FNV-1a, its upper half folded into the lower: blobs are made of it, so it must never change.
fn path_hash(key: &[u8]) -> u64 {
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3_u64)
    });
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::tar::write_parts;
    use crate::{Entry, Tree};

    fn frames(tree: &Tree) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut cutter = Cutter::new(|frame, _| {
            frames.push(frame);
            Ok(())
        });
        write_parts(tree, &mut cutter).unwrap();
        cutter.finish().unwrap();
        frames
    }

    fn noise(seed: usize, length: usize) -> Vec<u8> {
        (0..length)
            .map(|at| ((at ^ seed).wrapping_mul(2_654_435_761) >> 15) as u8)
            .collect()
    }

    fn many(files: usize) -> Tree {
        let mut tree = Tree::new();
        for number in 0..files {
            let entry = Entry::bytes(noise(number, 3000), 0o644);
            tree.insert(format!("dir{}/{number}", number % 7), entry)
                .unwrap();
        }
        tree.insert("large", Entry::bytes(noise(1, 3 * PIECE + 17), 0o644))
            .unwrap();
        tree
    }

    fn new_bytes(before: &Tree, after: &Tree) -> usize {
        let before: HashSet<_> = frames(before).into_iter().collect();
        let after = frames(after);
        let new = after.iter().filter(|frame| !before.contains(*frame));
        new.map(Vec::len).sum()
    }

    #[test]
    fn the_frames_are_the_stream() {
        let tree = many(300);
        let mut stream = Vec::new();
        crate::tar::write(&tree, &mut stream).unwrap();
        let frames = frames(&tree);
        assert!(frames.concat() == stream);
        assert!(frames.len() > 10 && frames.iter().all(|frame| frame.len() <= PIECE));
    }

    #[test]
    fn a_change_costs_the_frame_that_it_is_in() {
        let before = many(300);
        let mut changed = before.clone();
        changed
            .insert("dir3/150", Entry::bytes(noise(7, 2000), 0o600))
            .unwrap();
        assert!(new_bytes(&before, &changed) <= 2 * GROUP_MAX);
        let mut added = before.clone();
        added
            .insert("dir2/1a", Entry::bytes(noise(7, 2000), 0o600))
            .unwrap();
        assert!(new_bytes(&before, &added) <= 2 * GROUP_MAX);
        let mut removed = before.clone();
        removed.remove("dir0/14");
        assert!(new_bytes(&before, &removed) <= 2 * GROUP_MAX);
        let mut middle = noise(1, 3 * PIECE + 17);
        middle[PIECE + 3] ^= 1;
        let mut edited = before.clone();
        edited.insert("large", Entry::bytes(middle, 0o644)).unwrap();
        assert_eq!(new_bytes(&before, &edited), PIECE);
    }
}
