//! Images that others made, brought into the store: from an OCI layout, an archive, or whatever else gives blobs by digest.
//!
//! Nothing is believed that was not checked: each blob against its digest and size, each layer's tar stream against the
//! configuration's diff id, and what a stream unpacks to against a bound. The bytes are kept as they came, so that an image
//! on top of it shares its layers with everybody else's.

mod archive;
mod docker;
mod error;
mod layout;
mod reference;

use std::io::{self, Read, Write};

use kiln_model::Digest;
use serde::Deserialize;

use crate::compression::{layer_media_type, unpacked};
use crate::hashing::HashingWriter;
use crate::image::{
    Descriptor, ImageConfig, Layer, MEDIA_DOCKER_LIST, MEDIA_DOCKER_MANIFEST, MEDIA_INDEX,
    MEDIA_MANIFEST, Manifest,
};
use crate::store::Store;

pub use error::ImportError;
pub use reference::ArchiveReference;

/// As registries bound a manifest.
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// An index of indexes of indexes is somebody's mistake.
const DEPTH_MAX: usize = 4;
/// What anything may unpack to, and how many times its own size a larger one. gzip can't do more than 1032 times; what is
/// more than this is zeros, or made to fill a disk.
const UNPACKED_FREE: u64 = 4 << 30;
const UNPACKED_TIMES: u64 = 200;

/// As many bytes as something of `size` bytes that somebody else packed may unpack to.
pub fn unpacked_max(size: u64) -> u64 {
    UNPACKED_FREE.max(size.saturating_mul(UNPACKED_TIMES))
}

/// Somewhere that gives blobs by digest: what comes is checked by whoever asked.
pub trait BlobSource {
    /// `size` is what was said of it, where something was.
    fn open(
        &self,
        digest: &Digest,
        size: Option<u64>,
        kind: BlobKind,
    ) -> Result<Box<dyn Read + '_>, ImportError>;
}

/// Registries keep manifests somewhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobKind {
    Manifest,
    Blob,
}

/// What is imported, for errors, and for which machine.
#[derive(Clone, Copy, Debug)]
pub struct ImportRequest<'a> {
    /// As the caller wrote it.
    pub place: &'a str,
    /// As Go names it.
    pub arch: &'a str,
}

/// Where an import begins: a manifest, or an index of several.
#[derive(Clone, Copy, Debug)]
pub struct ImportRoot {
    pub digest: Digest,
    /// None where only the digest is known.
    pub size: Option<u64>,
}

/// An index, or as docker calls it, a manifest list.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<IndexEntry>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexEntry {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
}

/// Of any document, what says which kind it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: String,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<Descriptor>,
}

enum Document {
    Index(Vec<u8>),
    Manifest(Vec<u8>),
}

impl Store {
    /// Brings the image at `root` here, for this machine's architecture, and answers its manifest's digest.
    pub fn import(
        &self,
        source: &dyn BlobSource,
        request: ImportRequest<'_>,
        root: ImportRoot,
    ) -> Result<Digest, ImportError> {
        let Chosen { digest, manifest } = self.choose(source, request, root)?;
        let place = || request.place.to_owned();
        let invalid = |what, digest| {
            move |source| ImportError::Document {
                place: place(),
                what,
                digest,
                source,
            }
        };
        let described: Manifest =
            serde_json::from_slice(&manifest).map_err(invalid("manifest", digest))?;
        let config_blob = &described.config;
        let config_bytes = self.document(
            source,
            request,
            &config_blob.digest,
            Some(config_blob.size),
            BlobKind::Blob,
        )?;
        let config: ImageConfig = serde_json::from_slice(&config_bytes)
            .map_err(invalid("configuration", config_blob.digest))?;
        check_platform(&config, request)?;
        if config.rootfs.diff_ids.len() != described.layers.len() {
            return Err(ImportError::Unsupported {
                place: place(),
                problem: "its manifest and its configuration differ in their number of layers"
                    .to_owned(),
            });
        }
        self.put_bytes(&config_bytes)?;
        let of = described.layers.len();
        for (index, (blob, diff_id)) in described
            .layers
            .iter()
            .zip(&config.rootfs.diff_ids)
            .enumerate()
        {
            if layer_media_type(&blob.media_type).is_none() {
                return Err(ImportError::Unsupported {
                    place: place(),
                    problem: format!(
                        "its layer {} of {of} is `{}`, and kiln reads tar streams, plain or in gzip or zstd",
                        index + 1,
                        blob.media_type
                    ),
                });
            }
            self.fetch(source, request, blob)?;
            let layer = Layer {
                diff_id: *diff_id,
                blob: blob.clone(),
                erofs: None,
            };
            self.admit(request, &layer, index + 1, of)?;
        }
        self.put_bytes(&manifest)?;
        self.record_image(&digest)?;
        Ok(digest)
    }

