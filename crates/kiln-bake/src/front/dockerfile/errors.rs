//! Errors with the place of the Dockerfile, or the step, that they are of.

use kiln_config::dockerfile::DockerfileError;

use super::place::PlaceError;
use crate::error::BakeError;

/// `source` happened while an instruction was carried out.
pub(super) fn at(place: DockerfileError, source: BakeError) -> BakeError {
    match source {
        // Tells its own place.
        source
        @ (BakeError::Dockerfile(_) | BakeError::Instruction { .. } | BakeError::Stopped) => source,
        source => BakeError::Instruction {
            place: Box::new(place),
            source: Box::new(source),
        },
    }
}

pub(super) fn copy_error(step: &str, reason: String) -> BakeError {
    BakeError::DockerfileStep {
        step: step.to_owned(),
        reason,
    }
}

pub(super) fn placed(step: &str, error: PlaceError) -> BakeError {
    match error {
        PlaceError::Io { path, source } => BakeError::io(path)(source),
        PlaceError::Layer(error) => BakeError::Layer(error),
        error @ (PlaceError::NotAFolder(_) | PlaceError::IsAFolder(_)) => {
            copy_error(step, error.to_string())
        }
    }
}
