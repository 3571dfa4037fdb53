//! The stat cache: what copied files hold whose stat data is as it was when they were read.
//!
//! A file that was changed after it was read has another change time, except when both fell into one tick of the file system's
//! clock. So a file is only kept if it was older than the coarsest such tick when it was read; a younger one is read again by the
//! next bake.
//!
//! Files are kept in the order in which they were asked for, which is mostly that in which the next bake asks: then nothing has to be
//! looked up.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use kiln_model::Digest;
use kiln_oci::{KnownFile, Stamp, Store};
use rustix::fs::{CWD, Mode, OFlags};

use crate::context::listing::{Listing, Listings};
use crate::leaks;

/// Of FAT, the coarsest.
const TICK_NS: i128 = 2_000_000_000;
const THREADS_MAX: usize = 8;
/// Of pieces: fewer are read before a thread has begun.
const THREAD_WORTH: usize = 8;

/// What is known of one path.
struct Slot {
    /// Of `StatCache::paths`.
    path: Range<usize>,
    stamp: Stamp,
    content: Digest,
    /// None where the content is the only one.
    pieces: Box<[Digest]>,
    /// Nothing in it looks secret.
    is_clean: bool,
    /// It may be changed and keep its stat data.
    is_young: bool,
    /// When it was asked for in this bake, from 1 on; what was not is forgotten.
    order: u32,
}

/// A file whose digest has to be found out.
pub(crate) struct UnreadFile {
    /// Where the answer goes.
    pub(crate) at: usize,
    pub(crate) path: PathBuf,
    pub(crate) stamp: Stamp,
}

pub(crate) struct StatCache {
    key: Digest,
    /// The record, with the paths of new files behind it.
    paths: Vec<u8>,
    slots: Vec<Slot>,
    /// By path; made when somebody asks out of order.
    index: Option<HashMap<Vec<u8>, usize>>,
    /// The slot that is asked for next.
    next: usize,
    asked: u32,
    /// Whether the next bake would learn something from it.
    changed: bool,
    /// When this bake began to look, in nanoseconds since 1970.
    began: i128,
    read: usize,
    listings: Listings,
}

