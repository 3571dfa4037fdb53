//! The content store: blobs and EROFS files by digest, tags, image records, and the bake's cache.
//!
//! ```text
//! store/blobs/sha256/<hex>    manifests, configurations, layers: named by their own digest
//! store/blobs/sparse/<hex>    the layers that have bytes in common with others: see `blob`
//! store/frames/<hex>          where in that blob's file which frame is: see `frames`
//! store/erofs/<hex>.erofs     a layer as the kernel mounts it, named by its own digest; <hex>.extents lists its pieces,
//!                             <hex>.list its entries, for others to be the difference from it
//! store/erofs/<diff id>.json  which of them is the layer's, and which one it is to be put over
//! store/images/<hex>.json     when the image of that manifest came
//! store/referrers/<hex>/    what is said about the image of that manifest: one record a referrer
//! store/tags/<tag>            given once, never moved
//! store/cache/<hex>           small records of the bake
//! store/sessions/             what running processes use: see `session`
//! store/gate                  locked while something is added to a session, or the store is pruned
//! store/mounts/<hex>/         what steps keep from one bake to the next (`RUN --mount=type=cache`)
//! store/tmp/                  what is being written; locked while its writer lives
//! ```
//!
//! Everything appears under its name at once and whole: written to `tmp`, synced, renamed, and the folder
//! synced. Nothing is kept in memory, so that any number of processes may share a store.

mod base;
mod blob;
mod cache;
mod compress;
mod error;
mod extents;
mod frames;
mod gzip;
mod images;
mod layers;
mod mounts;
mod prune;
mod referrers;
mod reindex;
mod session;
mod tags;
mod temp;

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_model::Digest;

pub use compress::Prepared;
pub use error::StoreError;
pub use gzip::compressor;
pub use images::ImageEntry;
pub use mounts::PrunedMount;
pub use prune::{PruneOptions, Pruned, digests_in};
pub use referrers::Referrer;
pub use tags::TagEntry;

use error::io_error;
use session::Session;
use temp::TempFile;

use crate::hashing::{HashingWriter, hash_file};

/// As registries bound a manifest; a configuration is of the same kind.
const DOCUMENT_MAX: u64 = 4 << 20;

/// The content store of one data root. Cheap to clone; used from any thread.
#[derive(Clone, Debug)]
pub struct Store {
    dir: Arc<Path>,
    session: Option<Arc<Session>>,
}

/// A blob in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
    /// False where the store had it before.
    pub is_new: bool,
}

