//! `kiln validate`: is the definition right?

use kiln_config::ConfigErrors;
use serde::Serialize;

use crate::args;
use crate::failure::{Exit, Failure};
use crate::settings::DefinitionSettings;
use crate::{definition, output};

#[derive(Serialize)]
struct Answer<'a> {
    valid: bool,
    file: String,
    spec: Option<&'a kiln_model::ProjectSpec>,
    diagnostics: Vec<Diagnostic>,
}

#[derive(Serialize)]
struct Diagnostic {
    severity: &'static str,
    summary: String,
    expected: String,
    help: String,
    /// `null`: it is about what was asked for, and not about a place.
    range: Option<Range>,
}

#[derive(Serialize)]
struct Range {
    file: String,
    start: Position,
    /// Behind the last character.
    end: Position,
}

/// Both from 1; the column counts characters.
#[derive(Serialize)]
struct Position {
    line: usize,
    column: usize,
}

impl From<kiln_config::Position> for Position {
    fn from(position: kiln_config::Position) -> Self {
        let kiln_config::Position { line, column } = position;
        Self { line, column }
    }
}

fn diagnostics(errors: &ConfigErrors) -> Vec<Diagnostic> {
    let one = |diagnostic: &kiln_config::Diagnostic| Diagnostic {
        severity: "error",
        summary: diagnostic.problem.to_string(),
        expected: diagnostic.expected.clone(),
        help: diagnostic.help.clone(),
        range: errors.place(diagnostic).map(|place| Range {
            file: place.file,
            start: place.start.into(),
            end: place.end.into(),
        }),
    };
    errors.diagnostics.iter().map(one).collect()
}

pub(crate) fn run(args: args::Validate) -> Result<Exit, Failure> {
    let settings: DefinitionSettings = args.definition.into();
    let file = settings.file.display().to_string();
    let definition = match definition::read(settings) {
        Err(Failure::Definition(errors)) if args.json.json => {
            output::json(&Answer {
                valid: false,
                file,
                spec: None,
                diagnostics: diagnostics(&errors),
            })?;
            return Ok(Exit::Failed);
        }
        read => read?,
    };
    let spec = &definition.spec;
    if args.json.json {
        output::json(&Answer {
            valid: true,
            file,
            spec: Some(spec),
            diagnostics: Vec::new(),
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
