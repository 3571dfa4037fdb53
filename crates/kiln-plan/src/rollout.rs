//! Going from one release to the next.

use kiln_model::{ReleaseNumber, Timestamp};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// `None`: the first release of the service.
    pub from: Option<ReleaseNumber>,
    pub to: ReleaseNumber,
    pub phase: RolloutPhase,
    /// When the phase was entered.
    pub since: Timestamp,
    /// Instances of the new set that ended before the switch.
    pub exits: u32,
    /// The set was warm, complete and ready when the rollout began: the switch waits for nothing.
    pub warm: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum RolloutPhase {
    /// The new set starts and becomes ready; traffic is with the old one.
    Starting { deadline: Timestamp },
    /// The switch was sent and is not confirmed.
    Switching,
    /// All traffic is with the new set, which is watched.
    Watching { until: Timestamp },
    /// The new set failed: traffic goes back, then the new set is stopped.
    Returning { reason: String, failed: bool },
}

impl RolloutPhase {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "start",
            Self::Switching => "switch",
            Self::Watching { .. } => "watch",
            Self::Returning { .. } => "return",
        }
    }
}
