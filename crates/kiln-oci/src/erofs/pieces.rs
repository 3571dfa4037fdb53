//! The contents of large files by the digests of their pieces, and where another EROFS file has them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use kiln_model::Digest;

use super::BLOCK;
use crate::content::{Content, copy_content};
use crate::known_file::PIECE;
use crate::layer::{Kind, LayerError, Tree};

/// Blocks of a piece.
pub(crate) const PIECE_BLOCKS: u64 = (PIECE / BLOCK) as u64;
/// Files from this size on begin and end at a block, for others to refer to them: the room lost behind their end is
/// small beside them.
const SHARED_MIN: u64 = 8 << 10;
/// Each is an open file of the mount.
pub(crate) const DONORS_MAX: usize = 12;
/// A donor with less in common is not worth the dependence on it.
const DONOR_MIN: u64 = 64 << 10;
const THREADS_MAX: usize = 8;

/// The digests of the pieces of a tree's files, by their paths: of all that are not empty.
#[derive(Default)]
pub(crate) struct Pieces {
    by_key: BTreeMap<Vec<u8>, Vec<Digest>>,
}

/// Where the blocks of a piece are in an EROFS file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) piece: Digest,
    pub(crate) block: u64,
}

/// Another EROFS file that blocks are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Donor {
    pub(crate) erofs: Digest,
    pub(crate) blocks: u64,
}

/// What an EROFS file is written from, besides the tree.
#[derive(Default)]
pub(crate) struct Sharing {
    pub(crate) pieces: Pieces,
    pub(crate) donors: Vec<Donor>,
    /// Of a piece: the donor, counted from 1, and the block there.
    pub(crate) places: HashMap<Digest, (u16, u64)>,
}

impl Pieces {
    /// Reads the files of `tree` whose pieces are not known, several at once.
    pub(crate) fn of(tree: &Tree) -> Result<Self, LayerError> {
        let mut jobs = Vec::new();
        let mut known = Vec::new();
        let mut by_key = BTreeMap::new();
        for (key, entry) in tree.keys() {
            let Kind::File { content, size } = &entry.kind else {
                continue;
            };
            if *size == 0 {
                continue;
            }
            if let Content::Known { file, .. } = content {
                known.push((key.to_vec(), file.pieces.to_vec()));
                continue;
            }
            let first = jobs.len();
            let mut start = 0;
            while start < *size {
                let length = (*size - start).min(PIECE as u64);
                jobs.push((key, content, start, length));
                start += length;
            }
            by_key.insert(key.to_vec(), first..jobs.len());
        }
        let digests = digests(&jobs)?;
        let by_key = by_key
            .into_iter()
            .map(|(key, range)| (key, digests[range].to_vec()))
            .chain(known)
            .collect();
        Ok(Self { by_key })
    }

    /// Whether EROFS files share the blocks of files of this size.
    pub(crate) fn are_shared(size: u64) -> bool {
        size >= SHARED_MIN
    }

    /// Of a file that others may take blocks from.
    pub(super) fn of_large(&self, key: &[u8], size: u64) -> Option<&[Digest]> {
        let digests = self.by_key.get(key).filter(|_| Self::are_shared(size))?;
        Some(digests)
    }

    pub(crate) fn digests(&self, key: &[u8]) -> &[Digest] {
        self.by_key.get(key).map_or(&[], Vec::as_slice)
    }

    /// Each piece of a large file of `tree` once, with its length in blocks.
    pub(crate) fn blocks(&self, tree: &Tree) -> HashMap<Digest, u64> {
        let mut blocks = HashMap::new();
        for (key, digests) in &self.by_key {
            let Some(Kind::File { size, .. }) = tree.get_key(key).map(|entry| &entry.kind) else {
                continue;
            };
            if !Self::are_shared(*size) {
                continue;
            }
            for (at, digest) in digests.iter().enumerate() {
                blocks.insert(*digest, piece_blocks(*size, at));
            }
        }
        blocks
    }
}

/// The blocks of piece `at` of a file of `size` bytes.
pub(super) fn piece_blocks(size: u64, at: usize) -> u64 {
    let start = at as u64 * PIECE as u64;
    (size - start).min(PIECE as u64).div_ceil(BLOCK as u64)
}

type Job<'a> = (&'a [u8], &'a Content, u64, u64);

fn digests(jobs: &[Job<'_>]) -> Result<Vec<Digest>, LayerError> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(THREADS_MAX).min(jobs.len());
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        let mut done = Vec::new();
        let mut buffer = vec![0; 256 << 10];
        let mut bytes = Vec::with_capacity(PIECE);
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((key, content, start, length)) = jobs.get(at) else {
                return done;
            };
            bytes.clear();
            match copy_content(key, content, *start, *length, &mut buffer, &mut bytes) {
                Ok(()) => done.push((at, Digest::of(&bytes))),
                Err(error) => {
                    // One is enough, and the others need not go on.
                    next.store(jobs.len(), Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(|error| error.into_inner());
                    failure.get_or_insert(error);
                    return done;
                }
            }
        }
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        joined.flatten().collect()
    });
    if let Some(error) = failure
        .into_inner()
        .unwrap_or_else(|error| error.into_inner())
    {
        return Err(error);
    }
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, digest)| digest).collect())
}

impl Sharing {
    /// Chooses, of the files that have pieces of the tree, the few that have most of them. `found` says for each of them
    /// which pieces it has, and at which block; `blocks` how long each is.
    pub(crate) fn choose(
        pieces: Pieces,
        blocks: &HashMap<Digest, u64>,
        mut found: Vec<(Donor, Vec<(Digest, u64)>)>,
    ) -> Self {
        // The order must not be the disk's.
        found.sort_by_key(|(donor, _)| donor.erofs);
        let mut sharing = Self {
            pieces,
            ..Self::default()
        };
        while sharing.donors.len() < DONORS_MAX {
            let mut best = (0, None);
            for (at, (_, has)) in found.iter().enumerate() {
                let new = has
                    .iter()
                    .filter(|(piece, _)| !sharing.places.contains_key(piece));
                let sum: u64 = new.filter_map(|(piece, _)| blocks.get(piece)).sum();
                if sum > best.0 {
                    best = (sum, Some(at));
                }
            }
            let (sum, Some(at)) = best else { break };
            if sum * (BLOCK as u64) < DONOR_MIN {
                break;
            }
            let (donor, has) = found.swap_remove(at);
            // The order after the removal is another one, but the same each time.
            sharing.donors.push(donor);
            let number = sharing.donors.len() as u16;
            for (piece, block) in has {
                sharing.places.entry(piece).or_insert((number, block));
            }
        }
        sharing
    }
}