impl Store {
    /// Opens the store below `root`, making its folders where they are missing, and removes what writers that
    /// died have left in `tmp`. Reads nothing else. What is used by way of the answer, or a clone of it, is not pruned
    /// while one of them lives.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self::at(root.join("store"));
        for name in [
            "blobs/sha256",
            "blobs/sparse",
            "frames",
            "erofs",
            "images",
            "tags",
            "cache",
            "sessions",
            "tmp",
        ] {
            let path = store.dir.join(name);
            if !path.is_dir() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(io_error("create", &path))?;
            }
        }
        temp::remove_stale(&store.tmp())?;
        Ok(store)
    }

    /// As `open`, for who only looks: a root that has no store yet is left without one, and nothing is found in it.
    pub fn open_existing(root: &Path) -> Result<Self, StoreError> {
        let dir = root.join("store");
        if dir.is_dir() {
            Self::open(root)
        } else {
            Ok(Self::at(dir))
        }
    }

    fn at(dir: PathBuf) -> Self {
        let dir: Arc<Path> = dir.into();
        Self {
            session: Some(Arc::new(Session::new(dir.clone()))),
            dir,
        }
    }

    /// The store's own folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a file may be made that is later renamed into the store, or spilled to.
    fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// An unnamed file on the store's disk.
    pub(crate) fn spill(&self) -> Result<File, StoreError> {
        TempFile::create(&self.tmp())?.into_anonymous()
    }

    /// What the disk said while something was written to the store.
    pub(crate) fn write_error(&self, error: io::Error) -> StoreError {
        io_error("write", &self.tmp())(error)
    }

    /// The bytes of a small blob, checked against its digest. Larger than `limit` is an error.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.stored_path(digest);
        let mut bytes = Vec::new();
        let whole = crate::content::read_bounded(self.open_blob(digest)?, limit, &mut bytes)
            .map_err(io_error("read", &path))?;
        if !whole {
            return Err(StoreError::BlobTooLarge {
                digest: *digest,
                limit,
            });
        }
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(StoreError::BlobCorrupt {
                digest: *digest,
                actual,
                path,
            });
        }
        Ok(bytes)
    }

    /// Reads a blob through and checks it against its digest.
    pub fn verify_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.stored_path(digest);
        let actual = hash_file(self.open_blob(digest)?).map_err(io_error("read", &path))?;
        if actual != *digest {
            return Err(StoreError::BlobCorrupt {
                digest: *digest,
                actual,
                path,
            });
        }
        Ok(())
    }

    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Blob, StoreError> {
        let digest = Digest::of(bytes);
        if self.is_whole(&digest, bytes.len() as u64) {
            return Ok(Blob {
                digest,
                size: bytes.len() as u64,
                is_new: false,
            });
        }
        self.put_reader(bytes)
    }

    pub fn put_reader(&self, mut reader: impl Read) -> Result<Blob, StoreError> {
        let mut writer = self.blob_writer()?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return writer.commit_blob(),
                Ok(count) => {
                    let path = writer.path();
                    writer
                        .write_all(&buffer[..count])
                        .map_err(io_error("write", &path))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(StoreError::Source { source }),
            }
        }
    }

    pub fn put_file(&self, path: &Path) -> Result<Blob, StoreError> {
        self.put_reader(File::open(path).map_err(io_error("open", path))?)
    }

    /// A blob whose bytes come by and by; nothing of it is in the store before [`BlobWriter::commit`].
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        let file = TempFile::create(&self.tmp())?;
        Ok(BlobWriter {
            store: self.clone(),
            out: HashingWriter::new(file),
        })
    }
}

/// Takes the bytes of a blob. Dropped without a commit, it leaves nothing.
pub struct BlobWriter {
    store: Store,
    out: HashingWriter<TempFile>,
}

impl BlobWriter {
    /// Syncs what was written and gives it its name. A blob that the store has already stays as it is.
    pub fn commit(self) -> Result<(Digest, u64), StoreError> {
        let Blob { digest, size, .. } = self.commit_blob()?;
        Ok((digest, size))
    }

    /// As `commit`, where the bytes have the digest `expected`; otherwise the store is as it was, and the answer is the
    /// digest that they have.
    pub fn commit_as(self, expected: &Digest) -> Result<Result<(), Digest>, StoreError> {
        let Self { store, out } = self;
        let (file, digest, size) = out.finish();
        if digest != *expected {
            return Ok(Err(digest));
        }
        store.name_blob(file, digest, size).map(|_| Ok(()))
    }

    pub(crate) fn commit_blob(self) -> Result<Blob, StoreError> {
        let Self { store, out } = self;
        let (file, digest, size) = out.finish();
        store.name_blob(file, digest, size)
    }

    fn path(&self) -> PathBuf {
        self.out.get_ref().path().to_path_buf()
    }
}

impl Store {
    /// Names the file of a blob, unless the store has the blob.
    fn name_blob(&self, file: TempFile, digest: Digest, size: u64) -> Result<Blob, StoreError> {
        if let Some(known) = self.known_blob(digest, size)? {
            return Ok(known);
        }
        file.persist(&self.blob_path(&digest))?;
        Ok(Blob {
            digest,
            size,
            is_new: true,
        })
    }

    /// A blob that the store has. Another size under the digest's name can only be damage, which new bytes mend; and so do
    /// they where a blob that bytes were shared with is gone.
    fn known_blob(&self, digest: Digest, size: u64) -> Result<Option<Blob>, StoreError> {
        self.note(&digest);
        if !self.is_whole(&digest, size) {
            return Ok(None);
        }
        // The one who wrote it may not have come to this yet, and the answer promises it.
        temp::sync_parent(&self.blob_path(&digest))?;
        temp::sync_parent(&self.sparse_path(&digest))?;
        Ok(Some(Blob {
            digest,
            size,
            is_new: false,
        }))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
