//! `kiln sbom`: what is in an image, and where it came from, as the documents that its bake attached.

use std::io::Write;

use kiln_oci::Store;

use crate::documents::{self, Kind};
use crate::failure::{Exit, Failure};
use crate::{args, named, settings};

pub(crate) fn run(args: args::Sbom) -> Result<Exit, Failure> {
    let root = settings::root(args.root)?;
    let store = Store::open_existing(&root)?;
    let digest = named::image(&store, &args.image)?;
    let kind = if args.provenance {
        Kind::Provenance
    } else {
        Kind::Sbom
    };
    let document = documents::newest(&store, &digest, kind, &args.image)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&document.bytes)
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(Failure::Output)?;
    Ok(Exit::Done)
}
