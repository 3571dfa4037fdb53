//! The image that a command line names.

use std::collections::BTreeMap;

use kiln_model::Digest;
use kiln_oci::{Store, StoreError, TagEntry};

/// A tag, a digest, the first digits of one, or the name of an image alone: then its newest tag.
pub(crate) fn image(store: &Store, reference: &str) -> Result<Digest, StoreError> {
    match store.resolve(reference) {
        Err(unknown @ StoreError::UnknownReference { .. }) => newest(store, reference)?
            .map(|entry| entry.digest)
            .ok_or(unknown),
        found => found,
    }
}

/// What names of bases mean, with the newest tag in place of an image's name alone.
pub(crate) fn bases(
    store: &Store,
    said: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, StoreError> {
    let mut bases = said.clone();
    for reference in bases.values_mut() {
        if store.resolve(reference).is_err()
            && let Some(entry) = newest(store, reference)?
        {
            *reference = entry.tag;
        }
    }
    Ok(bases)
}

fn newest(store: &Store, image: &str) -> Result<Option<TagEntry>, StoreError> {
    let tags = store.tags()?.into_iter();
    let of_name = tags.filter(|entry| {
        let name = entry.tag.rsplit_once(':').map(|(name, _)| name);
        name == Some(image)
    });
    Ok(of_name.max_by_key(|entry| entry.created_ms))
}
