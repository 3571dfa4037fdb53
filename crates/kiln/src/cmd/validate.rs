//! `kiln validate`: is the definition right?

use serde::Serialize;

use crate::args;
use crate::failure::{Exit, Failure};
use crate::{definition, output};

#[derive(Serialize)]
struct Answer<'a> {
    file: String,
    spec: &'a kiln_model::ProjectSpec,
}

pub(crate) fn run(args: args::Validate) -> Result<Exit, Failure> {
    let definition = definition::read(args.definition.into())?;
    let spec = &definition.spec;
    if args.json.json {
        output::json(&Answer {
            file: definition.file.display().to_string(),
            spec,
        })?;
        return Ok(Exit::Done);
    }
    let count = |number: usize, what: &str| {
        format!("{number} {what}{}", if number == 1 { "" } else { "s" })
    };
    output::line(&format!(
        "{} is valid: project {}, {}, {}, {} besides dev",
        definition.file.display(),
        spec.project,
        count(spec.images.len(), "image"),
        count(spec.services.len(), "service"),
        count(
            spec.environments
                .iter()
                .filter(|name| name.as_str() != "dev")
                .count(),
            "environment"
        ),
    ))?;
    Ok(Exit::Done)
}
