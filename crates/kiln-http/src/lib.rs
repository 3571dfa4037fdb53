//! What everything that fetches needs in exactly the same form: a client with kiln's timeouts, addresses, and HTTP's dates.
//!
//! Registries, Git repositories and `ADD` ask other people's servers. A server that is silent must not hold a bake up, and an address must
//! not carry a password into an image, whoever asks.

#![warn(clippy::too_many_lines)] // of more than 120 (clippy.toml) a function is several

mod address;
mod client;
mod date;

pub use address::{percent_decoded, without_user};
pub use client::client;
pub use date::seconds_of;
