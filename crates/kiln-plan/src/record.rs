//! What the journal keeps of a step, and how a service's state is written and read again by a kiln of another age.

use kiln_model::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::{Action, Event, Notice};
use crate::migrate::state_to_2;
use crate::service::Service;

/// One step of a service, as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    pub event: Event,
    pub actions: Vec<Action>,
    pub notices: Vec<Notice>,
    /// The SHA-256 of the JSON of the state that it led to.
    pub state: Digest,
}

/// The format in which this kiln writes a service's state. Whoever changes what [`Service`] serializes to, in another way
/// than by a new member with a default, raises it and adds a step to [`migrate_state`].
///
/// | Format | What changed |
/// |---|---|
/// | 1 | the first |
/// | 2 | rollouts are rows of stages, routes carry weighted sets, reasons are facts, instances have endpoints |
pub const STATE_FORMAT: u32 = 2;

/// Why a service's state can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "it has format {found}, and this kiln knows formats up to {STATE_FORMAT}: use the kiln that wrote it, or a newer one"
    )]
    Newer { found: u32 },
    #[error("it can't be understood")]
    Json(#[source] serde_json::Error),
}

/// A state of an older format as this kiln would have written it.
pub fn migrate_state(format: u32, mut state: Value) -> Result<Value, StateError> {
    if format > STATE_FORMAT {
        return Err(StateError::Newer { found: format });
    }
    if format < 2 {
        state_to_2(&mut state);
    }
    Ok(state)
}

impl Service {
    /// Reads what [`Service::write_state`] of this kiln or an older one wrote.
    pub fn read_state(format: u32, bytes: &[u8]) -> Result<Self, StateError> {
        let state = serde_json::from_slice(bytes).map_err(StateError::Json)?;
        serde_json::from_value(migrate_state(format, state)?).map_err(StateError::Json)
    }

    /// The state in [`STATE_FORMAT`].
    pub fn write_state(&self) -> Result<Vec<u8>, StateError> {
        serde_json::to_vec(self).map_err(StateError::Json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_a_newer_format_is_refused_and_says_what_to_do() {
        let key = "dev/api".to_owned().try_into().unwrap();
        let service = Service::new(key, "shop".parse().unwrap());
        let bytes = service.write_state().unwrap();
        assert_eq!(Service::read_state(STATE_FORMAT, &bytes).unwrap(), service);
        let error = Service::read_state(STATE_FORMAT + 1, &bytes).unwrap_err();
        assert!(matches!(error, StateError::Newer { found } if found == STATE_FORMAT + 1));
        assert!(error.to_string().contains("use the kiln that wrote it"));
    }
}
