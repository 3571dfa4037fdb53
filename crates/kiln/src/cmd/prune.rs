//! `kiln images prune`: removes from the store what nothing needs.

use kiln_oci::{PruneOptions, Pruned, Store};
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::{args, output, settings, table, upkeep};

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
        store.prune(&options, || upkeep::in_use(&root))?
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

fn text(pruned: &Pruned, dry_run: bool) -> String {
    let Pruned {
        images,
        mounts,
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
    let mounts = match mounts.len() {
        0 => String::new(),
        1 => ", 1 cache of RUN".to_owned(),
        count => format!(", {count} caches of RUN"),
    };
    format!(
        "{would} {images}, {files} files{mounts}, {}\nneeded: {}; kept for the next bakes: {}",
        table::size(*freed),
        table::size(*needed),
        table::size(*cache)
    )
}
