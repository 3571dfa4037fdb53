//! Layers: from a tree to both forms, and from the blob back to the EROFS file.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use kiln_model::Digest;
use serde::{Deserialize, Serialize};

use super::compress::Prepared;
use super::error::{StoreError, io_error, layer_error};
use super::temp::TempFile;
use super::{Store, tags};
use crate::compression::unpacked;
use crate::content::Content;
use crate::difference::{self, Listing};
use crate::erofs::{CheckError, Extent, Pieces};
use crate::hashing::HashingWriter;
use crate::image::{Image, Layer};
use crate::layer::Tree;
use crate::{erofs, tar};

/// What is kept beside an EROFS file.
#[derive(Serialize, Deserialize)]
struct ErofsRecord {
    /// Of the file.
    erofs: Digest,
    size: u64,
    /// The EROFS file that this one is to be put over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<Digest>,
}

/// An EROFS file that has no name yet.
struct NewErofs {
    file: TempFile,
    record: ErofsRecord,
    extents: Vec<Extent>,
    /// Of a whole layer that is worth it.
    listing: Option<Listing>,
}

impl Store {
    /// Where the EROFS file of this digest is, or would be.
    pub fn erofs_path(&self, erofs: &Digest) -> PathBuf {
        self.dir
            .join("erofs")
            .join(format!("{}.erofs", erofs.hex()))
    }

    pub(super) fn record_path(&self, diff_id: &Digest) -> PathBuf {
        self.dir
            .join("erofs")
            .join(format!("{}.json", diff_id.hex()))
    }

    /// Stores `tree` as a layer: its tar stream, compressed, as a blob, and its EROFS file. Equal trees give
    /// equal layers. File contents are read by two threads at once, one for each form.
    pub fn add_layer(&self, tree: &Tree) -> Result<Layer, StoreError> {
        self.add_prepared_layer(tree, &Prepared::default())
    }

    /// As `add_layer`, which gives the same, with what was compressed before.
    pub fn add_prepared_layer(
        &self,
        tree: &Tree,
        prepared: &Prepared,
    ) -> Result<Layer, StoreError> {
        let tree = tree.settled()?;
        let (blob, erofs) = std::thread::scope(|scope| {
            let erofs = scope.spawn(|| self.write_erofs(&tree));
            let blob = self.write_blob(&tree, prepared);
            let erofs = erofs
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (blob, erofs)
        });
        let (diff_id, blob) = blob?;
        let erofs = self.keep_erofs(&diff_id, erofs?)?;
        Ok(Layer {
            diff_id,
            blob,
            erofs: Some(erofs),
        })
    }

    fn write_erofs(&self, tree: &Tree) -> Result<NewErofs, StoreError> {
        let tree = tree.settled()?;
        let pieces = Pieces::of(&tree)?;
        let listing = Listing::of(&tree, &pieces);
        match self.base_for(&tree, &listing)? {
            Some((base, difference)) => self.write_one(&difference, pieces, None, Some(base)),
            None => {
                let listing = difference::is_worth_it(&tree).then_some(listing);
                self.write_one(&tree, pieces, listing, None)
            }
        }
    }

    fn write_one(
        &self,
        tree: &Tree,
        pieces: Pieces,
        listing: Option<Listing>,
        base: Option<Digest>,
    ) -> Result<NewErofs, StoreError> {
        let sharing = self.sharing(tree, pieces);
        let file = TempFile::create(&self.tmp())?.synced_soon();
        let path = file.path().to_path_buf();
        let mut out = BufWriter::with_capacity(256 << 10, HashingWriter::new(file));
        let (_, extents) =
            erofs::write_shared(tree, &sharing, &mut out).map_err(layer_error(&path))?;
        let out = out
            .into_inner()
            .map_err(|error| io_error("write", &path)(error.into_error()))?;
        let (file, erofs, size) = out.finish();
        file.sync()?;
        Ok(NewErofs {
            file,
            record: ErofsRecord { erofs, size, base },
            extents,
            listing,
        })
    }

