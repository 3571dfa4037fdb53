//! RUN: a command in a sealed container over what the stage has so far.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kiln_config::dockerfile::{
    Command, Complaint, Dockerfile, Flag, Instruction, Run, is_heredoc_mark,
};
use kiln_engine::sandbox::SandboxBind;
use kiln_oci::{Kind, Layer, Tree};

use super::stage::Walk;
use super::step::Inputs;
use super::{Bake, PROXIES};
use crate::bake::{Scratch, sweep};
use crate::configure::{self, Ground};
use crate::error::BakeError;

/// Where a here-document that is a script of its own is found while it runs.
const SCRIPTS: &str = "run/kiln-heredoc";

/// Names with their values.
type Environment = Vec<(String, String)>;

impl Walk {
    pub(super) fn run(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        instruction: &Instruction,
        run: &Run,
    ) -> Result<Layer, BakeError> {
        self.refuse(file, instruction, &run.flags)?;
        let (argv, script) = self.argv(file, run);
        let (env, keyed) = self.environment(bake);
        let config = &self.stage.config.config;
        let (user, workdir) = (config.user.clone(), config.working_dir.clone());
        let inputs = Inputs::Run {
            argv: &argv,
            env: &keyed,
            user: &user,
            workdir: &workdir,
            script: script.as_deref(),
        };
        let (layers, date) = (self.stage.layers.clone(), self.stage.date);
        let name = self.name(instruction);
        bake.step(self.index, &name, &layers, date, &inputs, || {
            sweep(bake.request.work);
            let scratch = Scratch::new(bake.request.work, bake.store)?;
            let (upper, work) = (scratch.folder("upper")?, scratch.folder("work")?);
            let mut binds = Vec::new();
            // What is made only to be mounted on is no part of the image.
            let mut stubs = Vec::new();
            if let Some(text) = &script {
                let path = scratch.folder("script")?.join("script");
                fs::write(&path, text).map_err(BakeError::io(&path))?;
                fs::set_permissions(&path, Permissions::from_mode(0o755))
                    .map_err(BakeError::io(&path))?;
                let view = self.view(bake, &layers, &scratch.folder("look")?)?;
                let to = format!("{SCRIPTS}/script");
                let real = super::source::resolve(view.path(), Path::new(&to), true)
                    .map_err(BakeError::View)?;
                let mut inside = real.as_path();
                while !inside.as_os_str().is_empty() {
                    if fs::symlink_metadata(view.path().join(inside)).is_err() {
                        stubs.push(inside.to_owned());
                    }
                    inside = inside.parent().unwrap_or(Path::new(""));
                }
                binds.push(SandboxBind {
                    from: path,
                    to: format!("/{}", real.display()),
                    writable: false,
                });
            }
            let ground = Ground {
                image: bake.request.tag.name(),
                step: &name,
                lowers: bake.lowers(&layers)?,
                upper: &upper,
                work: &work,
                binds,
                stop: &|| bake.schedule.is_stopped(),
            };
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let mut said = |line: &str| bake.said(&name, line);
            configure::run(&ground, &argv, env, &user, &workdir, &mut said)?;
            let mut tree = Tree::from_upper(&upper)?;
            for stub in stubs {
                remove_stub(&mut tree, &stub);
            }
            tree.clamp_mtime(date);
            Ok(bake.store.add_layer(&tree)?)
        })
    }

    /// What a RUN finds in its environment: ENV, ARG (the later of one name) and the network's own; and what of it is in its key.
    fn environment(&self, bake: &Bake<'_>) -> (Environment, Environment) {
        let mut env: Vec<(String, String)> = self
            .stage
            .config
            .config
            .env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let has = |env: &[(String, String)], name: &str| env.iter().any(|(known, _)| known == name);
        for (name, value) in &self.stage.args {
            match env.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.clone_from(value),
                None => env.push((name.clone(), value.clone())),
            }
        }
        let keyed = env.clone();
        for name in PROXIES.iter().take(10) {
            if let Some(value) = bake.request.build_args.get(*name)
                && !has(&env, name)
            {
                env.push(((*name).to_owned(), value.clone()));
            }
        }
        (env, keyed)
    }

    /// Flags that this version does nothing with.
    fn refuse(
        &self,
        file: &Dockerfile,
        instruction: &Instruction,
        flags: &[Flag],
    ) -> Result<(), BakeError> {
        for flag in flags {
            let value = flag.value.as_ref().map_or("", |value| value.text.as_str());
            let span = flag
                .value
                .as_ref()
                .map_or(instruction.span.clone(), |value| value.whole());
            let refused = match (flag.name.as_str(), value) {
                // There is none, whatever is asked for; a step that fails says so.
                ("network", "default" | "none") | ("security", "sandbox") => continue,
                ("network", "host") => "a step never has the host's network".to_owned(),
                ("security", "insecure") => "a step never has more rights".to_owned(),
                (name, value) => {
                    format!("--{name}={value} is not supported by this version of kiln")
                }
            };
            return Err(BakeError::Dockerfile(file.error(Complaint::error(
                span,
                refused,
                "take it out",
            ))));
        }
        Ok(())
    }

    /// What is executed, and the here-document that is a script with an interpreter of its own.
    fn argv(&self, file: &Dockerfile, run: &Run) -> (Vec<String>, Option<String>) {
        let line = match &run.command {
            Command::Exec(words) => return (words.clone(), None),
            Command::Shell(line) => line,
        };
        let mut argv = self.shell();
        let alone = match &run.heredocs[..] {
            [one] if is_heredoc_mark(line, file.escape) => Some(one),
            _ => None,
        };
        match alone {
            Some(heredoc) if heredoc.content.text.starts_with("#!") => {
                let path = format!("/{SCRIPTS}/script");
                return (vec![path], Some(heredoc.chomped()));
            }
            Some(heredoc) => argv.push(heredoc.chomped()),
            // The shell reads here-documents itself.
            None => {
                let mut whole = line.clone();
                for heredoc in &run.heredocs {
                    whole.push_str(&format!("\n{}{}", heredoc.content.text, heredoc.name));
                }
                argv.push(whole);
            }
        }
        (argv, None)
    }
}

fn remove_stub(tree: &mut Tree, path: &Path) {
    let empty = match tree.get(path).map(|entry| &entry.kind) {
        Some(Kind::Dir { .. }) => !tree
            .iter()
            .any(|(other, _)| other != path && other.starts_with(path)),
        Some(Kind::File { size, .. }) => *size == 0,
        _ => false,
    };
    if empty {
        tree.remove(path);
    }
}
