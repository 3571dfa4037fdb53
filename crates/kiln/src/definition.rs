//! Reads the definition from disk.

use std::path::PathBuf;

use kiln_config::{Inputs, Source, load};
use kiln_model::ProjectSpec;

use crate::failure::Failure;
use crate::output;
use crate::settings::DefinitionSettings;

/// A definition that is right, and where it came from.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) spec: ProjectSpec,
    pub(crate) file: PathBuf,
    pub(crate) folder: PathBuf,
}

pub(crate) fn read(settings: DefinitionSettings) -> Result<Definition, Failure> {
    let folder = settings.folder().to_owned();
    let DefinitionSettings {
        file,
        environment,
        variables,
    } = settings;
    let text = std::fs::read_to_string(&file).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Failure::NoDefinition { path: file.clone() },
        _ => Failure::ReadDefinition {
            path: file.clone(),
            source,
        },
    })?;
    let source = Source {
        name: file.display().to_string(),
        text,
    };
    let loaded = load(
        &source,
        &Inputs {
            environment,
            variables,
        },
    )?;
    for warning in &loaded.warnings {
        output::warning(warning);
    }
    Ok(Definition {
        spec: loaded.spec,
        file,
        folder,
    })
}
