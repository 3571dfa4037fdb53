//! What variables are at one place of a stage.

use std::collections::{BTreeMap, BTreeSet};

use kiln_config::dockerfile::{
    Complaint, Dockerfile, DockerfileError, Text, Variables, WordError, expand, expand_heredoc,
    expand_words,
};

/// An ARG is before the ENV of its name: a later ENV takes it away.
pub(super) struct Scope<'a> {
    env: &'a [String],
    args: &'a BTreeMap<String, String>,
    /// ARGs, also those without a value: nobody is warned of them.
    declared: Option<&'a BTreeSet<String>>,
    undefined: Vec<String>,
    pub(super) warnings: Vec<Complaint>,
}

impl Variables for Scope<'_> {
    fn get(&self, name: &str) -> Option<String> {
        let from_env = || {
            self.env.iter().find_map(|pair| {
                let (known, value) = pair.split_once('=')?;
                (known == name).then(|| value.to_owned())
            })
        };
        self.args.get(name).cloned().or_else(from_env)
    }

    fn undefined(&mut self, name: &str) {
        if !self
            .declared
            .is_some_and(|declared| declared.contains(name))
        {
            self.undefined.push(name.to_owned());
        }
    }
}

impl<'a> Scope<'a> {
    pub(super) fn new(env: &'a [String], args: &'a BTreeMap<String, String>) -> Self {
        Self {
            env,
            args,
            declared: None,
            undefined: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn with_declared(self, declared: &'a BTreeSet<String>) -> Self {
        Self {
            declared: Some(declared),
            ..self
        }
    }

    fn with<T>(
        &mut self,
        file: &Dockerfile,
        text: &Text,
        expand: impl FnOnce(&str, char, &mut dyn Variables) -> Result<T, WordError>,
    ) -> Result<T, DockerfileError> {
        let result = expand(&text.text, file.escape, self).map_err(|error| {
            file.error(Complaint::error(
                text.whole(),
                error.to_string(),
                "`$name`, `${name}` or `${name:-default}`; `\\$` is the character itself",
            ))
        });
        for name in std::mem::take(&mut self.undefined) {
            let at = text.text.find(&name).unwrap_or(0);
            self.warnings.push(Complaint::warning(
                "UndefinedVar",
                text.span(at..at + name.len()),
                format!("the variable `{name}` has no value here"),
                "give it one with ARG or ENV before, or a default: ${NAME:-default}",
            ));
        }
        result
    }

    /// As one word.
    pub(super) fn expand(
        &mut self,
        file: &Dockerfile,
        text: &Text,
    ) -> Result<String, DockerfileError> {
        self.with(file, text, |text, escape, scope| {
            expand(text, escape, scope)
        })
    }

    pub(super) fn words(
        &mut self,
        file: &Dockerfile,
        text: &Text,
    ) -> Result<Vec<String>, DockerfileError> {
        self.with(file, text, |text, escape, scope| {
            expand_words(text, escape, scope)
        })
    }

    /// A here-document's content.
    pub(super) fn heredoc(
        &mut self,
        file: &Dockerfile,
        place: &Text,
        content: &str,
    ) -> Result<String, DockerfileError> {
        self.with(file, place, |_, escape, scope| {
            expand_heredoc(content, escape, scope)
        })
    }
}
