//! What is recorded of an image, and what is read from records: its SBOM, where it came from, why steps were carried out, how two images
//! differ.

pub(crate) mod diff;
pub(crate) mod explain;
pub(crate) mod provenance;
pub(crate) mod publish;
pub(crate) mod sbom;
pub(crate) mod verify;
