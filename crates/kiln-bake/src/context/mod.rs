//! The caller's folders: their listings, what their files hold, and no way out of them.

pub(crate) mod beneath;
pub(crate) mod listing;
pub(crate) mod stat_cache;
