//! From a tree to its blob: the tar stream cut into frames, each compressed unless the store has it.
//!
//! One thread writes the tar stream and hashes it, several compress, and this one puts the frames together in order.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use kiln_model::Digest;
use sha2::{Digest as _, Sha256};

use super::blob::{Donor, Recipe};
use super::error::{StoreError, io_error, layer_error};
use super::frames::{Frames, Place, Sums};
use super::temp::TempFile;
use super::{Blob, Store};
use crate::blob_file::Segment;
use crate::frames::Cutter;
use crate::image::{Descriptor, MEDIA_LAYER_ZSTD};
use crate::layer::{LayerError, Tree};
use crate::tar;

/// Of 1 to 22: past it, a tenth smaller costs twice the time.
pub(super) const ZSTD_LEVEL: i32 = 3;
/// More threads than this wait for the one that reads.
const THREADS_MAX: usize = 8;
/// Bytes of frames that are compressed before they are asked for: they are held in memory.
const PREPARED_MAX: usize = 256 << 20;
/// Frames on their way, for each thread.
const QUEUE: usize = 4;

/// A frame to compress, and where the answer goes.
struct Job {
    bytes: Vec<u8>,
    /// The digest that the bytes are said to have.
    known: Option<Digest>,
    answer: SyncSender<io::Result<Frame>>,
}

/// A compressed frame.
struct Frame {
    content: Digest,
    bytes: Vec<u8>,
    /// Where the store has these bytes.
    place: Option<Place>,
    sums: Sums,
}

/// A frame that was compressed ahead.
struct PreparedFrame {
    bytes: Vec<u8>,
    /// Of what it unpacks to.
    sum: u32,
}

/// Frames that were compressed before the layer was known that they may be part of.
#[derive(Default)]
pub struct Prepared {
    frames: Mutex<HashMap<Digest, PreparedFrame>>,
}

impl Prepared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, PreparedFrame>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Compresses what a layer that is still in the making has of `tree`, on the caller's thread, until `stop` says that
    /// the layer is known. What changes meanwhile is compressed in vain, and nothing worse.
    pub fn prepare(&self, tree: &Tree, prepared: &Prepared, stop: &dyn Fn() -> bool) {
        let known = self.frames();
        let mut compressor = None;
        let mut room = PREPARED_MAX;
        let mut cutter = Cutter::new(|bytes: Vec<u8>, claimed: Option<Digest>| {
            let content = claimed.unwrap_or_else(|| Digest::of(&bytes));
            if stop() || room < bytes.len() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if known.contains_key(&content) || prepared.lock().contains_key(&content) {
                return Ok(());
            }
            let frame = PreparedFrame {
                bytes: compressed(&bytes, &mut compressor)?,
                sum: crc32fast::hash(&bytes),
            };
            room = room.saturating_sub(frame.bytes.len());
            prepared.lock().insert(content, frame);
            Ok(())
        });
        #[expect(
            clippy::let_underscore_must_use,
            reason = "it ends where something is no longer as the tree has it"
        )]
        let _ = tar::write_parts(tree, &mut cutter).map(|()| cutter.finish());
    }

    /// Writes the tar stream of `tree` as a blob; answers its diff id too.
    pub(super) fn write_blob(
        &self,
        tree: &Tree,
        prepared: &Prepared,
    ) -> Result<(Digest, Descriptor), StoreError> {
        let file = TempFile::create(&self.tmp())?.synced_soon();
        let path = file.path().to_path_buf();
        let known = self.frames();
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(THREADS_MAX);
        let (jobs, to_do) = sync_channel::<Job>(threads * QUEUE);
        let (order, answers) = sync_channel(threads * QUEUE);
        let to_do = Mutex::new(to_do);
        let donors = Donors::new(self);
        let (diff_id, assembled) = thread::scope(|scope| {
            let produced = scope.spawn(|| produce(tree, jobs, order));
            for _ in 0..threads {
                scope.spawn(|| compress_all(&to_do, &known, prepared, &donors));
            }
            let assembled = Assembly::new(self, file).take_all(answers);
            // Not before the answers are taken, or dropped: it waits for room for them.
            let diff_id = produced
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (diff_id, assembled)
        });
        // What could not be written is the cause where both failed.
        let assembled = assembled?;
        let diff_id = diff_id.map_err(layer_error(&path))?;
        let blob = assembled.commit()?;
        let descriptor = Descriptor {
            media_type: MEDIA_LAYER_ZSTD.to_owned(),
            digest: blob.digest,
            size: blob.size,
            annotations: BTreeMap::new(),
        };
        Ok((diff_id, descriptor))
    }
}

