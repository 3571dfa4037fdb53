//! Registries (OCI distribution specification 1.1): the client that brings an image into the store, with the logins that docker and podman keep.

#![warn(clippy::too_many_lines)] // of more than 120 (clippy.toml) a function is several

mod auth;
mod client;

pub use client::Registries;