    /// Names an EROFS file and its record. One that is there and as long as its record says stays: it may be
    /// mounted, and a second file would be read and cached a second time.
    fn keep_erofs(&self, diff_id: &Digest, new: NewErofs) -> Result<Digest, StoreError> {
        if let Some(existing) = self.erofs_record(diff_id)?
            && self.erofs_is_whole(&existing)
        {
            return Ok(existing.erofs);
        }
        let NewErofs {
            file,
            record,
            extents,
            listing,
        } = new;
        self.note(&record.erofs);
        let path = self.erofs_path(&record.erofs);
        let record_path = self.record_path(diff_id);
        file.persist_unsynced_name(&path)?;
        self.put_extents(&record.erofs, &extents)?;
        if let Some(listing) = listing {
            self.put_listing(&record.erofs, &listing)?;
        }
        let mut beside = TempFile::create(&self.tmp())?;
        beside
            .write_all(&tags::encode(&record, &record_path)?)
            .map_err(io_error("write", &record_path))?;
        beside.persist(&record_path)?;
        Ok(record.erofs)
    }

    /// Whether the files, and those that they take blocks from, are there.
    fn erofs_is_whole(&self, record: &ErofsRecord) -> bool {
        let path = self.erofs_path(&record.erofs);
        let is_long = fs::metadata(path).is_ok_and(|meta| meta.len() == record.size);
        let mut files = record.base.iter().chain([&record.erofs]);
        is_long && files.all(|erofs| self.can_be_mounted(erofs))
    }

    /// Whether an EROFS file, and those that it takes blocks from, are there, each as long as it says itself.
    pub(super) fn can_be_mounted(&self, erofs: &Digest) -> bool {
        let whole = |erofs: &Digest| {
            self.note(erofs);
            let file = File::open(self.erofs_path(erofs)).ok()?;
            let blocks = erofs::blocks(&file).ok()?;
            blocks.map(|_| file)
        };
        let donors = whole(erofs).and_then(|file| erofs::donors(&file).ok());
        donors.is_some_and(|donors| donors.iter().all(|donor| whole(donor).is_some()))
    }

