//! `kiln images`: what is in the store.

use std::path::Path;

use kiln_model::Timestamp;
use kiln_oci::{ImageEntry, Store};
use serde::Serialize;

use crate::args;
use crate::failure::{Exit, Failure};
use crate::{output, settings, table};

#[derive(Serialize)]
struct Answer {
    images: Vec<Image>,
}

#[derive(Serialize)]
struct Image {
    digest: kiln_model::Digest,
    tags: Vec<String>,
    /// RFC 3339: when it came into this store.
    created_at: String,
    /// Bytes of its compressed layers and documents.
    size: u64,
}

pub(crate) fn run(args: args::Images) -> Result<Exit, Failure> {
    match args.command {
        Some(args::ImagesCommand::Prune(args)) => return super::prune::run(args),
        Some(args::ImagesCommand::Rm(args)) => return super::untag::run(args),
        None => {}
    }
    let root = settings::root(args.root)?;
    // A root that kiln never used is no error, and looking at it must not make it one.
    let images = if root.join("store").is_dir() {
        list(&root)?
    } else {
        Vec::new()
    };
    if args.json.json {
        output::json(&Answer { images })?;
    } else if images.is_empty() {
        output::line("no image: `kiln bake` makes some")?;
    } else {
        let mut rows = vec![
            ["IMAGE", "DIGEST", "CREATED", "SIZE"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for image in &images {
            rows.push(vec![
                if image.tags.is_empty() {
                    "-".to_owned()
                } else {
                    image.tags.join(", ")
                },
                image.digest.short(),
                image.created_at.clone(),
                table::size(image.size),
            ]);
        }
        output::line(&table::columns(&rows))?;
    }
    Ok(Exit::Done)
}

/// Newest first.
fn list(root: &Path) -> Result<Vec<Image>, Failure> {
    let mut entries = Store::open(root)?.images()?;
    entries.sort_by(|a, b| {
        b.created_ms
            .cmp(&a.created_ms)
            .then_with(|| a.digest.cmp(&b.digest))
    });
    Ok(entries
        .into_iter()
        .map(
            |ImageEntry {
                 digest,
                 tags,
                 created_ms,
                 size,
             }| Image {
                digest,
                tags,
                created_at: Timestamp(created_ms).rfc3339(),
                size,
            },
        )
        .collect())
}
