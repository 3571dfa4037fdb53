//! Registries (OCI distribution specification 1.1): the client that brings an image into the store, with the logins that docker and podman keep.

mod auth;
mod client;

pub use client::Registries;