type Answer = Receiver<io::Result<Frame>>;

fn produce(
    tree: &Tree,
    jobs: SyncSender<Job>,
    order: SyncSender<Answer>,
) -> Result<Digest, LayerError> {
    let mut hasher = Sha256::new();
    let mut cutter = Cutter::new(|bytes: Vec<u8>, known| {
        hasher.update(&bytes);
        let (answer, receiver) = sync_channel(1);
        // Nobody takes them any more where writing failed, which is told there.
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        order.send(receiver).map_err(|_| gone())?;
        let job = Job {
            bytes,
            known,
            answer,
        };
        jobs.send(job).map_err(|_| gone())
    });
    tar::write_parts(tree, &mut cutter)?;
    cutter.finish().map_err(LayerError::Write)?;
    Ok(Digest::from_sha256(hasher.finalize().into()))
}

fn compress_all(
    to_do: &Mutex<Receiver<Job>>,
    known: &Frames,
    prepared: &Prepared,
    donors: &Donors<'_>,
) {
    let mut compressor = None;
    loop {
        let job = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            bytes,
            known: claimed,
            answer,
        }) = job
        else {
            return;
        };
        #[expect(
            clippy::let_underscore_must_use,
            reason = "nobody to answer to: see `produce`"
        )]
        let _ = answer.send(compress(
            &bytes,
            claimed,
            known,
            prepared,
            donors,
            &mut compressor,
        ));
    }
}

/// `claimed` is the digest of `bytes` by the stat data of their file, which lie where a disk or a clock does: a frame of that digest,
/// of the store or compressed ahead, is taken only where the sum of what it unpacks to is that of the bytes.
fn compress(
    bytes: &[u8],
    claimed: Option<Digest>,
    known: &Frames,
    prepared: &Prepared,
    donors: &Donors<'_>,
    compressor: &mut Option<Compressor>,
) -> io::Result<Frame> {
    let sum = crc32fast::hash(bytes);
    let content = claimed.unwrap_or_else(|| Digest::of(bytes));
    let is_same = |other: u32| {
        let wrong =
            "a file has changed, and its times say that it has not: `touch` it, and bake again";
        match other == sum {
            false if claimed.is_some() => Err(io::Error::new(io::ErrorKind::InvalidData, wrong)),
            is_same => Ok(is_same),
        }
    };
    if let Some(place) = known.get(&content) {
        let is_same = is_same(place.sums.content)?;
        if is_same && let Some(bytes) = donors.read(place) {
            return Ok(Frame {
                content,
                bytes,
                place: Some(*place),
                sums: place.sums,
            });
        }
    }
    let prepared_frame = prepared.lock().remove(&content);
    let bytes = match prepared_frame {
        Some(frame) if is_same(frame.sum)? => frame.bytes,
        Some(_) | None => compressed(bytes, compressor)?,
    };
    let sums = Sums {
        content: sum,
        frame: crc32fast::hash(&bytes),
    };
    Ok(Frame {
        content,
        bytes,
        place: None,
        sums,
    })
}

type Compressor = zstd::bulk::Compressor<'static>;

fn compressed(bytes: &[u8], compressor: &mut Option<Compressor>) -> io::Result<Vec<u8>> {
    let compressor = match compressor {
        Some(compressor) => compressor,
        None => compressor.insert(Compressor::new(ZSTD_LEVEL)?),
    };
    compressor.compress(bytes)
}

/// The files of other blobs that frames are read from.
struct Donors<'a> {
    store: &'a Store,
    /// None where there is none, or no right to it.
    open: Mutex<HashMap<Donor, Option<Arc<File>>>>,
}

impl<'a> Donors<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            open: Mutex::default(),
        }
    }

    /// The frame's bytes, if they are what they were.
    fn read(&self, place: &Place) -> Option<Vec<u8>> {
        let file = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.len() > super::blob::DONORS_MAX {
                open.clear();
            }
            let file = open.entry(place.donor).or_insert_with(|| {
                self.store.note(&place.donor.blob);
                let file = File::open(self.store.donor_path(&place.donor));
                file.ok().map(Arc::new)
            });
            file.clone()?
        };
        let mut bytes = vec![0; place.length as usize];
        file.read_exact_at(&mut bytes, place.offset).ok()?;
        (crc32fast::hash(&bytes) == place.sums.frame).then_some(bytes)
    }
}

/// A blob in the making: its own bytes in a file, and where all of them are.
struct Assembly<'a> {
    store: &'a Store,
    file: TempFile,
    own: u64,
    hasher: Sha256,
    size: u64,
    recipe: Recipe,
    /// The frames in the own file: content, offset, length, sums.
    new: HashMap<Digest, (u64, u32, Sums)>,
}

