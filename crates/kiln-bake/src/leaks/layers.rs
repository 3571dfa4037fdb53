//! What is remembered of a layer that was searched.

use std::collections::HashSet;

use kiln_model::{CanonicalError, Digest, canonical_json};
use kiln_oci::{Layer, Prepared, Store, Tree};

use super::finding::Finding;
use super::rules::RULES_VERSION;
use super::tree::{Searched, in_tree, search};
use crate::error::BakeError;

/// What the layer holds that is secret: as remembered, or searched for now.
pub(crate) fn of_layer(store: &Store, layer: &Layer) -> Result<Vec<Finding>, BakeError> {
    if let Some(bytes) = store.cache_get(&record(&layer.diff_id)?)
        && let Ok(known) = serde_json::from_slice(&bytes)
    {
        return Ok(known);
    }
    let found = in_tree(&store.layer_tree(layer)?)?;
    remember(store, &layer.diff_id, &found)?;
    Ok(found)
}

/// Stores what a step made, and searches it while it is at hand, but for the contents that are `clean`. Answers which others are.
pub(crate) fn add(
    store: &Store,
    tree: &Tree,
    clean: &HashSet<Digest>,
) -> Result<(Layer, HashSet<Digest>), BakeError> {
    add_prepared(store, tree, &Prepared::default(), clean)
}

/// As `add`, with what was compressed before.
pub(crate) fn add_prepared(
    store: &Store,
    tree: &Tree,
    prepared: &Prepared,
    clean: &HashSet<Digest>,
) -> Result<(Layer, HashSet<Digest>), BakeError> {
    let (layer, searched) = std::thread::scope(|scope| {
        let searching = scope.spawn(|| search(tree, clean));
        let layer = store.add_prepared_layer(tree, prepared);
        let searched = searching
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (layer, searched)
    });
    // What can't be read is told by whoever wanted all of it.
    let layer = layer?;
    let Searched { findings, clean } = searched?;
    remember(store, &layer.diff_id, &findings)?;
    Ok((layer, clean))
}

pub(crate) fn remember(
    store: &Store,
    diff_id: &Digest,
    found: &[Finding],
) -> Result<(), BakeError> {
    store.cache_put(&record(diff_id)?, &canonical_json(&found)?)?;
    Ok(())
}

fn record(diff_id: &Digest) -> Result<Digest, CanonicalError> {
    canonical_json(&("leaks", RULES_VERSION, diff_id)).map(|json| Digest::of(&json))
}