impl StatCache {
    /// What the last bake of `image` from the folder `context` saw. A record that can't be read is none.
    pub(crate) fn load(
        store: &Store,
        context: &Path,
        image: &str,
        began: SystemTime,
        listings: &Listings,
    ) -> Self {
        let context = context
            .canonicalize()
            .unwrap_or_else(|_| context.to_owned());
        let mut name = format!("files seen 3\0{image}\0").into_bytes();
        name.extend_from_slice(context.as_os_str().as_bytes());
        let key = Digest::of(&name);
        let paths = store.cache_get(&key).unwrap_or_default();
        let slots = parse(&paths).unwrap_or_default();
        Self {
            key,
            paths,
            slots,
            index: None,
            next: 0,
            asked: 0,
            changed: false,
            began: began
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(0)),
            read: 0,
            listings: listings.clone(),
        }
    }

    pub(crate) fn list(&self, folder: &Path) -> io::Result<Arc<Listing>> {
        self.listings.of(folder)
    }

    fn slot(&mut self, path: &[u8]) -> Option<usize> {
        let is_next = |slot: &Slot| self.paths[slot.path.clone()] == *path;
        if self.slots.get(self.next).is_some_and(is_next) {
            self.next += 1;
            return Some(self.next - 1);
        }
        let index = self.index.get_or_insert_with(|| {
            let slots = self.slots.iter().enumerate();
            slots
                .map(|(at, slot)| (self.paths[slot.path.clone()].to_vec(), at))
                .collect()
        });
        let at = *index.get(path)?;
        self.next = at + 1;
        Some(at)
    }

    /// What the file at `path` holds, if that is known of its stat data `stamp`. Otherwise it has to be [read](Self::read).
    pub(crate) fn find(&mut self, path: &Path, stamp: &Stamp) -> Option<Digest> {
        let at = self.slot(path.as_os_str().as_bytes())?;
        let slot = &mut self.slots[at];
        if slot.is_young || slot.stamp != *stamp {
            return None;
        }
        if slot.order == 0 {
            self.asked += 1;
            slot.order = self.asked;
        }
        Some(slot.content)
    }

    /// Reads files, several at once.
    pub(crate) fn read(
        &mut self,
        files: &[UnreadFile],
    ) -> Result<Vec<Digest>, (PathBuf, io::Error)> {
        self.read += files.len();
        let mut digests = Vec::with_capacity(files.len());
        for (file, (pieces, is_steady)) in files.iter().zip(read_all(files)?) {
            let content = KnownFile::content_of(&pieces);
            let path = file.path.as_os_str().as_bytes();
            let is_old = file.stamp.changed_ns() + TICK_NS < self.began;
            self.asked += 1;
            let mut slot = Slot {
                path: 0..0,
                stamp: file.stamp,
                content,
                pieces: if pieces.len() > 1 {
                    pieces.into()
                } else {
                    Box::default()
                },
                is_clean: false,
                is_young: !(is_steady && is_old),
                order: self.asked,
            };
            self.changed |= !slot.is_young;
            match self.slot(path) {
                Some(at) => {
                    slot.path = self.slots[at].path.clone();
                    self.slots[at] = slot;
                }
                None => {
                    let start = self.paths.len();
                    self.paths.extend_from_slice(path);
                    slot.path = start..self.paths.len();
                    if let Some(index) = &mut self.index {
                        index.insert(path.to_vec(), self.slots.len());
                    }
                    self.slots.push(slot);
                }
            }
            digests.push(content);
        }
        Ok(digests)
    }

    /// What is known of a file that was asked for.
    pub(crate) fn known_file(&mut self, path: &Path) -> Option<Arc<KnownFile>> {
        let at = self.slot(path.as_os_str().as_bytes())?;
        let slot = &self.slots[at];
        let pieces = match &slot.pieces[..] {
            [] if slot.stamp.size() > 0 => [slot.content].into(),
            pieces => pieces.into(),
        };
        let stamp = slot.stamp;
        Some(Arc::new(KnownFile { stamp, pieces }))
    }

    /// The contents of which is known that nothing in them looks secret.
    pub(crate) fn clean(&self) -> HashSet<Digest> {
        let clean = self.slots.iter().filter(|slot| slot.is_clean);
        clean.map(|slot| slot.content).collect()
    }

    pub(crate) fn are_clean(&mut self, contents: &HashSet<Digest>) {
        for slot in &mut self.slots {
            if !slot.is_clean && contents.contains(&slot.content) {
                slot.is_clean = true;
                self.changed |= !slot.is_young;
            }
        }
    }

    /// Keeps what was seen for the next bake. Losing it costs only reading.
    pub(crate) fn save(&mut self, store: &Store) {
        if self.changed || self.slots.iter().any(|slot| slot.order == 0) {
            let _ = store.cache_put(&self.key, &self.record());
            self.changed = false;
        }
    }

    /// Binary, since ten thousand files are usual. Which rules for secrets were looked after; then for each file what it is known by, the
    /// numbers of its stat data, whether it is clean, the number of its pieces and their digests, the length of its path and the path.
    /// Little-endian.
    fn record(&self) -> Vec<u8> {
        let mut out = leaks::RULES_VERSION.to_le_bytes().to_vec();
        let used = |slot: &&Slot| slot.order > 0 && !slot.is_young;
        let mut slots: Vec<&Slot> = self.slots.iter().filter(used).collect();
        slots.sort_by_key(|slot| slot.order);
        for slot in slots {
            out.extend_from_slice(slot.content.as_bytes());
            for number in slot.stamp.numbers() {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.push(slot.is_clean.into());
            out.extend_from_slice(&(slot.pieces.len() as u32).to_le_bytes());
            for piece in &slot.pieces {
                out.extend_from_slice(piece.as_bytes());
            }
            out.extend_from_slice(&(slot.path.len() as u32).to_le_bytes());
            out.extend_from_slice(&self.paths[slot.path.clone()]);
        }
        out
    }
}

/// None: it is not of this form.
fn parse(record: &[u8]) -> Option<Vec<Slot>> {
    let (rules, mut rest) = record.split_first_chunk::<4>()?;
    let same_rules = *rules == leaks::RULES_VERSION.to_le_bytes();
    let mut slots = Vec::with_capacity(rest.len() / 140);
    while !rest.is_empty() {
        let (digest, after) = rest.split_first_chunk::<32>()?;
        let (numbers, after) = after.split_first_chunk::<{ 8 * Stamp::NUMBERS }>()?;
        let mut stamp = [0; Stamp::NUMBERS];
        for (number, bytes) in stamp.iter_mut().zip(numbers.as_chunks::<8>().0) {
            *number = u64::from_le_bytes(*bytes);
        }
        let (is_clean, after) = after.split_first()?;
        let (count, after) = after.split_first_chunk::<4>()?;
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let (pieces, after) = after.split_at_checked(count.checked_mul(32)?)?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let start = record.len() - after.len();
        let (_, after) = after.split_at_checked(length)?;
        let pieces = pieces.as_chunks::<32>().0.iter();
        slots.push(Slot {
            path: start..start + length,
            stamp: Stamp::from_numbers(stamp),
            content: Digest::from_sha256(*digest),
            pieces: pieces.map(|piece| Digest::from_sha256(*piece)).collect(),
            is_clean: same_rules && *is_clean != 0,
            is_young: false,
            order: 0,
        });
        rest = after;
    }
    Some(slots)
}

