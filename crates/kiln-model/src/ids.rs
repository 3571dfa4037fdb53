//! Numbers and ids. All are given by the planner or the journal, never by the part that uses them.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The number of a release within its service and environment, from 1: the `7` of `api@7`.
    ReleaseNumber
}
number! {
    /// Grows with each routing table or instance command; a lower one than the last seen is refused.
    Generation
}
number! {
    /// An action of the planner, unique within its service and environment.
    ActionId
}
number! {
    /// A state of the whole journal: the sequence number of its last entry. What a plan names as parent.
    StateId
}

/// One running copy of a release, named by the planner: `SERVICE-ENVIRONMENT-RELEASE-SERIAL`.
/// Never used twice, so it also names the instance's cgroup, folder and log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(String);

impl InstanceId {
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
