//! What bakes said of an image and attached to it. Anybody may attach more of the same type, so only what kiln wrote counts.

use kiln_bake::{MEDIA_IN_TOTO, MEDIA_SPDX, is_own_provenance, is_own_sbom};
use kiln_model::Digest;
use kiln_oci::Store;
use serde_json::Value;

use crate::failure::Failure;

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Sbom,
    Provenance,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sbom => "SBOM",
            Self::Provenance => "provenance",
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Sbom => MEDIA_SPDX,
            Self::Provenance => MEDIA_IN_TOTO,
        }
    }

    fn is_own(self, value: &Value) -> bool {
        match self {
            Self::Sbom => is_own_sbom(value),
            Self::Provenance => is_own_provenance(value),
        }
    }
}

pub(crate) struct Document {
    /// As it was attached.
    pub(crate) bytes: Vec<u8>,
    pub(crate) value: Value,
}

/// The newest first: another version of kiln may have said more of the same image, and another commit may bake to it.
pub(crate) fn of(store: &Store, image: &Digest, kind: Kind) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    for referrer in store.referrers(image)?.into_iter().rev() {
        if referrer.artifact_type != kind.media_type() {
            continue;
        }
        let bytes = store.referrer_document(&referrer.digest)?;
        // The store has checked the bytes: one that is no JSON was attached so, and not by kiln.
        if let Ok(value) = serde_json::from_slice(&bytes)
            && kind.is_own(&value)
        {
            documents.push(Document { bytes, value });
        }
    }
    Ok(documents)
}

/// The newest, which must be there.
pub(crate) fn newest(
    store: &Store,
    digest: &Digest,
    kind: Kind,
    image: &str,
) -> Result<Document, Failure> {
    let newest = of(store, digest, kind)?.into_iter().next();
    newest.ok_or_else(|| missing(image, kind))
}

pub(crate) fn missing(image: &str, kind: Kind) -> Failure {
    Failure::NoDocument {
        image: image.to_owned(),
        what: kind.name(),
    }
}
