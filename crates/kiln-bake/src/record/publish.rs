//! What an image gets when it is done: its SBOM, and the tag of a definition.

use std::path::Path;

use kiln_engine::Overlay;
use kiln_model::{Digest, canonical_json};
use kiln_oci::Store;

use crate::commit::CommitInfo;
use crate::error::BakeError;
use crate::record::sbom;
use crate::step::scratch::Scratch;

/// Attaches the image's SBOM, unless an earlier bake did.
pub(crate) fn describe(store: &Store, work: &Path, digest: &Digest) -> Result<(), BakeError> {
    // Another version of kiln may say more.
    let key = Digest::of(&canonical_json(&(
        "sbom",
        env!("CARGO_PKG_VERSION"),
        digest,
    ))?);
    let is_described = |attached: Vec<kiln_oci::Referrer>| {
        let is_sbom = |one: &kiln_oci::Referrer| one.artifact_type == sbom::MEDIA_SPDX;
        attached.iter().any(is_sbom)
    };
    if store.cache_get(&key).is_some() && is_described(store.referrers(digest)?) {
        return Ok(());
    }
    let image = store.image(digest)?;
    let scratch = Scratch::new(work)?;
    let view = Overlay::mount(&image.erofs_paths(store)?, scratch.path())
        .map_err(|error| BakeError::View(std::io::Error::other(error)))?;
    let created = image.config.created.as_deref();
    let document = sbom::document(view.path(), digest, created)?.map_err(BakeError::View)?;
    store.attach(digest, sbom::MEDIA_SPDX, &document)?;
    store.cache_put(&key, b"")?;
    Ok(())
}

/// `NAME:VERSION-COMMIT`, or for what no commit has `NAME:VERSION-dirty.DIGEST`.
fn tag(name: &str, version: &str, commit: Option<&CommitInfo>, digest: &Digest) -> String {
    match commit {
        Some(CommitInfo {
            sha, dirty: false, ..
        }) => {
            format!("{name}:{version}-{}", &sha[..sha.len().min(12)])
        }
        _ => format!("{name}:{version}-dirty.{}", digest.short()),
    }
}

/// Gives the image of a definition its tag.
pub(crate) fn give_tag(
    store: &Store,
    name: &str,
    version: &str,
    commit: Option<&CommitInfo>,
    digest: &Digest,
) -> Result<String, BakeError> {
    let tag = tag(name, version, commit, digest);
    store.tag(&tag, digest).or_else(|error| match error {
        // The same version of the same commit with other inputs (an updated lock): the first keeps the tag.
        kiln_oci::StoreError::TagTaken { .. } => Ok(()),
        error => Err(error),
    })?;
    match store.resolve(&tag) {
        Ok(there) if there == *digest => Ok(tag),
        _ => {
            let own = format!("{name}:{version}-{}", digest.short());
            store.tag(&own, digest)?;
            Ok(own)
        }
    }
}
