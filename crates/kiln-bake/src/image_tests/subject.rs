use std::path::Path;

use kiln_model::Digest;
use kiln_oci::{ImageConfig, Layer, Store};

/// Of what a test's programs say, the rest is forgotten: a log, and what is compared, are read by people.
pub(super) const SAID_MAX: usize = 1 << 20;
/// What is tested.
pub(crate) struct Subject<'a> {
    pub(crate) store: &'a Store,
    /// For what is made on the way, and for the log.
    pub(crate) work: &'a Path,
    pub(crate) name: &'a str,
    pub(crate) digest: Digest,
    pub(crate) config: &'a ImageConfig,
    pub(crate) layers: &'a [Layer],
}
