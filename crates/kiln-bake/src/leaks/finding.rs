//! A rule, and where it found something.

use serde::{Deserialize, Serialize};

pub(super) const PRIVATE_KEY: &str = "private-key";
pub(super) const PASSWORD_HASH: &str = "password-hash";
pub(super) const CREDENTIALS: &str = "credentials";
pub(super) const URL_PASSWORD: &str = "url-password";
pub(super) const PASSWORD: &str = "password";
/// One that the bake itself was given.
pub(super) const GIVEN: &str = "given-secret";

/// A rule, and where it found something: an absolute path, or `env.NAME`, `label.NAME`, `entrypoint`, `cmd`, `run.N`, `history.N`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) rule: String,
    pub(crate) place: String,
}

impl Finding {
    pub(super) fn new(rule: &str, place: impl Into<String>) -> Self {
        Self {
            rule: rule.to_owned(),
            place: place.into(),
        }
    }

    /// As `allow_leak` names it.
    pub(crate) fn excuse(&self) -> String {
        format!("{}:{}", self.rule, self.place)
    }
}
