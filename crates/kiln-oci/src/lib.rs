//! OCI formats, the content store, and the writers of a layer's two forms: tar for other people's tools,
//! EROFS for the kernel.
//!
//! Bake and engine share one store, so that nothing is copied or pulled between them. A layer is described
//! once, as a [`layer::Tree`]; the same tree gives the tar blob that the image's digest is made of and the
//! EROFS file that instances mount, and either form can be made again from the other's source.

#![warn(clippy::let_underscore_must_use)]
#![allow(clippy::disallowed_methods)] // a shell crate: tags and temporary files carry the wall clock

mod blob_file;
mod compression;
mod content;
mod difference;
pub mod erofs;
mod export;
mod frames;
mod hashing;
pub mod image;
mod import;
mod known_file;
pub mod layer;
mod layer_error;
mod merge;
mod name;
mod store;
pub mod tar;
mod unchanged;
mod upper;

pub use blob_file::BlobFile;
pub use content::{Content, Reader as ContentReader};
pub use export::{ExportError, Output, OutputError};
pub use image::{Descriptor, History, Image, ImageConfig, Layer, Manifest, RootFs, RunConfig};
pub use import::{
    ArchiveReference, BlobKind, BlobSource, DOCUMENT_MAX, ImportError, ImportRequest, ImportRoot,
    unpacked_max,
};
pub use known_file::{KnownFile, Stamp};
pub use layer::{Entry, Kind, LayerError, Tree};
pub use name::{RegistryName, normal_name, same_name};
pub use store::{
    Blob, BlobWriter, ImageEntry, Prepared, PruneOptions, Pruned, PrunedMount, Referrer, Store,
    StoreError, TagEntry, compressor, digests_in,
};
