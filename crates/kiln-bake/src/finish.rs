//! What layers and a configuration still need to be an image with a name: a command that is there, an SBOM, a tag.

use std::path::{Path, PathBuf};

use kiln_engine::Overlay;
use kiln_model::{Digest, canonical_json};
use kiln_oci::{ImageConfig, Layer, Store};

use crate::commit::CommitInfo;
use crate::error::BakeError;
use crate::request::BakeRequest;
use crate::scratch::Scratch;
use crate::{configure, look, sbom};

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

/// What the image is for is in it: found now rather than when it is started.
pub(crate) fn check_command(
    store: &Store,
    request: &BakeRequest<'_>,
    layers: &[Layer],
    config: &ImageConfig,
) -> Result<(), BakeError> {
    let run = &config.config;
    let Some(command) = run.entrypoint.iter().chain(&run.cmd).next() else {
        return Ok(());
    };
    let scratch = Scratch::new(request.work)?;
    let lowers = store.lowers(layers)?;
    let view = Overlay::mount(&lowers, scratch.path())
        .map_err(|error| BakeError::View(std::io::Error::other(error)))?;
    let path = run
        .env
        .iter()
        .find_map(|pair| pair.strip_prefix("PATH="))
        .unwrap_or(configure::PATH);
    let candidates: Vec<PathBuf> = if command.contains('/') {
        vec![Path::new(&run.working_dir).join(command)]
    } else {
        path.split(':')
            .map(|folder| Path::new(folder).join(command))
            .collect()
    };
    let image = request.image.name.to_string();
    let found = candidates
        .iter()
        .find_map(|path| mode_inside(view.path(), path));
    match found {
        None => Err(BakeError::NoCommand {
            image,
            command: command.clone(),
        }),
        Some(mode) if mode & 0o111 == 0 => Err(BakeError::NotExecutable {
            image,
            command: command.clone(),
        }),
        Some(_) => Ok(()),
    }
}

/// The mode of a file inside `root`, links followed inside it.
fn mode_inside(root: &Path, path: &Path) -> Option<u32> {
    let file = look::open(root, path, rustix::fs::OFlags::PATH).ok()?;
    let there = rustix::fs::fstat(&file).ok()?;
    (rustix::fs::FileType::from_raw_mode(there.st_mode) == rustix::fs::FileType::RegularFile)
        .then_some(there.st_mode)
}
