//! What a caller finds out while an image is baked.

use std::fmt;

/// Asked for at the end of a bake: looking through a repository takes as long as looking through a context, and can be done beside it.
/// Each time it gives the same.
pub struct Late<'a, T>(&'a (dyn Fn() -> Option<T> + Sync));

// Whatever T is.
impl<T> Copy for Late<'_, T> {}

impl<T> Clone for Late<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'a, T> Late<'a, T> {
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

impl<T> fmt::Debug for Late<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Late")
    }
}
