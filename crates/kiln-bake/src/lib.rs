//! Bakes a definition or a Dockerfile into an image: a chain of steps, each cached by the digest of its inputs.
//!
//! The front ends ([`front`]) say which steps there are. Steps are made of Debian packages ([`debian`]), of files ([`context`]) and of
//! commands in sealed containers ([`step`]). Before an image gets its tag it is searched for secrets ([`leaks`]) and tested
//! ([`image_tests`]); then its origin and its content are recorded ([`record`]).

#![warn(clippy::too_many_lines)] // of more than 120 (clippy.toml) a function is several
#![allow(clippy::disallowed_methods)] // the edge: step times are measured, and expiry is compared with the wall clock

mod arch;
mod commit;
mod context;
mod debian;
mod deferred;
mod download;
mod error;
mod front;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod granted;
mod image_tests;
mod in_root;
mod leaks;
mod progress;
mod record;
mod step;

pub use arch::arch;
pub use commit::{Checkout, CommitInfo};
pub use context::listing::{FileStat, Listing, Listings};
pub use debian::lock::{Lock, LockError};
pub use debian::lock_update::{LockRequest, Locked, PackageChange, Update, lock};
pub use deferred::Deferred;
pub use error::BakeError;
pub use front::definition::bake::{Baked, bake};
pub use front::definition::request::BakeRequest;
pub use front::dockerfile::{
    BakedDockerfile, ContextFolder, ContextRepository, DockerfileRequest, OtherClock, Tagging,
    bake_dockerfile, images_named, known_base,
};
pub use granted::Granted;
pub use kiln_git::{SshAgent, SshKeys};
pub use kiln_registry::Registries;
pub use progress::{BakeProgress, StepReport};
pub use record::diff::{Change, Changed, FileChange, ImageDiff, LayerSize, diff};
pub use record::provenance::{MEDIA_IN_TOTO, ResolvedBase, is_own_provenance};
pub use record::sbom::{MEDIA_SPDX, is_own_sbom};
pub use record::verify::{Circumstances, Difference, compare, static_programs};
