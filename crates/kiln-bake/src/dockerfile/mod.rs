//! The other front end: a Dockerfile's stages carried out over the same store, sandbox and cache as a definition's steps.
//!
//! A stage is baked when something needs it, so that what the target does not need never runs. Layers and configuration
//! are what BuildKit makes of the same instructions; times are those of the base at most, so that two bakes are one image.

mod added;
mod bake;
mod base;
mod caches;
mod config;
mod context;
mod contexts;
mod copy;
mod errors;
mod from;
mod ignore_file;
mod instructions;
mod key;
mod mode;
mod mount_points;
mod mounts;
mod needs;
mod owner;
mod place;
mod platform;
mod request;
mod run;
mod schedule;
mod scope;
mod source;
mod stage;
mod stages;
mod step;
mod target;
mod unpack;
mod walk;
mod workdir;

pub use base::known_base;
pub use context::{ContextFolder, ContextRepository};
pub use needs::images_named;
pub use request::{BakedDockerfile, DockerfileRequest, OtherClock, Tagging};
pub use target::bake_dockerfile;
