//! `kiln sbom`: what is in an image, and where it came from, as the documents that its bake attached.

use std::io::Write;

use kiln_bake::{MEDIA_IN_TOTO, MEDIA_SPDX};
use kiln_oci::Store;

use crate::failure::{Exit, Failure};
use crate::{args, settings};

pub(crate) fn run(args: args::Sbom) -> Result<Exit, Failure> {
    let root = settings::root(args.root)?;
    let store = Store::open_existing(&root)?;
    let digest = store.resolve(&args.image)?;
    let kind = if args.provenance {
        MEDIA_IN_TOTO
    } else {
        MEDIA_SPDX
    };
    // The newest: another version of kiln may have said more of the same image.
    let referrer = store
        .referrers(&digest)?
        .into_iter()
        .rfind(|referrer| referrer.artifact_type == kind)
        .ok_or_else(|| Failure::NoDocument {
            image: args.image.clone(),
            what: if args.provenance {
                "provenance"
            } else {
                "SBOM"
            },
        })?;
    let document = store.referrer_document(&referrer.digest)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&document)
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(Failure::Output)?;
    Ok(Exit::Done)
}
