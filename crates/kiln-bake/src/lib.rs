//! Bakes a definition into an image: a chain of steps, each cached by the digest of its inputs.
//!
//! [`graph`] says which steps there are and what their keys are made of, and is pure; [`carry_out`] carries them out for [`bake`]: the Debian base
//! from a verified archive ([`archive`], [`install`]), users, copied files, and commands in sealed containers. The other front end,
//! [`dockerfile`], makes other steps over the same chain.

#![allow(clippy::disallowed_methods)] // the edge: step times are measured, and expiry is compared with the wall clock

mod ahead;
mod apt_sources;
mod arch;
mod archive;
mod bake;
mod beneath;
mod carry_out;
mod changelog;
mod clock;
mod command_check;
mod commit;
mod configure;
mod container;
mod control;
mod copy;
mod database;
mod deb;
mod debian;
mod diff;
mod dockerfile;
mod error;
mod explain;
mod fetch;
mod finish;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod granted;
mod graph;
mod image_tests;
mod install;
mod key;
mod late;
mod leaks;
mod licence;
mod limits;
mod listing;
mod lock;
mod lock_entry;
mod locking;
mod look;
mod mark;
mod minimal;
mod onto;
mod progress;
mod provenance;
mod remote;
mod repack;
mod request;
mod resolve;
mod room;
mod sbom;
mod scratch;
mod seen;
mod signature;
mod slim;
mod sources;
mod status;
mod step_lock;
mod universe;
mod unreachable;
mod users;
mod verify;
mod version;

pub use arch::arch;
pub use bake::{Baked, bake};
pub use commit::{Checkout, CommitInfo};
pub use diff::{Change, Changed, FileChange, ImageDiff, LayerSize, diff};
pub use dockerfile::{
    BakedDockerfile, ContextFolder, ContextRepository, DockerfileRequest, OtherClock, Tagging,
    bake_dockerfile, images_named, known_base,
};
pub use error::BakeError;
pub use granted::Granted;
pub use kiln_git::{SshAgent, SshKeys};
pub use kiln_registry::Registries;
pub use late::Late;
pub use listing::{Listing, Listings, There};
pub use lock::{Lock, LockError};
pub use locking::{LockRequest, Locked, PackageChange, Update, lock};
pub use progress::{BakeProgress, StepReport};
pub use provenance::{MEDIA_IN_TOTO, ResolvedBase, is_own_provenance};
pub use request::BakeRequest;
pub use sbom::{MEDIA_SPDX, is_own_sbom};
pub use verify::{Circumstances, Difference, compare, static_programs};
