//! What a caller finds out while an image is baked.

use std::fmt;

/// Asked for at the end of a bake: looking through a repository takes as long as looking through a context, and can be done beside it.
/// Each time it gives the same.
pub struct Deferred<'a, T>(&'a (dyn Fn() -> Option<T> + Sync));

// Whatever T is.
impl<T> Copy for Deferred<'_, T> {}

impl<T> Clone for Deferred<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'a, T> Deferred<'a, T> {
    pub fn new(ask: &'a (dyn Fn() -> Option<T> + Sync)) -> Self {
        Self(ask)
    }

    /// There is nothing to find out.
    pub fn none() -> Self {
        Self(&|| None)
    }

    pub(crate) fn get(&self) -> Option<T> {
        (self.0)()
    }
}

impl<T> fmt::Debug for Deferred<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deferred")
    }
}
