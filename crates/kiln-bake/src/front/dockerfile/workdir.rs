//! WORKDIR: the folder is part of the image.

use kiln_oci::Tree;

use super::bake::Bake;
use super::errors::{copy_error, placed};
use super::key::Inputs;
use super::owner::owner;
use super::place::Placing;
use super::stage_builder::StageBuilder;
use crate::error::BakeError;
use crate::step::scratch::Scratch;

impl StageBuilder {
    /// The folder is made where it is not there, as its user's.
    pub(super) fn workdir(&mut self, bake: &Bake<'_>, path: String) -> Result<(), BakeError> {
        self.stage.config.config.working_dir.clone_from(&path);
        let user = self.stage.config.config.user.clone();
        let inputs = Inputs::Folder {
            path: &path,
            owner: &user,
        };
        let (layers, date) = (self.stage.layers.clone(), self.stage.date);
        let name = format!("{}WORKDIR {path}", self.label);
        let layer = bake.step(self.index, &name, &layers, date, &inputs, || {
            let scratch = Scratch::new(bake.request.work)?;
            let view = bake.view(&layers, &scratch.folder("look")?)?;
            let owner = match user.as_str() {
                "" => None,
                user => {
                    let owner = owner(user, view.path());
                    Some(owner.map_err(|reason| copy_error(&name, reason))?)
                }
            };
            let mut placing = Placing {
                view: view.path(),
                owner,
                chmod: None,
                date,
                tree: Tree::new(),
                replaced: Vec::new(),
            };
            let target = placing
                .target(&path)
                .map_err(|error| placed(&name, error))?;
            if !view.path().join(&target).is_dir() {
                placing
                    .folder(&target)
                    .map_err(|error| placed(&name, error))?;
            }
            let mut tree = placing.tree;
            tree.clamp_mtime(date);
            Ok(bake.add(&tree)?.into())
        })?;
        // One that says nothing is no layer of the image.
        if layer.diff_id != empty_layer(bake, date)? {
            self.stage.layers.push(layer);
        }
        Ok(())
    }
}

fn empty_layer(bake: &Bake<'_>, date: i64) -> Result<kiln_model::Digest, BakeError> {
    let mut tree = Tree::new();
    tree.clamp_mtime(date);
    Ok(bake.store.add_layer(&tree)?.diff_id)
}
