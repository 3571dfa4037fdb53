//! A plan: what would change, and why.

use serde::{Deserialize, Serialize};

use crate::{EnvironmentSpec, ReleaseNumber, ServiceName, StateId};

/// What would change. Immutable and complete; applying one whose parent is no longer current is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The state that it was made from.
    pub parent: StateId,
    pub spec: EnvironmentSpec,
    /// Ordered by service; a service without a change is not named.
    pub changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub service: ServiceName,
    pub kind: ChangeKind,
    pub reasons: Vec<Reason>,
    /// Instances that run at most while this is carried out, the old and the warm ones included.
    pub peak_instances: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ChangeKind {
    /// The first release of the service.
    Create { to: ReleaseNumber },
    /// Another release.
    Replace {
        from: ReleaseNumber,
        to: ReleaseNumber,
    },
    /// The policy alone: no instance is replaced for it.
    Policy,
    /// The service is no longer in its project's definition.
    Remove { from: ReleaseNumber },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Reason {
    New,
    NotDefined,
    /// A field of the release differs.
    Release {
        change: FieldChange,
    },
    /// A field of the policy differs.
    Policy {
        change: FieldChange,
    },
    /// The last rollout to this release failed; it is tried again.
    Retry,
}

/// One field by its path (`env.LOG_LEVEL`), with both values as JSON text; `None`: not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldChange {
    pub field: String,
    pub from: Option<String>,
    pub to: Option<String>,
}
