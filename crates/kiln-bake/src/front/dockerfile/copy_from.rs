//! What `--from` and `from=` name.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_config::dockerfile::{Complaint, Dockerfile, Text};

use super::bake::Bake;
use super::stage::{Stage, scratch};
use super::stage_builder::StageBuilder;
use crate::error::BakeError;

/// Where a COPY or a mount takes from.
pub(super) enum CopyFrom {
    /// Of the caller's: the context, or a named one.
    Folder {
        path: PathBuf,
        name: Option<String>,
    },
    Stage(Arc<Stage>),
}

impl StageBuilder {
    /// What `--from` or `from=` names: a named context, a stage before this one, or an image. `numbered`: a stage by its number, too.
    pub(super) fn named(
        &self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        name: &Text,
        numbered: bool,
    ) -> Result<CopyFrom, BakeError> {
        let stages = bake.request.dockerfile;
        let stage = |before: usize| {
            if numbered {
                stages.stage(&name.text, before)
            } else {
                stages.stage_called(&name.text, before)
            }
        };
        if let Some((known, path)) = bake.context_named(&name.text) {
            return Ok(CopyFrom::Folder {
                path: path.to_owned(),
                name: Some(known.to_owned()),
            });
        }
        if let Some(index) = stage(self.index) {
            return Ok(CopyFrom::Stage(bake.stage(index)?));
        }
        if stage(stages.stages.len()).is_some() {
            return Err(BakeError::Dockerfile(file.error(Complaint::error(
                name.whole(),
                format!("the stage `{}` is not before this one", name.text),
                "a stage takes from those above it only: move it up",
            ))));
        }
        if name.text.contains('$') {
            return Err(BakeError::Dockerfile(file.error(Complaint::error(
                name.whole(),
                "variables are not replaced in the name of what is copied from",
                "make it a stage: FROM $NAME AS stage",
            ))));
        }
        if name.text == "scratch" {
            return Ok(CopyFrom::Stage(Arc::new(scratch())));
        }
        bake.image(self.index, &name.text, &name.whole())
            .map(CopyFrom::Stage)
    }
}
