//! What `docker save` writes. It has no manifest of OCI's: one is made of its configuration and its layers, as they are.

use std::collections::BTreeMap;
use std::io::Read;

use kiln_model::Digest;
use serde::Deserialize;

use super::archive::{Archive, names};
use super::reference::Wanted;
use super::{ImportError, ImportRequest, check_platform};
use crate::compression::media_type_of;
use crate::image::{Descriptor, ImageConfig, Layer};
use crate::name::same_name;
use crate::store::Store;

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Store {
    pub(super) fn import_docker(
        &self,
        archive: &Archive<'_>,
        request: ImportRequest<'_>,
        wanted: &Wanted,
    ) -> Result<Digest, ImportError> {
        let place = || request.place.to_owned();
        let Some(bytes) = archive.document("manifest.json")? else {
            return Err(archive.is_none("what `docker save` writes", "it has no manifest.json"));
        };
        let saved: Vec<Saved> =
            serde_json::from_slice(&bytes).map_err(|source| ImportError::File {
                place: place(),
                file: "manifest.json".to_owned(),
                source,
            })?;
        let one = find(&saved, request, wanted)?;
        let lacks = |what: &str| ImportError::Missing {
            place: place(),
            what: what.to_owned(),
        };
        let config_bytes = archive
            .document(&one.config)?
            .ok_or_else(|| lacks(&one.config))?;
        check_name(request, &one.config, &Digest::of(&config_bytes))?;
        let config: ImageConfig =
            serde_json::from_slice(&config_bytes).map_err(|source| ImportError::File {
                place: place(),
                file: one.config.clone(),
                source,
            })?;
        check_platform(&config, request)?;
        let layer_names = one.layers.as_deref().unwrap_or_default();
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != layer_names.len() {
            return Err(ImportError::Unsupported {
                place: place(),
                problem: "its manifest.json and its configuration differ in their number of layers"
                    .to_owned(),
            });
        }
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (index, (name, diff_id)) in layer_names.iter().zip(diff_ids).enumerate() {
            let mut start = Vec::new();
            archive
                .file(name)?
                .ok_or_else(|| lacks(name))?
                .take(4)
                .read_to_end(&mut start)
                .map_err(|source| ImportError::Read {
                    place: place(),
                    digest: *diff_id,
                    source,
                })?;
            let file = archive.file(name)?.ok_or_else(|| lacks(name))?;
            let blob = self.put_reader(file)?;
            let layer = Layer {
                diff_id: *diff_id,
                blob: Descriptor {
                    media_type: media_type_of(&start).to_owned(),
                    digest: blob.digest,
                    size: blob.size,
                    annotations: BTreeMap::new(),
                },
                erofs: None,
            };
            self.admit(request, &layer, index + 1, diff_ids.len())?;
            layers.push(layer);
        }
        Ok(self.put_image_as(&config_bytes, &layers)?)
    }
}

/// A name that is a digest has to be that of the content.
fn check_name(request: ImportRequest<'_>, name: &str, found: &Digest) -> Result<(), ImportError> {
    let last = name.rsplit('/').next().unwrap_or(name);
    match Digest::from_hex(last.trim_end_matches(".json")) {
        Ok(expected) if expected != *found => Err(ImportError::Mismatch {
            place: request.place.to_owned(),
            expected,
            found: *found,
        }),
        _ => Ok(()),
    }
}

fn find<'a>(
    saved: &'a [Saved],
    request: ImportRequest<'_>,
    wanted: &Wanted,
) -> Result<&'a Saved, ImportError> {
    let mut tags: BTreeMap<String, usize> = BTreeMap::new();
    for (index, one) in saved.iter().enumerate() {
        for tag in one.repo_tags.iter().flatten() {
            tags.insert(tag.clone(), index);
        }
    }
    let none = || ImportError::NoImage {
        place: request.place.to_owned(),
        wanted: wanted.text(),
        known: names(&tags),
    };
    match wanted {
        Wanted::Only => match saved {
            [one] => Ok(one),
            [] => Err(none()),
            _ => Err(ImportError::Several {
                place: request.place.to_owned(),
                known: names(&tags),
            }),
        },
        Wanted::Tag(tag) => tags
            .iter()
            .find(|(known, _)| same_name(known, tag))
            .and_then(|(_, index)| saved.get(*index))
            .ok_or_else(none),
        // docker's own id of an image is the digest of its configuration.
        Wanted::Digest(digest) => saved
            .iter()
            .find(|one| one.config.contains(&digest.hex()))
            .ok_or_else(none),
    }
}
