//! Members that another kiln wrote and this one does not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Members of an object that this kiln has no field for, by name.
///
/// They are kept as they are: a release that a newer kiln journalled keeps its identity, and the newer kiln finds all of it
/// again. Nothing acts on them. What would have to act on them asks [`UnknownFields::is_empty`] and refuses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnknownFields(BTreeMap<String, Value>);

impl UnknownFields {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ordered.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}
