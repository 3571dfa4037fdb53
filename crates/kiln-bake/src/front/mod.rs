//! What is baked: the image of a definition, or a Dockerfile's target. The two front ends know nothing of each other.

pub(crate) mod definition;
pub(crate) mod dockerfile;
