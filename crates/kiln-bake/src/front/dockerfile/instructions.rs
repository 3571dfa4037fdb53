//! One stage: its base, then its instructions in order, each changing the configuration or adding a layer.

use std::sync::Arc;

use kiln_config::dockerfile::{Action, Command, Complaint, Dockerfile, Instruction, triggers};
use kiln_oci::History;

use super::bake::Bake;
use super::errors::at;
use super::platform;
use super::scope::Scope;
use super::source::lexical;
use super::stage::{Stage, created, scratch};
use super::stage_builder::StageBuilder;
use crate::error::BakeError;

pub(super) fn carry_out(bake: &Bake<'_>, index: usize) -> Result<Stage, BakeError> {
    let file = bake.request.dockerfile;
    let from = &file.stages[index].from;
    // As BuildKit has it, a named context is in place of the stage of that name.
    if let Some(name) = &file.stages[index].name
        && (bake.request.named_images.contains(name) || bake.context_named(name).is_some())
    {
        let image = bake.image(index, name, &from.span)?;
        return Ok(Stage::clone(&image));
    }
    let (name, platform) = {
        // What has no value is warned of before anything is baked.
        let mut scope = Scope::new(&[], &bake.globals);
        let name = scope.expand(file, &from.image)?;
        let platform = match &from.platform {
            Some(platform) => Some((scope.expand(file, platform)?, platform)),
            None => None,
        };
        (name, platform)
    };
    if let Some((wanted, text)) = platform
        && !platform::is_here(&wanted)
    {
        return Err(bake.error(platform::another(text.whole(), &wanted)));
    }
    if name.is_empty() {
        return Err(bake.error(Complaint::error(
            from.image.whole(),
            format!("`{}` is empty, and FROM needs an image", from.image.text),
            "give its ARG a default, or --build-arg",
        )));
    }
    let named = file.stage_called(&name, index);
    // Elsewhere BuildKit knows a stage in any letters, and here as an image, whose names have small ones.
    if let Some(stage) = named.and_then(|other| file.stages[other].name.as_deref())
        && stage != name
    {
        return Err(bake.error(Complaint::error(
            from.image.whole(),
            format!("`{name}` is neither a stage nor an image: their names have small letters"),
            format!("the stage before is `{stage}` here"),
        )));
    }
    let base = if name == "scratch" {
        Arc::new(scratch())
    } else if let Some(other) = named {
        bake.stage(other)?
    } else {
        let span = from.image.whole();
        bake.image(index, &name, &span).map_err(|error| {
            at(
                file.error(Complaint::error(span, "this base can't be used", "")),
                error,
            )
        })?
    };
    let mut walk = StageBuilder {
        label: match &file.stages[index].name {
            Some(name) => format!("{name}: "),
            None if file.stages.len() > 1 => format!("stage {index}: "),
            None => String::new(),
        },
        index,
        stage: Stage::clone(&base),
        own_cmd: false,
    };
    if let Some(date) = bake.date {
        walk.stage.date = date;
    }
    let asked = std::mem::take(&mut walk.stage.config.config.on_build);
    if !asked.is_empty() {
        let (source, instructions) = triggers(&asked)?;
        let file = Dockerfile::of_instructions(source, '\\');
        for instruction in &instructions {
            walk.instruction(bake, &file, instruction)?;
        }
    }
    for instruction in &file.stages[index].instructions {
        walk.instruction(bake, file, instruction)?;
    }
    walk.stage.config.created = Some(created(walk.stage.date));
    Ok(walk.stage)
}

impl StageBuilder {
    fn instruction(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        instruction: &Instruction,
    ) -> Result<(), BakeError> {
        let before = self.stage.layers.len();
        let result = self.act(bake, file, instruction);
        result.map_err(|error| {
            let no_network = matches!(
                &error,
                BakeError::Step {
                    misses_network: true,
                    ..
                }
            ) && bake.request.granted.no_network;
            let help = if no_network {
                "this bake has no network: --network default gives the steps one"
            } else {
                ""
            };
            let place = Complaint::error(instruction.span.clone(), "this instruction failed", help);
            at(file.error(place), error)
        })?;
        // What is kept for later has not happened.
        if matches!(instruction.action, Action::Onbuild(_)) {
            return Ok(());
        }
        self.stage.config.history.push(History {
            created: Some(created(self.stage.date)),
            created_by: Some(instruction.text.clone()),
            comment: None,
            empty_layer: self.stage.layers.len() == before,
        });
        Ok(())
    }

    fn command(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => {
                let mut words = self.shell();
                words.push(line.clone());
                words
            }
        }
    }

    fn act(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        instruction: &Instruction,
    ) -> Result<(), BakeError> {
        match &instruction.action {
            Action::Arg(args) => self.arg(bake, file, args)?,
            Action::Env(pairs) => self.env(bake, file, pairs)?,
            Action::Label(pairs) => {
                let pairs = self.pairs(bake, file, pairs)?;
                self.stage.config.config.labels.extend(pairs);
            }
            Action::Run(run) => {
                let layer = self.run(bake, file, instruction, run)?;
                self.stage.layers.push(layer);
            }
            Action::Cmd(command) => {
                self.stage.config.config.cmd = self.command(command);
                self.stage.config.config.args_escaped = true;
                self.own_cmd = true;
            }
            Action::Entrypoint(command) => {
                self.stage.config.config.entrypoint = self.command(command);
                if !self.own_cmd {
                    self.stage.config.config.cmd.clear();
                }
            }
            Action::Shell(words) => self.stage.config.config.shell = words.clone(),
            Action::Copy(copy) => {
                let layer = self.copy(bake, file, instruction, copy, false)?;
                self.stage.layers.push(layer);
            }
            Action::Add(copy) => {
                let layer = self.copy(bake, file, instruction, copy, true)?;
                self.stage.layers.push(layer);
            }
            Action::Workdir(path) => {
                let text = path;
                let path = self.expand(bake, file, text)?;
                if path.is_empty() {
                    let what =
                        "WORKDIR is empty once its variables are replaced, and changes nothing";
                    self.empty(bake, file, text, what);
                }
                // As BuildKit has it, what is absolute is kept as it is written.
                let path = if path.starts_with('/') {
                    path
                } else {
                    let path = lexical(&self.absolute(&path));
                    format!("/{}", path.display())
                };
                self.workdir(bake, path)?;
            }
            Action::User(user) => self.user(bake, file, user)?,
            Action::Expose(ports) => self.expose(bake, file, ports)?,
            Action::Volume(volumes) => self.volume(bake, file, volumes)?,
            Action::StopSignal(signal) => self.stop_signal(bake, file, signal)?,
            Action::Healthcheck(check) => {
                self.stage.config.config.healthcheck = Some(self.healthcheck(check));
            }
            Action::Onbuild(text) => self.stage.config.config.on_build.push(text.clone()),
            Action::Maintainer(name) => self.stage.config.author = Some(name.clone()),
        }
        Ok(())
    }
}