    fn erofs_record(&self, diff_id: &Digest) -> Result<Option<ErofsRecord>, StoreError> {
        self.note(diff_id);
        let path = self.record_path(diff_id);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| StoreError::RecordDamaged { path, source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// The recorded digest of a layer's own EROFS file; none where it was never made here.
    pub fn erofs_digest(&self, diff_id: &Digest) -> Result<Option<Digest>, StoreError> {
        Ok(self.erofs_record(diff_id)?.map(|record| record.erofs))
    }

    /// Reads a layer's EROFS file, and those that it takes blocks from, through and checks them against their digests.
    pub fn check_erofs(&self, diff_id: &Digest) -> Result<(), StoreError> {
        let missing = || StoreError::LayerMissing { diff_id: *diff_id };
        let record = self.erofs_record(diff_id)?.ok_or_else(missing)?;
        for erofs in record.base.into_iter().chain([record.erofs]) {
            erofs::check(&self.erofs_path(&erofs), &erofs).map_err(|error| match error {
                CheckError::Read { source, .. } if source.kind() == ErrorKind::NotFound => {
                    missing()
                }
                CheckError::Read { path, source } => io_error("read", &path)(source),
                CheckError::Changed {
                    path,
                    expected,
                    found,
                } => StoreError::LayerChanged {
                    diff_id: *diff_id,
                    expected,
                    actual: found,
                    path,
                },
            })?;
        }
        Ok(())
    }

    /// The EROFS files that together are the layer, bottom to top: its own, below it the one that it is the difference from.
    /// Made again from the layer's blob where one is missing.
    pub fn erofs_files(&self, layer: &Layer) -> Result<Vec<(Digest, PathBuf)>, StoreError> {
        let record = match self.erofs_record(&layer.diff_id)? {
            Some(record) if self.erofs_is_whole(&record) => record,
            _ => {
                let tree = self.layer_tree(layer)?;
                self.keep_erofs(&layer.diff_id, self.write_erofs(&tree)?)?;
                let missing = || StoreError::LayerMissing {
                    diff_id: layer.diff_id,
                };
                self.erofs_record(&layer.diff_id)?.ok_or_else(missing)?
            }
        };
        let files = record.base.into_iter().chain([record.erofs]);
        Ok(files
            .map(|erofs| (erofs, self.erofs_path(&erofs)))
            .collect())
    }

    /// The EROFS files of these layers, bottom to top, for an overlay.
    pub fn lowers(&self, layers: &[Layer]) -> Result<Vec<PathBuf>, StoreError> {
        let mut paths = Vec::with_capacity(layers.len());
        for layer in layers {
            let files = self.erofs_files(layer)?;
            paths.extend(files.into_iter().map(|(_, path)| path));
        }
        Ok(paths)
    }

    /// What the record of a layer names.
    pub(super) fn erofs_of(&self, diff_id: &Digest) -> Result<Vec<Digest>, StoreError> {
        let record = self.erofs_record(diff_id)?;
        Ok(record.map_or_else(Vec::new, |record| {
            record.base.into_iter().chain([record.erofs]).collect()
        }))
    }

    /// A layer's tar stream, uncompressed, in an unnamed file on the store's disk, and its size. Checked against the diff id.
    pub(crate) fn layer_tar(&self, layer: &Layer) -> Result<(Content, u64), StoreError> {
        let mut spill = TempFile::create(&self.tmp())?;
        let path = spill.path().to_path_buf();
        let mut stream = self.layer_stream(layer)?;
        let size = std::io::copy(&mut stream, &mut spill).map_err(io_error("write", &path))?;
        stream.check(layer)?;
        let file = Arc::new(spill.into_anonymous()?);
        Ok((Content::Range { file, offset: 0 }, size))
    }

    /// A layer read back from its blob, whose contents are in an unnamed file on the store's disk. The tar
    /// stream is checked against the layer's diff id.
    pub fn layer_tree(&self, layer: &Layer) -> Result<Tree, StoreError> {
        let spill = TempFile::create(&self.tmp())?;
        let spill_path = spill.path().to_path_buf();
        let mut stream = self.layer_stream(layer)?;
        let tree = Tree::from_tar(&mut stream, spill.into_anonymous()?, tar::Limits::default())
            .map_err(layer_error(&spill_path))?;
        stream.check(layer)?;
        Ok(tree)
    }

    pub(super) fn layer_stream(&self, layer: &Layer) -> Result<LayerStream, StoreError> {
        let path = self.blob_path(&layer.blob.digest);
        let blob = self.open_blob(&layer.blob.digest)?;
        Ok(HashingReader {
            inner: unpacked(blob).map_err(io_error("read", &path))?,
            out: HashingWriter::new(std::io::sink()),
        })
    }
}

pub(super) type LayerStream = HashingReader<Box<dyn Read + Send>>;

impl Image {
    /// The EROFS files of the image's layers, bottom to top; those that are missing are made again.
    pub fn erofs_paths(&self, store: &Store) -> Result<Vec<PathBuf>, StoreError> {
        store.lowers(&self.layers)
    }
}

pub(super) struct HashingReader<R> {
    inner: R,
    out: HashingWriter<std::io::Sink>,
}

impl<R> HashingReader<R> {
    /// Whether what was read, to its end, is the layer.
    pub(super) fn check(self, layer: &Layer) -> Result<(), StoreError> {
        let (_, actual, _) = self.out.finish();
        if actual != layer.diff_id {
            return Err(StoreError::DiffIdWrong {
                diff_id: layer.diff_id,
                actual,
            });
        }
        Ok(())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.out.write_all(&buffer[..count])?;
        Ok(count)
    }
}
