//! What is said about an image without being part of it: manifests that name it as their subject (OCI image specification 1.1,
//! "Image Manifest", `subject`). The image's digest does not know of them.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use kiln_model::{Digest, canonical_json};
use serde::{Deserialize, Serialize};

use super::error::{StoreError, io_error};
use super::tags::{encode, now_ms};
use super::temp::{TempFile, sync_parent};
use super::{DOCUMENT_MAX, Store};
use crate::image::{Descriptor, MEDIA_MANIFEST};

/// The configuration of a manifest that has none (OCI image specification 1.1, "Guidance for an Empty Descriptor").
const MEDIA_EMPTY: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";
/// The SBOM of an image with thousands of packages has some megabytes.
const CONTENT_MAX: u64 = 256 << 20;

/// A manifest with a subject.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Artifact {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    subject: Descriptor,
}

#[derive(Serialize, Deserialize)]
struct Record {
    artifact_type: String,
    created_ms: u64,
}

/// Something that is said about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Referrer {
    /// Of its manifest.
    pub digest: Digest,
    /// The media type of what it says.
    pub artifact_type: String,
    /// When it came, in milliseconds since 1970.
    pub created_ms: u64,
}

impl Store {
    pub(super) fn referrers_of(&self, subject: &Digest) -> PathBuf {
        self.dir.join("referrers").join(subject.hex())
    }

    /// Attaches a document of the media type `kind` to the image `subject`. The same again changes nothing.
    pub fn attach(
        &self,
        subject: &Digest,
        kind: &str,
        document: &[u8],
    ) -> Result<Digest, StoreError> {
        let content = self.put_bytes(document)?;
        let empty = self.put_bytes(EMPTY)?;
        let descriptor = |media_type: &str, digest, size| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: BTreeMap::new(),
        };
        let artifact = Artifact {
            schema_version: 2,
            media_type: MEDIA_MANIFEST.to_owned(),
            artifact_type: kind.to_owned(),
            config: descriptor(MEDIA_EMPTY, empty.digest, empty.size),
            layers: vec![descriptor(kind, content.digest, content.size)],
            subject: descriptor(MEDIA_MANIFEST, *subject, self.blob_size(subject)?),
        };
        let bytes = canonical_json(&artifact).map_err(|source| StoreError::Document {
            what: "referrer",
            source,
        })?;
        let digest = self.put_bytes(&bytes)?.digest;
        let folder = self.referrers_of(subject);
        let path = folder.join(format!("{}.json", digest.hex()));
        if path.is_file() {
            return Ok(digest);
        }
        if !folder.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(io_error("create", &folder))?;
            sync_parent(&folder)?;
        }
        let record = Record {
            artifact_type: kind.to_owned(),
            created_ms: now_ms(),
        };
        let mut file = TempFile::create(&self.tmp())?;
        file.write_all(&encode(&record, &path)?)
            .map_err(io_error("write", &path))?;
        // False where another process was first, which is as well.
        file.persist_new(&path)?;
        Ok(digest)
    }

    /// Everything that is said about the image, the oldest first.
    pub fn referrers(&self, subject: &Digest) -> Result<Vec<Referrer>, StoreError> {
        let folder = self.referrers_of(subject);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("list", &folder)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(io_error("list", &folder))?.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            let Some(digest) = name.and_then(|name| Digest::from_hex(name).ok()) else {
                continue;
            };
            let bytes = fs::read(&path).map_err(io_error("read", &path))?;
            let record: Record = serde_json::from_slice(&bytes)
                .map_err(|source| StoreError::RecordDamaged { path, source })?;
            found.push(Referrer {
                digest,
                artifact_type: record.artifact_type,
                created_ms: record.created_ms,
            });
        }
        found.sort_by_key(|referrer| (referrer.created_ms, referrer.digest));
        Ok(found)
    }

    /// The document of a referrer.
    pub fn referrer_document(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let bytes = self.read_blob(digest, DOCUMENT_MAX)?;
        let artifact: Artifact =
            serde_json::from_slice(&bytes).map_err(|source| StoreError::ImageInvalid {
                digest: *digest,
                what: "referrer",
                source,
            })?;
        match artifact.layers.as_slice() {
            [content] => self.read_blob(&content.digest, CONTENT_MAX),
            _ => Err(StoreError::ImageUnsupported {
                digest: *digest,
                problem: "a referrer that is not one document",
            }),
        }
    }
}