    /// From an index, through others where it has them, to the manifest of this machine's image.
    fn choose(
        &self,
        source: &dyn BlobSource,
        request: ImportRequest<'_>,
        root: ImportRoot,
    ) -> Result<Chosen, ImportError> {
        let ImportRoot {
            mut digest,
            mut size,
        } = root;
        for _ in 0..DEPTH_MAX {
            let bytes = self.document(source, request, &digest, size, BlobKind::Manifest)?;
            match document(request, &digest, bytes)? {
                Document::Manifest(manifest) => return Ok(Chosen { digest, manifest }),
                Document::Index(bytes) => {
                    let index: Index =
                        serde_json::from_slice(&bytes).map_err(|source| ImportError::Document {
                            place: request.place.to_owned(),
                            what: "index",
                            digest,
                            source,
                        })?;
                    let entry = for_platform(&index.manifests, request)?;
                    (digest, size) = (entry.digest, Some(entry.size));
                }
            }
        }
        Err(ImportError::Unsupported {
            place: request.place.to_owned(),
            problem: format!("its indexes name each other, more than {DEPTH_MAX} deep"),
        })
    }

    /// A small blob: the store's own where it has it.
    fn document(
        &self,
        source: &dyn BlobSource,
        request: ImportRequest<'_>,
        digest: &Digest,
        size: Option<u64>,
        kind: BlobKind,
    ) -> Result<Vec<u8>, ImportError> {
        let place = || request.place.to_owned();
        if let Some(size) = size.filter(|size| *size > DOCUMENT_MAX) {
            return Err(ImportError::TooLarge {
                place: place(),
                what: digest.to_string(),
                size,
            });
        }
        let of_its_size = |bytes: Vec<u8>| match size {
            Some(expected) if bytes.len() as u64 != expected => Err(ImportError::Size {
                place: place(),
                digest: *digest,
                expected,
            }),
            _ => Ok(bytes),
        };
        if let Ok(bytes) = self.read_blob(digest, DOCUMENT_MAX) {
            return of_its_size(bytes);
        }
        let from = source.open(digest, size, kind)?;
        let bytes = whole(from, request.place, || digest.to_string())?.map_err(|source| {
            ImportError::Read {
                place: place(),
                digest: *digest,
                source,
            }
        })?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(ImportError::Mismatch {
                place: place(),
                expected: *digest,
                found,
            });
        }
        of_its_size(bytes)
    }

    /// Brings a layer's blob, unless the store has it.
    fn fetch(
        &self,
        source: &dyn BlobSource,
        request: ImportRequest<'_>,
        blob: &Descriptor,
    ) -> Result<(), ImportError> {
        if self.blob_size(&blob.digest).ok() == Some(blob.size) {
            return Ok(());
        }
        let place = || request.place.to_owned();
        let mut from = source
            .open(&blob.digest, Some(blob.size), BlobKind::Blob)?
            .take(blob.size.saturating_add(1));
        let mut writer = self.blob_writer()?;
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0u64;
        loop {
            // The source's failure and the disk's are two errors, so no `io::copy`.
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(ImportError::Read {
                        place: place(),
                        digest: blob.digest,
                        source,
                    });
                }
            };
            size += count as u64;
            writer
                .write_all(&buffer[..count])
                .map_err(|error| self.write_error(error))?;
        }
        if size != blob.size {
            return Err(ImportError::Size {
                place: place(),
                digest: blob.digest,
                expected: blob.size,
            });
        }
        writer
            .commit_as(&blob.digest)?
            .map_err(|found| ImportError::Mismatch {
                place: place(),
                expected: blob.digest,
                found,
            })
    }

    /// Checks that the blob is the layer that the configuration says it is, and makes its EROFS file: what can't be read is told
    /// here, and not when the first instance starts.
    fn admit(
        &self,
        request: ImportRequest<'_>,
        layer: &Layer,
        number: usize,
        of: usize,
    ) -> Result<(), ImportError> {
        let blob = &layer.blob;
        let failed = |source| ImportError::Layer {
            place: request.place.to_owned(),
            number,
            of,
            digest: blob.digest,
            source: Box::new(source),
        };
        let key = format!("layer checked\0{}\0{}", blob.digest, layer.diff_id);
        let key = Digest::of(key.as_bytes());
        if self.cache_get(&key).is_none() {
            let limit = unpacked_max(blob.size);
            let read = |source| ImportError::Unpack {
                place: request.place.to_owned(),
                number,
                of,
                digest: blob.digest,
                source,
            };
            let mut stream = unpacked(self.open_blob(&blob.digest)?)
                .map_err(read)?
                .take(limit + 1);
            let mut out = HashingWriter::new(io::sink());
            let size = io::copy(&mut stream, &mut out).map_err(read)?;
            if size > limit {
                return Err(ImportError::Bomb {
                    place: request.place.to_owned(),
                    number,
                    of,
                    limit,
                    size: blob.size,
                });
            }
            let (_, actual, _) = out.finish();
            if actual != layer.diff_id {
                return Err(failed(crate::store::StoreError::DiffIdWrong {
                    diff_id: layer.diff_id,
                    actual,
                }));
            }
        }
        self.erofs_files(layer).map_err(failed)?;
        self.cache_put(&key, b"")?;
        Ok(())
    }
}

