//! A stage on its way, with what all instructions need of it: variables replaced, paths from the working folder on, its name.

use kiln_config::dockerfile::{Dockerfile, Instruction, Text};

use super::bake::Bake;
use super::scope::Scope;
use super::stage::Stage;
use crate::error::BakeError;

/// A stage on its way.
pub(super) struct StageBuilder {
    /// How its steps are told.
    pub(super) label: String,
    pub(super) index: usize,
    pub(super) stage: Stage,
    /// CMD is this stage's own, and no new ENTRYPOINT takes it away.
    pub(super) own_cmd: bool,
}

impl StageBuilder {
    pub(super) fn scope(&self) -> Scope<'_> {
        let scope = Scope::new(&self.stage.config.config.env, &self.stage.args);
        scope.with_declared(&self.stage.declared)
    }

    pub(super) fn expand(
        &self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        text: &Text,
    ) -> Result<String, BakeError> {
        let mut scope = self.scope();
        let value = scope.expand(file, text)?;
        bake.warn(self.index, scope.warnings);
        Ok(value)
    }

    pub(super) fn words(
        &self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        texts: &[Text],
    ) -> Result<Vec<String>, BakeError> {
        let mut scope = self.scope();
        let mut words = Vec::new();
        for text in texts {
            words.extend(scope.words(file, text)?);
        }
        bake.warn(self.index, scope.warnings);
        Ok(words)
    }

    pub(super) fn pairs(
        &self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        pairs: &[(Text, Text)],
    ) -> Result<Vec<(String, String)>, BakeError> {
        // All of one instruction see what was before it.
        pairs
            .iter()
            .map(|(name, value)| {
                Ok((
                    self.expand(bake, file, name)?,
                    self.expand(bake, file, value)?,
                ))
            })
            .collect()
    }

    pub(super) fn shell(&self) -> Vec<String> {
        let shell = &self.stage.config.config.shell;
        if shell.is_empty() {
            vec!["/bin/sh".to_owned(), "-c".to_owned()]
        } else {
            shell.clone()
        }
    }

    /// `path` from the working folder on.
    pub(super) fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        let workdir = self.stage.config.config.working_dir.trim_end_matches('/');
        format!("{workdir}/{path}")
    }

    pub(super) fn name(&self, instruction: &Instruction) -> String {
        format!("{}{}", self.label, instruction.text)
    }
}
