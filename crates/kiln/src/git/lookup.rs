//! A repository is looked through while an image is baked: both look at every file of a context.

use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::thread::Scope;

use kiln_bake::Listings;

use super::{Commit, GitError};

pub(crate) type LookupResult = Result<Option<Commit>, GitError>;

/// A commit that is found out on a thread of its own; whoever asks for it waits.
pub(crate) struct CommitLookup<'scope> {
    result: LazyLock<LookupResult, Box<dyn FnOnce() -> LookupResult + Send + 'scope>>,
    /// Of the folders that both look through.
    listings: Listings,
}

impl<'scope> CommitLookup<'scope> {
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        find: impl FnOnce(&Listings) -> LookupResult + Send + 'scope,
    ) -> Self {
        let listings = Listings::default();
        listings.share();
        let shared = listings.clone();
        let thread = scope.spawn(move || {
            let found = find(&shared);
            shared.end_sharing();
            found
        });
        Self {
            result: LazyLock::new(Box::new(move || {
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
        self.result.as_ref().ok()?.as_ref()
    }

    /// As `found`, with a warning where the repository can't be read.
    pub(crate) fn told(&self, so: &str, warn: impl FnOnce(&str)) -> Option<&Commit> {
        if let Err(error) = &*self.result {
            let cause = std::error::Error::source(error)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            warn(&format!(
                "the Git repository can't be read, {so}: {error}{cause}"
            ));
        }
        self.found()
    }
}
