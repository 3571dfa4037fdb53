//! The `check` directive: which warnings nobody wants, and whether the others end the bake.

use super::lines::Text;
use super::{Complaint, Dockerfile, DockerfileError};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    skips_all: bool,
    skipped: Vec<String>,
    is_error: bool,
}

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
                "skip" => {
                    check.skipped = value
                        .split(',')
                        .map(|rule| rule.trim().to_owned())
                        .collect()
                }
                "error" => {
                    check.is_error = match value {
                        "1" | "t" | "T" | "true" | "True" | "TRUE" => true,
                        "0" | "f" | "F" | "false" | "False" | "FALSE" => false,
                        _ => return Err(wrong(format!("`error={value}`: it is true or false"))),
                    }
                }
                // Rules that are tried out; kiln has none.
                "experimental" => {}
                _ => return Err(wrong(format!("`check` has no option `{name}`"))),
            }
        }
        Ok(check)
    }

    pub fn skips(&self, rule: &str) -> bool {
        self.skips_all || self.skipped.iter().any(|skipped| skipped == rule)
    }
}

impl Dockerfile {
    /// The first of the warnings as an error, where the Dockerfile asks for that.
    pub fn refused_for(&self, warnings: &[Complaint]) -> Option<DockerfileError> {
        let first = warnings.first().filter(|_| self.check.is_error)?;
        let rule = first.rule.unwrap_or_default();
        Some(self.error(Complaint::error(
            first.span.clone(),
            format!("{} ({rule}), and `check` has error=true", first.what),
            first.help.clone(),
        )))
    }
}
