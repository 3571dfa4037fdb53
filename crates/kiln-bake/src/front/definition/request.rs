//! What a definition's image is baked of.

use std::path::Path;

use kiln_model::{ImageSpec, Timestamp};

use crate::commit::CommitInfo;
use crate::context::listing::Listings;
use crate::debian::lock::Lock;
use crate::deferred::Deferred;

pub struct BakeRequest<'a> {
    pub image: &'a ImageSpec,
    /// The definition's folder.
    pub context: &'a Path,
    /// `None`: there is no lock yet.
    pub lock: Option<&'a Lock>,
    /// For what is made on the way; on the store's file system.
    pub work: &'a Path,
    pub commit: Deferred<'a, CommitInfo>,
    /// Of the context's folders, with whoever looks through them beside the bake.
    pub listings: &'a Listings,
    pub now: Timestamp,
    /// Every step is carried out, also one that the cache has.
    pub no_cache: bool,
    /// Seconds that the clock of the steps' programs is moved by, to find out what depends on it.
    pub move_clock: Option<i32>,
}
