//! What steps of both front ends are made with: a key, a folder, a container, limits, and a lock for each.

pub(crate) mod clock;
pub(crate) mod container;
pub(crate) mod key;
pub(crate) mod limits;
pub(crate) mod lock;
pub(crate) mod network_failure;
pub(crate) mod prefetch;
pub(crate) mod scratch;