/// Of a file the digests of its pieces, and whether it was the file of its stamp all the while.
type Pieces = (Vec<Digest>, bool);

fn read_all(files: &[UnreadFile]) -> Result<Vec<Pieces>, (PathBuf, io::Error)> {
    let mut jobs = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let pieces = file.stamp.size().div_ceil(KnownFile::PIECE as u64);
        jobs.extend((0..pieces).map(|piece| (number, piece * KnownFile::PIECE as u64)));
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(THREADS_MAX).min(jobs.len() / THREAD_WORTH);
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        let mut done = Vec::new();
        let mut buffer = vec![0; KnownFile::PIECE];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((number, start)) = jobs.get(at) else {
                return done;
            };
            match read_piece(&files[*number], *start, &mut buffer) {
                Ok((digest, is_steady)) => done.push((at, digest, is_steady)),
                Err(error) => {
                    // One is enough, and the others need not go on.
                    next.store(jobs.len(), Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert((files[*number].path.clone(), error));
                    return done;
                }
            }
        }
    };
    let mut done = if threads < 2 {
        work()
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            joined.flatten().collect::<Vec<_>>()
        })
    };
    if let Some(failure) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failure);
    }
    done.sort_unstable_by_key(|(at, ..)| *at);
    let mut all = vec![(Vec::new(), true); files.len()];
    for (at, digest, is_steady) in done {
        let (pieces, all_steady) = &mut all[jobs[at].0];
        pieces.push(digest);
        *all_steady &= is_steady;
    }
    Ok(all)
}

