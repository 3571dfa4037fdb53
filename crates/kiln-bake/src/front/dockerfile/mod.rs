//! The other front end: a Dockerfile's stages carried out over the same store, sandbox and cache as a definition's steps.
//!
//! A stage is baked when something needs it, so that what the target does not need never runs. Layers and configuration
//! are what BuildKit makes of the same instructions; times are those of the base at most, so that two bakes are one image.

mod add;
mod bake;
mod base;
mod cache_mounts;
mod config;
mod context_folder;
mod copy;
mod copy_from;
mod errors;
mod ignore_file;
mod instructions;
mod key;
mod mode;
mod mount_points;
mod mounts;
mod named_contexts;
mod named_images;
mod owner;
mod place;
mod platform;
mod request;
mod run;
mod schedule;
mod scope;
mod source;
mod stage;
mod stage_builder;
mod stages;
mod step;
mod target;
mod unpack;
mod workdir;

pub use base::known_base;
pub use context_folder::{ContextFolder, ContextRepository};
pub use named_images::images_named;
pub use request::{BakedDockerfile, DockerfileRequest, OtherClock, Tagging};
pub use target::bake_dockerfile;
