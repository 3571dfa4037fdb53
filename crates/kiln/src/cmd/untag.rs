//! `kiln images rm`: takes tags away.

use kiln_model::Digest;
use kiln_oci::Store;
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::{args, output, settings};

#[derive(Serialize)]
struct Answer {
    removed: Vec<Removed>,
}

#[derive(Serialize)]
struct Removed {
    tag: String,
    digest: Digest,
}

pub(crate) fn run(args: args::RemoveTags) -> Result<Exit, Failure> {
    let args::RemoveTags { tags, root, json } = args;
    let root = settings::root(root)?;
    let store = Store::open_existing(&root)?.without_session();
    let mut removed = Vec::new();
    for tag in tags {
        let digest = store.remove_tag(&tag)?;
        if !json.json {
            output::line(&format!("{tag}: taken away from {}", digest.short()))?;
        }
        removed.push(Removed { tag, digest });
    }
    if json.json {
        output::json(&Answer { removed })?;
    }
    Ok(Exit::Done)
}
