//! Secrets that would leave with an image: private keys, well-known tokens and passwords, in the files of every layer (also those
//! that a later layer deletes), in the environment, the commands and the history.
//!
//! Layers are searched once each, in one pass for all rules, with a bounded buffer: what a rule begins with is searched for, and
//! the rest is only looked at there. What was found is remembered by rule and place, never the secret itself.

mod commands;
mod config;
mod content;
mod excuses;
mod finding;
mod given;
mod hidden;
mod layers;
mod names;
mod published;
mod rules;
#[cfg(test)]
mod tests;
mod texts;
mod tokens;
mod tree;

pub(crate) use config::in_config;
pub(crate) use content::is_clean;
pub(crate) use excuses::Search;
pub(crate) use finding::Finding;
pub(crate) use given::given;
pub(crate) use hidden::is_secret;
#[cfg(test)]
pub(crate) use layers::of_layer;
pub(crate) use layers::{add, add_prepared};
pub(crate) use rules::RULES_VERSION;