/// A small file to its end: too large a one is told as that, and not as a damaged one.
fn whole(
    from: impl Read,
    place: &str,
    what: impl FnOnce() -> String,
) -> Result<io::Result<Vec<u8>>, ImportError> {
    let mut bytes = Vec::new();
    match from.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > DOCUMENT_MAX => Err(ImportError::TooLarge {
            place: place.to_owned(),
            what: what(),
            size: bytes.len() as u64,
        }),
        Ok(_) => Ok(Ok(bytes)),
        Err(error) => Ok(Err(error)),
    }
}

struct Chosen {
    digest: Digest,
    manifest: Vec<u8>,
}

/// What a document is, by its own word.
fn document(
    request: ImportRequest<'_>,
    digest: &Digest,
    bytes: Vec<u8>,
) -> Result<Document, ImportError> {
    let outline: Outline =
        serde_json::from_slice(&bytes).map_err(|source| ImportError::Document {
            place: request.place.to_owned(),
            what: "manifest or index",
            digest: *digest,
            source,
        })?;
    let unsupported = |problem: String| ImportError::Unsupported {
        place: request.place.to_owned(),
        problem,
    };
    match outline.media_type.as_str() {
        MEDIA_INDEX | MEDIA_DOCKER_LIST => return Ok(Document::Index(bytes)),
        MEDIA_MANIFEST | MEDIA_DOCKER_MANIFEST => {}
        "" if outline.manifests.is_some() => return Ok(Document::Index(bytes)),
        "" if outline.schema_version == Some(1) => {
            return Err(unsupported(
                "it has a manifest of docker's first schema, which was given up in 2019: push it again with a present docker"
                    .to_owned(),
            ));
        }
        "" => {}
        other => {
            return Err(unsupported(format!(
                "`{other}` is not the manifest or the index of an image"
            )));
        }
    }
    match outline.config {
        Some(_) => Ok(Document::Manifest(bytes)),
        None => Err(unsupported(format!(
            "{digest} is not the manifest or the index of an image"
        ))),
    }
}

/// The entry for this machine; what has no platform is taken where it is alone.
fn for_platform<'a>(
    entries: &'a [IndexEntry],
    request: ImportRequest<'_>,
) -> Result<&'a IndexEntry, ImportError> {
    let fits = |entry: &&IndexEntry| {
        entry.platform.as_ref().is_some_and(|platform| {
            let variant = match request.arch {
                "arm64" => ["", "v8"].contains(&platform.variant.as_str()),
                // v2 and the like need more than every amd64 has.
                _ => ["", "v1"].contains(&platform.variant.as_str()),
            };
            platform.os == "linux" && platform.architecture == request.arch && variant
        })
    };
    // An image of a layout's index often says nothing of its platform.
    let unsaid = |entry: &&IndexEntry| entry.platform.is_none();
    let found = entries.iter().find(fits).or_else(|| {
        let mut without = entries.iter().filter(unsaid);
        without.next().filter(|_| without.next().is_none())
    });
    found.ok_or_else(|| ImportError::Platform {
        place: request.place.to_owned(),
        wanted: format!("linux/{}", request.arch),
        known: entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .map(|platform| {
                let Platform {
                    architecture,
                    os,
                    variant,
                } = platform;
                let slash = if variant.is_empty() { "" } else { "/" };
                format!("{os}/{architecture}{slash}{variant}")
            })
            .collect(),
    })
}

fn check_platform(config: &ImageConfig, request: ImportRequest<'_>) -> Result<(), ImportError> {
    let fits = |said: &str, wanted: &str| said.is_empty() || said == wanted;
    if fits(&config.os, "linux") && fits(&config.architecture, request.arch) {
        return Ok(());
    }
    Err(ImportError::Platform {
        place: request.place.to_owned(),
        wanted: format!("linux/{}", request.arch),
        known: vec![format!("{}/{}", config.os, config.architecture)],
    })
}
