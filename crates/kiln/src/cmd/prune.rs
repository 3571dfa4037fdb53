//! `kiln images prune`: removes from the store what nothing needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use kiln_model::Digest;
use kiln_oci::{PruneOptions, Pruned, Store};
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::{args, output, settings, table};

#[derive(Serialize)]
struct Answer {
    dry_run: bool,
    #[serde(flatten)]
    pruned: Pruned,
}

pub(crate) fn run(args: args::Prune) -> Result<Exit, Failure> {
    let args::Prune {
        keep_storage,
        older_than,
        dry_run,
        root,
        json,
    } = args;
    let root = settings::root(root)?;
    // A root that kiln never used is no error, and pruning must not make it one.
    let pruned = if root.join("store").is_dir() {
        let store = Store::open(&root)?;
        let options = PruneOptions {
            keep_storage,
            older_than,
            dry_run,
        };
        store.prune(&options, || in_use(&root))?
    } else {
        Pruned::default()
    };
    if json.json {
        output::json(&Answer { dry_run, pruned })?;
    } else {
        output::line(&text(&pruned, dry_run))?;
    }
    Ok(Exit::Done)
}

/// What is journalled, and what is mounted at this moment.
fn in_use(root: &Path) -> Result<BTreeSet<Digest>, Failure> {
    let mut in_use = kiln_daemon::images_in_use(root)?;
    let folder = root.join("run/layers");
    let failed = |source| Failure::Root {
        path: folder.clone(),
        source,
    };
    let mounted = match fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(in_use),
        mounted => mounted.map_err(failed)?,
    };
    for entry in mounted {
        let name = entry.map_err(failed)?.file_name();
        in_use.extend(name.to_str().and_then(|hex| Digest::from_hex(hex).ok()));
    }
    Ok(in_use)
}

fn text(pruned: &Pruned, dry_run: bool) -> String {
    let Pruned {
        images,
        files,
        freed,
        needed,
        cache,
    } = pruned;
    let would = if dry_run { "would remove" } else { "removed" };
    let images = match images.len() {
        1 => "1 image".to_owned(),
        count => format!("{count} images"),
    };
    format!(
        "{would} {images}, {files} files, {}\nneeded: {}; kept for the next bakes: {}",
        table::size(*freed),
        table::size(*needed),
        table::size(*cache)
    )
}
