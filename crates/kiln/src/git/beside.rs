//! A repository is looked through while an image is baked: both look at every file of a context.

use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::thread::Scope;

use kiln_bake::Listings;

use super::{Commit, GitError};
use crate::output;

pub(crate) type Looked = Result<Option<Commit>, GitError>;

/// A commit that is found out on a thread of its own; whoever asks for it waits.
pub(crate) struct Beside<'scope> {
    looked: LazyLock<Looked, Box<dyn FnOnce() -> Looked + Send + 'scope>>,
    /// Of the folders that both look through.
    listings: Listings,
}

impl<'scope> Beside<'scope> {
    pub(crate) fn look(
        scope: &'scope Scope<'scope, '_>,
        look: impl FnOnce(&Listings) -> Looked + Send + 'scope,
    ) -> Self {
        let listings = Listings::default();
        listings.share();
        let shared = listings.clone();
        let thread = scope.spawn(move || {
            let looked = look(&shared);
            shared.end_sharing();
            looked
        });
        Self {
            looked: LazyLock::new(Box::new(move || {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            })),
            listings,
        }
    }

    pub(crate) fn listings(&self) -> &Listings {
        &self.listings
    }

    /// `None` also where the repository can't be read, of which nothing is said while a bake says what it does.
    pub(crate) fn found(&self) -> Option<&Commit> {
        self.looked.as_ref().ok()?.as_ref()
    }

    /// As `found`, with a warning where the repository can't be read.
    pub(crate) fn told(&self, so: &str) -> Option<&Commit> {
        if let Err(error) = &*self.looked {
            let cause = std::error::Error::source(error)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            output::warning(&format!(
                "the Git repository can't be read, {so}: {error}{cause}"
            ));
        }
        self.found()
    }
}
