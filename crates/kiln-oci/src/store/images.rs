//! Images: a manifest, its configuration, its layers.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use kiln_model::{Digest, canonical_json};
use serde::{Deserialize, Serialize};

use super::error::{StoreError, io_error};
use super::tags::{encode, now_ms};
use super::temp::TempFile;
use super::{DOCUMENT_MAX, Store};
use crate::compression::layer_media_type;
use crate::image::{Descriptor, Image, ImageConfig, Layer, MEDIA_CONFIG, MEDIA_MANIFEST, Manifest};

/// One image of the store, for a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageEntry {
    pub digest: Digest,
    /// Sorted; none where the image was only ever a step's result.
    pub tags: Vec<String>,
    /// When it came into this store, in milliseconds since 1970.
    pub created_ms: u64,
    /// Compressed layers and documents, in bytes; layers that images share count for each.
    pub size: u64,
}

#[derive(Serialize, Deserialize)]
struct ImageRecord {
    created_ms: u64,
}

impl Store {
    pub(super) fn image_record_path(&self, digest: &Digest) -> PathBuf {
        self.dir
            .join("images")
            .join(format!("{}.json", digest.hex()))
    }

    /// Stores the image of these layers, bottom to top, and returns its manifest's digest. The configuration's
    /// diff ids become those of the layers. The same image again changes nothing.
    pub fn put_image(&self, config: &ImageConfig, layers: &[Layer]) -> Result<Digest, StoreError> {
        let mut config = config.clone();
        config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        self.put_image_as(&document(&config, "configuration")?, layers)
    }

    /// As `put_image`, of a configuration that came as these bytes and says the same diff ids.
    pub(crate) fn put_image_as(
        &self,
        config: &[u8],
        layers: &[Layer],
    ) -> Result<Digest, StoreError> {
        let config = self.put_bytes(config)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: MEDIA_MANIFEST.to_owned(),
            config: Descriptor {
                media_type: MEDIA_CONFIG.to_owned(),
                digest: config.digest,
                size: config.size,
                annotations: BTreeMap::new(),
            },
            layers: layers.iter().map(|layer| layer.blob.clone()).collect(),
            annotations: BTreeMap::new(),
        };
        let manifest = self.put_bytes(&document(&manifest, "manifest")?)?;
        self.record_image(&manifest.digest)?;
        Ok(manifest.digest)
    }

    /// Lists the manifest `digest`, which came as a blob, among the images.
    pub fn record_image(&self, digest: &Digest) -> Result<(), StoreError> {
        self.note(digest);
        let path = self.image_record_path(digest);
        if path.is_file() {
            return Ok(());
        }
        let record = ImageRecord {
            created_ms: now_ms(),
        };
        let mut file = TempFile::create(&self.tmp())?;
        file.write_all(&encode(&record, &path)?)
            .map_err(io_error("write", &path))?;
        // False where another process was first, which is as well.
        file.persist_new(&path).map(drop)
    }

    /// The image whose manifest has this digest.
    pub fn image(&self, digest: &Digest) -> Result<Image, StoreError> {
        let bytes = self.read_blob(digest, DOCUMENT_MAX)?;
        let invalid = |what, digest| {
            move |source| StoreError::ImageInvalid {
                digest,
                what,
                source,
            }
        };
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(invalid("manifest", *digest))?;
        let config_digest = manifest.config.digest;
        let config = self.read_blob(&config_digest, DOCUMENT_MAX)?;
        let config: ImageConfig =
            serde_json::from_slice(&config).map_err(invalid("configuration", config_digest))?;
        let unsupported = |problem| StoreError::ImageUnsupported {
            digest: *digest,
            problem,
        };
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(unsupported(
                "its manifest and its configuration differ in their number of layers",
            ));
        }
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for (mut blob, diff_id) in manifest.layers.into_iter().zip(&config.rootfs.diff_ids) {
            blob.media_type = layer_media_type(&blob.media_type)
                .ok_or_else(|| {
                    unsupported("it has a layer that is no tar stream, plain or in gzip or zstd")
                })?
                .to_owned();
            layers.push(Layer {
                diff_id: *diff_id,
                blob,
                erofs: self.erofs_digest(diff_id)?,
            });
        }
        Ok(Image {
            digest: *digest,
            manifest: bytes,
            config_digest,
            config,
            layers,
        })
    }

    pub(super) fn image_digests(&self) -> Result<Vec<Digest>, StoreError> {
        let dir = self.dir.join("images");
        let mut digests = Vec::new();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            // A root without a store has none.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(digests),
            Err(error) => return Err(io_error("list", &dir)(error)),
        };
        for entry in entries {
            let name = entry.map_err(io_error("list", &dir))?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".json"));
            digests.extend(hex.and_then(|hex| Digest::from_hex(hex).ok()));
        }
        digests.sort();
        Ok(digests)
    }

    /// All images, the newest first.
    pub fn images(&self) -> Result<Vec<ImageEntry>, StoreError> {
        let mut tags: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for entry in self.tags()? {
            tags.entry(entry.digest).or_default().push(entry.tag);
        }
        let mut images = Vec::new();
        for digest in self.image_digests()? {
            let path = self.image_record_path(&digest);
            let record = fs::read(&path).map_err(io_error("read", &path))?;
            let record: ImageRecord = serde_json::from_slice(&record)
                .map_err(|source| StoreError::RecordDamaged { path, source })?;
            let bytes = self.read_blob(&digest, DOCUMENT_MAX)?;
            let manifest: Manifest =
                serde_json::from_slice(&bytes).map_err(|source| StoreError::ImageInvalid {
                    digest,
                    what: "manifest",
                    source,
                })?;
            let layers: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
            images.push(ImageEntry {
                digest,
                tags: tags.remove(&digest).unwrap_or_default(),
                created_ms: record.created_ms,
                size: layers + manifest.config.size + bytes.len() as u64,
            });
        }
        images.sort_by_key(|image| (std::cmp::Reverse(image.created_ms), image.digest));
        Ok(images)
    }
}

fn document<T: Serialize>(value: &T, what: &'static str) -> Result<Vec<u8>, StoreError> {
    canonical_json(value).map_err(|source| StoreError::Document { what, source })
}
