//! The `check` directive: which warnings nobody wants, and whether the others end the bake.

use super::lines::Text;
use super::{Complaint, Dockerfile, DockerfileError};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    skips_all: bool,
    skipped: Vec<String>,
    /// Rules that are looked at only where they are asked for.
    tries_all: bool,
    tried: Vec<String>,
    is_error: bool,
}

/// As BuildKit has them: `skip` says nothing about them.
const EXPERIMENTAL: [&str; 2] = ["CopyIgnoredFile", "InvalidDefinitionDescription"];
/// What kiln alone warns of; `error=true` is not about them, so that what builds elsewhere is baked.
const OWN: [&str; 4] = [
    "EmptyValue",
    "FetchedWithoutChecksum",
    "SeveralFilesToOne",
    "UnusedBuildArg",
];

impl Check {
    /// `skip=RULE,RULE;error=true`
    pub(super) fn parse(directive: Option<&Text>) -> Result<Self, Complaint> {
        let mut check = Self::default();
        let Some(directive) = directive.filter(|directive| !directive.text.is_empty()) else {
            return Ok(check);
        };
        for option in directive.text.split(';') {
            let wrong = |what: String| {
                directive.complain(
                    what,
                    "write # check=skip=RULE,RULE;error=true, or a part of it",
                )
            };
            let (name, value) = option
                .split_once('=')
                .map(|(name, value)| (name.trim(), value.trim()))
                .ok_or_else(|| wrong(format!("`{option}` is no option of `check`")))?;
            match name {
                "skip" if value == "all" => check.skips_all = true,
                "skip" => check.skipped = rules(value),
                "experimental" if value == "all" => check.tries_all = true,
                "experimental" => check.tried = rules(value),
                "error" => {
                    check.is_error = match value {
                        "1" | "t" | "T" | "true" | "True" | "TRUE" => true,
                        "0" | "f" | "F" | "false" | "False" | "FALSE" => false,
                        _ => return Err(wrong(format!("`error={value}`: it is true or false"))),
                    }
                }
                _ => return Err(wrong(format!("`check` has no option `{name}`"))),
            }
        }
        Ok(check)
    }

    /// Whether somebody wants to hear of it.
    pub fn asks(&self, rule: &str) -> bool {
        let is_in = |rules: &[String]| rules.iter().any(|named| named == rule);
        if EXPERIMENTAL.contains(&rule) {
            self.tries_all || is_in(&self.tried)
        } else {
            !self.skips_all && !is_in(&self.skipped)
        }
    }
}

fn rules(text: &str) -> Vec<String> {
    text.split(',').map(|rule| rule.trim().to_owned()).collect()
}

impl Dockerfile {
    /// The first of the warnings as an error, where the Dockerfile asks for that.
    pub fn refused_for(&self, warnings: &[Complaint]) -> Option<DockerfileError> {
        let counts = |warning: &&Complaint| !warning.rule.is_some_and(|rule| OWN.contains(&rule));
        let first = warnings
            .iter()
            .find(counts)
            .filter(|_| self.check.is_error)?;
        let rule = first.rule.unwrap_or_default();
        Some(self.error(Complaint::error(
            first.span.clone(),
            format!("{} ({rule}), and `check` has error=true", first.what),
            first.help.clone(),
        )))
    }
}