fn read_piece(file: &UnreadFile, start: u64, buffer: &mut [u8]) -> io::Result<(Digest, bool)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = File::from(rustix::fs::openat(CWD, &file.path, flags, Mode::empty())?);
    let left = usize::try_from(file.stamp.size() - start).unwrap_or(usize::MAX);
    let length = left.min(buffer.len());
    let mut filled = 0;
    while filled < length {
        match open.read_at(&mut buffer[filled..length], start + filled as u64) {
            // Shorter than it was, as its stat data will say.
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let is_steady = Stamp::of_file(&open)? == file.stamp;
    Ok((Digest::of(&buffer[..filled]), is_steady))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::context::listing::FileStat;

    struct Folder {
        root: tempfile::TempDir,
        store: Store,
    }

    /// As a bake asks for files.
    fn digests(stat_cache: &mut StatCache, paths: &[PathBuf]) -> Vec<Digest> {
        let mut found = vec![None; paths.len()];
        let mut unread = Vec::new();
        for (at, path) in paths.iter().enumerate() {
            let stamp = FileStat::at(path).unwrap().stamp;
            found[at] = stat_cache.find(path, &stamp);
            if found[at].is_none() {
                let path = path.clone();
                unread.push(UnreadFile { at, path, stamp });
            }
        }
        let read = stat_cache.read(&unread).unwrap();
        for (unread, digest) in unread.iter().zip(read) {
            found[unread.at] = Some(digest);
        }
        found.into_iter().map(Option::unwrap).collect()
    }

    impl Folder {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let store = Store::open(root.path()).unwrap();
            Self { root, store }
        }

        fn load(&self, began: SystemTime) -> StatCache {
            let listings = Listings::default();
            StatCache::load(&self.store, self.root.path(), "api", began, &listings)
        }

        /// The digests of all of `names`, and how many files were read for them.
        fn look(&self, names: &[String], began: SystemTime) -> (Vec<Digest>, usize) {
            let mut stat_cache = self.load(began);
            let paths: Vec<_> = names
                .iter()
                .map(|name| self.root.path().join(name))
                .collect();
            let digests = digests(&mut stat_cache, &paths);
            stat_cache.save(&self.store);
            (digests, stat_cache.read)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.root.path().join(name), text).unwrap();
        }
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(10)
    }

    #[test]
    fn unchanged_files_are_not_read_again_and_a_changed_one_is() {
        let folder = Folder::new();
        let mut names: Vec<_> = (0..500).map(|number| format!("file-{number}")).collect();
        names.iter().for_each(|name| folder.write(name, name));
        let (first, read) = folder.look(&names, later());
        assert_eq!(read, 500);
        assert_eq!(folder.look(&names, later()), (first.clone(), 0));
        // The same size, another file under the name.
        folder.write("new", "file-X");
        fs::rename(
            folder.root.path().join("new"),
            folder.root.path().join("file-7"),
        )
        .unwrap();
        let (second, read) = folder.look(&names, later());
        assert_eq!(read, 1);
        assert_eq!(second[7], Digest::of(b"file-X"));
        assert_eq!(second[8], first[8]);
        // Asked for in another order, with a new one in between.
        folder.write("file-500", "500");
        names.insert(3, "file-500".to_owned());
        names.reverse();
        let (third, read) = folder.look(&names, later());
        assert_eq!((read, third[500 - 3]), (1, Digest::of(b"500")));
        assert_eq!(third[500], second[0]);
        assert_eq!(folder.look(&names, later()), (third, 0));
    }

    #[test]
    fn a_large_file_is_known_by_its_pieces() {
        let folder = Folder::new();
        let mut bytes: Vec<u8> = (0..KnownFile::PIECE * 2 + 5).map(|at| at as u8).collect();
        let path = folder.root.path().join("large");
        let look = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let mut stat_cache = folder.load(later());
            let first = digests(&mut stat_cache, std::slice::from_ref(&path));
            stat_cache.save(&folder.store);
            let mut stat_cache = folder.load(later());
            assert_eq!(digests(&mut stat_cache, std::slice::from_ref(&path)), first);
            assert_eq!(stat_cache.read, 0);
            let known = stat_cache.known_file(&path).unwrap();
            assert_eq!(known.content(), first[0]);
            known.pieces.to_vec()
        };
        let before = look(&bytes);
        let pieces = bytes.chunks(KnownFile::PIECE).map(Digest::of);
        assert_eq!(before, pieces.collect::<Vec<_>>());
        bytes[KnownFile::PIECE] ^= 1;
        let after = look(&bytes);
        assert!(before[0] == after[0] && before[1] != after[1] && before[2] == after[2]);
        assert_eq!(look(b""), []);
    }

    #[test]
    fn what_was_searched_is_remembered_by_content() {
        let folder = Folder::new();
        let paths: Vec<_> = ["a", "b"].map(|name| folder.root.path().join(name)).into();
        folder.write("a", "one");
        folder.write("b", "two");
        let mut stat_cache = folder.load(later());
        let contents = digests(&mut stat_cache, &paths);
        stat_cache.save(&folder.store);
        assert!(stat_cache.clean().is_empty());
        stat_cache.are_clean(&HashSet::from([contents[0]]));
        stat_cache.save(&folder.store);
        assert_eq!(folder.load(later()).clean(), HashSet::from([contents[0]]));
        folder.write("a", "secret");
        let mut stat_cache = folder.load(later());
        digests(&mut stat_cache, &paths);
        assert!(stat_cache.clean().is_empty());
    }

    #[test]
    fn a_file_changed_in_the_tick_in_which_it_was_read_is_seen() {
        let folder = Folder::new();
        let path = folder.root.path().join("file");
        let mut stat_cache = folder.load(SystemTime::now());
        // Written in place and of one size, so soon that mostly nothing of the stat data differs.
        for round in 0..500 {
            let text = format!("{round:04}");
            folder.write("file", &text);
            let found = digests(&mut stat_cache, std::slice::from_ref(&path));
            assert_eq!(found, [Digest::of(text.as_bytes())]);
            // Where the file system's clock is too fine for that, this is what can be seen of the rule.
            assert!(stat_cache.slots.iter().all(|slot| slot.is_young));
        }
        stat_cache.save(&folder.store);
        assert!(folder.load(later()).slots.is_empty());
    }

    #[test]
    fn a_file_that_is_gone_is_forgotten_and_a_name_need_not_be_text() {
        let folder = Folder::new();
        let odd = std::ffi::OsString::from(OsStr::from_bytes(b"na\xffme"));
        let (odd, gone) = (
            folder.root.path().join(odd),
            folder.root.path().join("gone"),
        );
        let look = |paths: &[PathBuf]| {
            let mut stat_cache = folder.load(later());
            digests(&mut stat_cache, paths);
            let all = stat_cache.slots.len();
            stat_cache.save(&folder.store);
            (stat_cache.read, all)
        };
        fs::write(&odd, "odd").unwrap();
        fs::write(&gone, "gone").unwrap();
        assert_eq!(look(&[odd.clone(), gone]), (2, 2));
        assert_eq!(look(std::slice::from_ref(&odd)), (0, 2));
        assert_eq!(look(&[odd]), (0, 1));
    }

    #[test]
    fn a_damaged_record_is_none() {
        let folder = Folder::new();
        let names = ["file".to_owned()];
        folder.write("file", "text");
        folder.look(&names, later());
        let key = folder.load(later()).key;
        let path = folder.store.dir().join("cache").join(key.hex());
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(folder.look(&names, later()), (vec![Digest::of(b"text")], 1));
        assert_eq!(folder.look(&names, later()).1, 0);
    }
}