impl<'a> Assembly<'a> {
    fn new(store: &'a Store, file: TempFile) -> Self {
        Self {
            store,
            file,
            own: 0,
            hasher: Sha256::new(),
            size: 0,
            recipe: Recipe::default(),
            new: HashMap::new(),
        }
    }

    fn take_all(mut self, answers: Receiver<Answer>) -> Result<Self, StoreError> {
        let path = self.file.path().to_path_buf();
        for answer in answers {
            // The thread is gone only when it panicked, which the scope passes on.
            let Ok(frame) = answer.recv() else { break };
            frame
                .and_then(|frame| self.take(frame))
                .map_err(io_error("write", &path))?;
        }
        Ok(self)
    }

    fn take(&mut self, frame: Frame) -> io::Result<()> {
        let Frame {
            content,
            bytes,
            place,
            sums,
        } = frame;
        self.hasher.update(&bytes);
        self.size += bytes.len() as u64;
        let length = bytes.len() as u64;
        let donor = place.and_then(|place| Some((self.recipe.source(&place.donor)?, place.offset)));
        let twice = self.new.get(&content);
        let twice = twice.filter(|(_, same, known)| u64::from(*same) == length && *known == sums);
        let twice = twice.map(|(offset, ..)| (0, *offset));
        let (source, offset) = match donor.or(twice) {
            Some(known) => known,
            None => {
                self.file.write_all(&bytes)?;
                let offset = self.own;
                self.own += length;
                self.new.insert(content, (offset, length as u32, sums));
                (0, offset)
            }
        };
        self.recipe.push(Segment {
            source,
            offset,
            length,
        });
        Ok(())
    }

    fn commit(self) -> Result<Blob, StoreError> {
        let Self {
            store,
            mut file,
            own: _,
            hasher,
            size,
            recipe,
            new,
        } = self;
        let digest = Digest::from_sha256(hasher.finalize().into());
        let blob = if !recipe.is_needed() {
            store.name_blob(file, digest, size)?
        } else if let Some(known) = store.known_blob(digest, size)? {
            known
        } else {
            let sparse_path = store.sparse_path(&digest);
            file.write_all(&recipe.encode())
                .map_err(io_error("write", &sparse_path))?;
            let own = file.share()?;
            if !file.persist_new(&sparse_path)? {
                // Others may have bytes of the sparse file that is there, which therefore stays.
                let mut blob = store.open_recipe(&digest, own, &recipe)?;
                let mut whole = TempFile::create(&store.tmp())?;
                io::copy(&mut blob, &mut whole).map_err(io_error("write", whole.path()))?;
                return store.name_blob(whole, digest, size);
            }
            Blob {
                digest,
                size,
                is_new: true,
            }
        };
        if blob.is_new {
            let donor = Donor {
                blob: digest,
                sparse: recipe.is_needed(),
            };
            let mut new: Vec<_> = new.into_iter().collect();
            new.sort_by_key(|(_, (offset, ..))| *offset);
            let places = new.into_iter().map(|(content, (offset, length, sums))| {
                let place = Place {
                    donor,
                    offset,
                    length,
                    sums,
                };
                (content, place)
            });
            store.put_frames(&donor, places)?;
        }
        Ok(blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entry;

    #[test]
    fn what_was_compressed_ahead_is_taken_and_the_layer_is_the_same() {
        let noise = |seed: usize| -> Vec<u8> {
            let byte = |at: usize| ((at ^ seed).wrapping_mul(2_654_435_761) >> 15) as u8;
            (0..300_000).map(byte).collect()
        };
        let mut tree = Tree::new();
        for seed in 0..3 {
            let entry = Entry::bytes(noise(seed), 0o644);
            tree.insert(format!("usr/{seed}"), entry).unwrap();
        }
        let mut whole = tree.clone();
        whole
            .insert("etc/late", Entry::bytes(noise(3), 0o644))
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [ahead, plain] =
            ["ahead", "plain"].map(|name| Store::open(&folder.path().join(name)).unwrap());
        let prepared = Prepared::default();
        ahead.prepare(&tree, &prepared, &|| false);
        let before = prepared.lock().len();
        let layer = ahead.add_prepared_layer(&whole, &prepared).unwrap();
        assert_eq!(layer, plain.add_layer(&whole).unwrap());
        // All large files' at least; what goes before and behind them is another one in the whole.
        assert!(before - prepared.lock().len() >= 3);
        let stopped = Prepared::default();
        plain.prepare(&tree, &stopped, &|| true);
        assert!(stopped.lock().is_empty());
    }
}
