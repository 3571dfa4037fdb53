//! The image that a command line names.

use kiln_model::Digest;
use kiln_oci::{Store, StoreError};

/// A tag, a digest, the first digits of one, or the name of an image alone: then its newest tag.
pub(crate) fn image(store: &Store, reference: &str) -> Result<Digest, StoreError> {
    let unknown = match store.resolve(reference) {
        Err(error @ StoreError::UnknownReference { .. }) => error,
        found => return found,
    };
    let tags = store.tags()?.into_iter();
    let of_name = tags.filter(|entry| {
        let name = entry.tag.rsplit_once(':').map(|(name, _)| name);
        name == Some(reference)
    });
    let newest = of_name.max_by_key(|entry| entry.created_ms);
    newest.map(|entry| entry.digest).ok_or(unknown)
}
