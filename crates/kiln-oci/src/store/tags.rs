//! Tags, and from what a person writes to an image.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_model::Digest;
use serde::{Deserialize, Serialize};

use super::Store;
use super::error::{StoreError, io_error};
use super::temp::TempFile;

/// Fewer digits of a digest than this are more likely a mistake than a reference.
const PREFIX_MIN: usize = 4;

/// A tag and the image that it was given to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagEntry {
    pub tag: String,
    pub digest: Digest,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// When it was taken away, in milliseconds since 1970. The record stays: a tag is given once, and never to another image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_ms: Option<u64>,
}

impl Store {
    /// Gives `tag` to `image`, whose manifest must be in the store. A tag is given once: again for the same
    /// image changes nothing, for another is [`StoreError::TagTaken`].
    pub fn tag(&self, tag: &str, image: &Digest) -> Result<(), StoreError> {
        let path = self.tag_path(tag)?;
        if !self.has(image) {
            return Err(StoreError::BlobMissing { digest: *image });
        }
        let entry = TagEntry {
            tag: tag.to_owned(),
            digest: *image,
            created_ms: now_ms(),
            removed_ms: None,
        };
        let bytes = encode(&entry, &path)?;
        loop {
            if let Some(existing) = self.read_tag(&path)? {
                if existing.digest != *image {
                    return Err(StoreError::TagTaken {
                        tag: tag.to_owned(),
                        existing: existing.digest,
                    });
                }
                if existing.removed_ms.is_some() {
                    let mut file = TempFile::create(&self.tmp())?;
                    file.write_all(&bytes).map_err(io_error("write", &path))?;
                    file.persist(&path)?;
                }
                return Ok(());
            }
            let mut file = TempFile::create(&self.tmp())?;
            file.write_all(&bytes).map_err(io_error("write", &path))?;
            // False where another process was first: look at what it gave.
            if file.persist_new(&path)? {
                return Ok(());
            }
        }
    }

    /// Takes a tag away; answers which image it named. The image stays until it is pruned, and longer where something needs it.
    pub fn remove_tag(&self, tag: &str) -> Result<Digest, StoreError> {
        let unknown = || StoreError::UnknownReference {
            reference: tag.to_owned(),
        };
        let path = self.tag_path(tag)?;
        let entry = self.read_tag(&path)?.filter(|tag| tag.removed_ms.is_none());
        let mut entry = entry.ok_or_else(unknown)?;
        entry.removed_ms = Some(now_ms());
        let mut file = TempFile::create(&self.tmp())?;
        file.write_all(&encode(&entry, &path)?)
            .map_err(io_error("write", &path))?;
        file.persist(&path)?;
        Ok(entry.digest)
    }

    /// All tags, sorted by name.
    pub fn tags(&self) -> Result<Vec<TagEntry>, StoreError> {
        let dir = self.dir.join("tags");
        let mut tags = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let path = entry.map_err(io_error("list", &dir))?.path();
            tags.extend(self.read_tag(&path)?);
        }
        tags.retain(|tag: &TagEntry| tag.removed_ms.is_none());
        tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        Ok(tags)
    }

    /// The image that `reference` names: a tag, a digest, or the first digits of one (four at least, with or
    /// without `sha256:`) that no other image shares.
    pub fn resolve(&self, reference: &str) -> Result<Digest, StoreError> {
        let unknown = || StoreError::UnknownReference {
            reference: reference.to_owned(),
        };
        if let Ok(path) = self.tag_path(reference)
            && let Some(entry) = self.read_tag(&path)?
            && entry.removed_ms.is_none()
        {
            return Ok(entry.digest);
        }
        if let Ok(digest) = reference.parse::<Digest>() {
            return if self.has(&digest) {
                Ok(digest)
            } else {
                Err(unknown())
            };
        }
        let prefix = reference.strip_prefix("sha256:").unwrap_or(reference);
        let is_hex = prefix
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if prefix.len() < PREFIX_MIN || !is_hex {
            return Err(unknown());
        }
        let mut matches: Vec<Digest> = self
            .image_digests()?
            .into_iter()
            .filter(|digest| digest.hex().starts_with(prefix))
            .collect();
        match (matches.pop(), matches.is_empty()) {
            (None, _) => Err(unknown()),
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                matches.push(last);
                Err(StoreError::AmbiguousReference {
                    reference: reference.to_owned(),
                    matches,
                })
            }
        }
    }

    fn read_tag(&self, path: &std::path::Path) -> Result<Option<TagEntry>, StoreError> {
        match fs::read(path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(entry) => Ok(Some(entry)),
                Err(source) => Err(StoreError::RecordDamaged {
                    path: path.to_path_buf(),
                    source,
                }),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", path)(error)),
        }
    }

    /// A tag's file: its name, with `%` for the `/` that a file name cannot have.
    fn tag_path(&self, tag: &str) -> Result<PathBuf, StoreError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+:/".contains(&byte);
        let starts_well = tag
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        // What reads as a digest must never be a tag.
        let is_digest = tag.starts_with("sha256:");
        if !starts_well || tag.len() > 200 || !tag.bytes().all(allowed) || is_digest {
            return Err(StoreError::TagInvalid {
                tag: tag.to_owned(),
            });
        }
        Ok(self.dir.join("tags").join(tag.replace('/', "%")))
    }
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.as_millis() as u64)
}

pub(super) fn encode<T: Serialize>(
    record: &T,
    path: &std::path::Path,
) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|source| StoreError::RecordDamaged {
        path: path.to_path_buf(),
        source,
    })
}
