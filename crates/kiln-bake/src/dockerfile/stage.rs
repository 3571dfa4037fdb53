//! One stage: its base, then its instructions in order, each changing the configuration or adding a layer.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use kiln_config::dockerfile::{
    Action, Command, Complaint, Copy, CopySource, Dockerfile, Healthcheck, Ignore, Instruction,
    Text, triggers,
};
use kiln_engine::Overlay;
use kiln_oci::{History, Layer, Tree};

use super::base::scratch;
use super::mode::Chmod;
use super::place::{PlaceError, Placing};
use super::scope::Scope;
use super::source::{Root, SourceError, resolve};
use super::step::{Inputs, Origin};
use super::{Bake, PROXIES, Stage, at, created};
use crate::archive;
use crate::bake::Scratch;
use crate::error::BakeError;

/// A passwd file of a real image is a few kilobytes.
const PASSWD_LIMIT: u64 = 1 << 20;

/// A stage on its way.
pub(super) struct Walk {
    /// How its steps are told.
    label: String,
    index: usize,
    pub(super) stage: Stage,
    pub(super) args: BTreeMap<String, String>,
    /// CMD is this stage's own, and no new ENTRYPOINT takes it away.
    own_cmd: bool,
}

pub(super) fn carry_out(bake: &mut Bake<'_>, index: usize) -> Result<Stage, BakeError> {
    let file = bake.request.dockerfile;
    let from = &file.stages[index].from;
    let (name, platform, warnings) = {
        let mut scope = Scope::new(&[], &bake.globals);
        let name = scope.expand(file, &from.image)?;
        let platform = match &from.platform {
            Some(platform) => Some((scope.expand(file, platform)?, platform)),
            None => None,
        };
        (name, platform, scope.warnings)
    };
    bake.warnings
        .extend(warnings.into_iter().map(|warning| Complaint {
            rule: Some("UndefinedArgInFrom"),
            help: "give it a default with ARG before the first FROM".to_owned(),
            ..warning
        }));
    let here = format!("linux/{}", archive::arch());
    if let Some((platform, text)) = platform
        && platform != here
        && platform != "linux"
    {
        return Err(bake.error(Complaint::error(
            text.whole(),
            format!("kiln bakes for this machine's platform only, and `{platform}` is another"),
            format!("it is {here}"),
        )));
    }
    if name.is_empty() {
        return Err(bake.error(Complaint::error(
            from.image.whole(),
            format!("`{}` is empty, and FROM needs an image", from.image.text),
            "give its ARG a default, or --build-arg",
        )));
    }
    let named = (0..index)
        .rev()
        .find(|other| file.stages[*other].name.as_deref() == Some(&name.to_lowercase()));
    let base = if name == "scratch" {
        Rc::new(scratch())
    } else if let Some(other) = named {
        bake.stage(other)?
    } else {
        let span = from.image.whole();
        bake.image(&name, &span).map_err(|error| {
            at(
                file.error(Complaint::error(span, "this base can't be used", "")),
                error,
            )
        })?
    };
    let mut walk = Walk {
        label: match &file.stages[index].name {
            Some(name) => format!("{name}: "),
            None if file.stages.len() > 1 => format!("stage {index}: "),
            None => String::new(),
        },
        index,
        stage: Stage::clone(&base),
        args: BTreeMap::new(),
        own_cmd: false,
    };
    let asked = std::mem::take(&mut walk.stage.config.config.on_build);
    if !asked.is_empty() {
        let (source, instructions) = triggers(&asked)?;
        let file = Dockerfile {
            file: source,
            escape: '\\',
            args: Vec::new(),
            stages: Vec::new(),
            warnings: Vec::new(),
        };
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

impl Walk {
    fn instruction(
        &mut self,
        bake: &mut Bake<'_>,
        file: &Dockerfile,
        instruction: &Instruction,
    ) -> Result<(), BakeError> {
        let before = self.stage.layers.len();
        let result = self.act(bake, file, instruction);
        result.map_err(|error| {
            let no_network = matches!(
                (&instruction.action, &error),
                (Action::Run(_), BakeError::Step { .. })
            );
            let help = if no_network {
                "a RUN has no network in this version of kiln: what it fetches has to be copied or in the base"
            } else {
                ""
            };
            let place = Complaint::error(instruction.span.clone(), "this instruction failed", help);
            at(file.error(place), error)
        })?;
        self.stage.config.history.push(History {
            created: Some(created(self.stage.date)),
            created_by: Some(instruction.text.clone()),
            comment: None,
            empty_layer: self.stage.layers.len() == before,
        });
        Ok(())
    }

    fn scope(&self) -> Scope<'_> {
        Scope::new(&self.stage.config.config.env, &self.args)
    }

    fn expand(
        &self,
        bake: &mut Bake<'_>,
        file: &Dockerfile,
        text: &Text,
    ) -> Result<String, BakeError> {
        let mut scope = self.scope();
        let value = scope.expand(file, text)?;
        bake.warnings.extend(scope.warnings);
        Ok(value)
    }

    fn words(
        &self,
        bake: &mut Bake<'_>,
        file: &Dockerfile,
        texts: &[Text],
    ) -> Result<Vec<String>, BakeError> {
        let mut scope = self.scope();
        let mut words = Vec::new();
        for text in texts {
            words.extend(scope.words(file, text)?);
        }
        bake.warnings.extend(scope.warnings);
        Ok(words)
    }

    fn pairs(
        &self,
        bake: &mut Bake<'_>,
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

    pub(super) fn shell(&self) -> Vec<String> {
        let shell = &self.stage.config.config.shell;
        if shell.is_empty() {
            vec!["/bin/sh".to_owned(), "-c".to_owned()]
        } else {
            shell.clone()
        }
    }

    fn act(
        &mut self,
        bake: &mut Bake<'_>,
        file: &Dockerfile,
        instruction: &Instruction,
    ) -> Result<(), BakeError> {
        let wrong = |text: &Text, what: String, help: &str| {
            BakeError::Dockerfile(file.error(Complaint::error(text.whole(), what, help)))
        };
        match &instruction.action {
            Action::Arg(args) => {
                for (name, value) in args {
                    bake.used_args.insert(name.clone());
                    let value = match (bake.request.build_args.get(name), value) {
                        (Some(given), _) => Some(given.clone()),
                        (None, Some(value)) => Some(self.expand(bake, file, value)?),
                        (None, None) => bake.globals.get(name).cloned(),
                    };
                    match value {
                        Some(value) => self.args.insert(name.clone(), value),
                        None => self.args.remove(name),
                    };
                }
            }
            Action::Env(pairs) => {
                for (name, value) in self.pairs(bake, file, pairs)? {
                    let pair = format!("{name}={value}");
                    let env = &mut self.stage.config.config.env;
                    let known = env.iter_mut().find(|known| {
                        known
                            .split_once('=')
                            .is_some_and(|(known, _)| known == name)
                    });
                    match known {
                        Some(known) => *known = pair,
                        None => env.push(pair),
                    }
                }
            }
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
                let path = self.expand(bake, file, path)?;
                if path.is_empty() {
                    let span = instruction.span.clone();
                    let what = "WORKDIR is empty once its variables are replaced";
                    return Err(BakeError::Dockerfile(
                        file.error(Complaint::error(span, what, "")),
                    ));
                }
                let path = self.absolute(&path);
                let path = super::source::lexical(&path);
                self.workdir(bake, format!("/{}", path.display()))?;
            }
            Action::User(user) => {
                let name = self.expand(bake, file, user)?;
                if name.is_empty() {
                    return Err(wrong(
                        user,
                        "USER is empty once its variables are replaced".to_owned(),
                        "",
                    ));
                }
                self.stage.config.config.user = name;
            }
            Action::Expose(ports) => {
                for port in self.words(bake, file, ports)? {
                    let exposed = exposed(&port).ok_or_else(|| {
                        wrong(
                            &ports[0],
                            format!("`{port}` is not a port"),
                            "write it as 80, 80/udp or 8000-8010/tcp",
                        )
                    })?;
                    for port in exposed {
                        let ports = &mut self.stage.config.config.exposed_ports;
                        ports.insert(port, kiln_oci::image::Empty {});
                    }
                }
            }
            Action::Volume(volumes) => {
                for volume in volumes {
                    let path = self.expand(bake, file, volume)?;
                    if path.is_empty() {
                        return Err(wrong(
                            volume,
                            "VOLUME is empty once its variables are replaced".to_owned(),
                            "",
                        ));
                    }
                    let volumes = &mut self.stage.config.config.volumes;
                    volumes.insert(path, kiln_oci::image::Empty {});
                }
            }
            Action::StopSignal(signal) => {
                let name = self.expand(bake, file, signal)?;
                let number = name
                    .parse::<u8>()
                    .is_ok_and(|number| (1..65).contains(&number));
                let bare = name.strip_prefix("SIG").unwrap_or(&name);
                let named = bare
                    .chars()
                    .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || "+-".contains(c))
                    && bare.starts_with(|c: char| c.is_ascii_uppercase());
                if !number && !named {
                    return Err(wrong(
                        signal,
                        format!("`{name}` is not a signal"),
                        "write SIGTERM or 15",
                    ));
                }
                self.stage.config.config.stop_signal = Some(name);
            }
            Action::Healthcheck(check) => {
                self.stage.config.config.healthcheck = Some(self.healthcheck(check));
            }
            Action::Onbuild(text) => self.stage.config.config.on_build.push(text.clone()),
            Action::Maintainer(name) => self.stage.config.author = Some(name.clone()),
        }
        Ok(())
    }

    fn healthcheck(&self, check: &Healthcheck) -> kiln_oci::image::Healthcheck {
        match check {
            Healthcheck::None => kiln_oci::image::Healthcheck {
                test: vec!["NONE".to_owned()],
                ..Default::default()
            },
            Healthcheck::Check {
                command,
                interval,
                timeout,
                start_period,
                start_interval,
                retries,
            } => {
                let mut test = match command {
                    Command::Exec(_) => vec!["CMD".to_owned()],
                    Command::Shell(_) => vec!["CMD-SHELL".to_owned()],
                };
                match command {
                    Command::Exec(words) => test.extend(words.clone()),
                    Command::Shell(line) => test.push(line.clone()),
                }
                kiln_oci::image::Healthcheck {
                    test,
                    interval: *interval,
                    timeout: *timeout,
                    start_period: *start_period,
                    start_interval: *start_interval,
                    retries: *retries,
                }
            }
        }
    }

    /// `path` from the working folder on.
    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        let workdir = self.stage.config.config.working_dir.trim_end_matches('/');
        format!("{workdir}/{path}")
    }

    pub(super) fn name(&self, instruction: &Instruction) -> String {
        format!("{}{}", self.label, instruction.text)
    }

    /// What this stage is on, mounted for looking.
    pub(super) fn view(
        &self,
        bake: &Bake<'_>,
        layers: &[Layer],
        folder: &Path,
    ) -> Result<Overlay, BakeError> {
        Overlay::mount(&bake.lowers(layers)?, folder)
            .map_err(|error| BakeError::View(std::io::Error::other(error)))
    }

    /// The folder is made where it is not there, as its user's.
    fn workdir(&mut self, bake: &mut Bake<'_>, path: String) -> Result<(), BakeError> {
        self.stage.config.config.working_dir.clone_from(&path);
        let user = self.stage.config.config.user.clone();
        let inputs = Inputs::Folder {
            path: &path,
            owner: &user,
        };
        let (layers, date) = (self.stage.layers.clone(), self.stage.date);
        let name = format!("{}WORKDIR {path}", self.label);
        let layer = bake.step(&name, &layers, date, &inputs, |bake| {
            let scratch = Scratch::new(bake.request.work, bake.store)?;
            let view = self.view(bake, &layers, &scratch.folder("look")?)?;
            let owner = match user.as_str() {
                "" => (0, 0),
                user => owner(user, view.path()).map_err(|reason| copy_error(&name, reason))?,
            };
            let mut placing = Placing {
                view: view.path(),
                owner: Some(owner),
                chmod: None,
                date,
                tree: Tree::new(),
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
            Ok(bake.store.add_layer(&tree)?)
        })?;
        // One that says nothing is no layer of the image.
        if layer.diff_id != empty_layer(bake, date)? {
            self.stage.layers.push(layer);
        }
        Ok(())
    }

    fn copy(
        &mut self,
        bake: &mut Bake<'_>,
        file: &Dockerfile,
        instruction: &Instruction,
        copy: &Copy,
        is_add: bool,
    ) -> Result<Layer, BakeError> {
        let complain = |text: &Text, what: String, help: &str| {
            BakeError::Dockerfile(file.error(Complaint::error(text.whole(), what, help)))
        };
        let name = self.name(instruction);
        let written_to = self.expand(bake, file, &copy.to)?;
        let mut to = self.absolute(&written_to);
        if written_to == "." || written_to.ends_with("/.") || written_to.ends_with("/..") {
            to.push('/');
        }
        if copy.sources.len() > 1 && !to.ends_with('/') {
            return Err(complain(
                &copy.to,
                "several sources need a folder as their destination".to_owned(),
                "end it with `/`",
            ));
        }
        let owner_text = match &copy.chown {
            Some(text) => Some(self.expand(bake, file, text)?).filter(|owner| !owner.is_empty()),
            None => None,
        };
        let chmod_text = match &copy.chmod {
            Some(text) => Some((self.expand(bake, file, text)?, text)),
            None => None,
        };
        let chmod = match &chmod_text {
            Some((mode, text)) => Some(Chmod::parse(mode).ok_or_else(|| {
                complain(
                    text,
                    format!("`{mode}` is not a mode"),
                    "write it as 755 or u=rwX,go=rX",
                )
            })?),
            None => None,
        };
        let mut exclude = Ignore::default();
        let mut excluded = Vec::new();
        for text in &copy.exclude {
            let pattern = self.expand(bake, file, text)?;
            exclude.add(&pattern).ok_or_else(|| {
                complain(text, format!("`{pattern}` is no pattern"), "close its `[`")
            })?;
            excluded.push(pattern);
        }
        let mut paths = Vec::new();
        let mut heredocs = Vec::new();
        for source in &copy.sources {
            match source {
                CopySource::Path(text) => {
                    let path = self.expand(bake, file, text)?;
                    let remote = ["http://", "https://", "git://", "git@", "ssh://"]
                        .iter()
                        .any(|scheme| path.starts_with(scheme));
                    if remote {
                        let help = if is_add {
                            "fetch it before the bake, and copy it"
                        } else {
                            "COPY takes files of the context"
                        };
                        return Err(complain(
                            text,
                            format!(
                                "`{path}` is fetched from the network, which this version of kiln does not do"
                            ),
                            help,
                        ));
                    }
                    paths.push((path, text));
                }
                CopySource::Heredoc(heredoc) => {
                    let mut content = heredoc.chomped();
                    if heredoc.expand {
                        let mut scope = self.scope();
                        content = scope.heredoc(file, &heredoc.content, &content)?;
                        bake.warnings.extend(scope.warnings);
                    }
                    heredocs.push((heredoc.name.clone(), content));
                }
            }
        }
        let from = self.copied_from(bake, file, copy)?;
        let unfound = |error: SourceError, text: &Text| match error {
            SourceError::Io { path, source } => BakeError::io(path)(source),
            error @ (SourceError::Missing(_) | SourceError::Pattern(_)) => {
                let help = match &copy.from {
                    None => {
                        "the path is relative to the context, the folder at the end of the command"
                    }
                    Some(_) => "the path is relative to the root of what is copied from",
                };
                complain(text, error.to_string(), help)
            }
            error @ SourceError::Ignored(_) => complain(
                text,
                error.to_string(),
                "take it back there with `!`, or copy something else",
            ),
        };
        let find = |root: &mut Root<'_>| -> Result<Vec<_>, BakeError> {
            let mut all = Vec::new();
            for (path, text) in &paths {
                if copy.parents {
                    all.push(
                        root.find_with_parents(path)
                            .map_err(|error| unfound(error, text))?,
                    );
                } else {
                    let found = root.find(path).map_err(|error| unfound(error, text))?;
                    if found.len() > 1
                        && !to.ends_with('/')
                        && found.iter().any(|one| !one.is_folder)
                    {
                        return Err(complain(
                            &copy.to,
                            format!(
                                "`{path}` is several files, which need a folder as their destination"
                            ),
                            "end it with `/`",
                        ));
                    }
                    all.extend(found);
                }
            }
            Ok(all)
        };
        let nothing = Ignore::default();
        let origin = match &from {
            CopyFrom::Folder { path, is_context } => Origin::Files(find(&mut Root {
                path,
                ignore: Some(if *is_context {
                    bake.request.ignore
                } else {
                    &nothing
                }),
                exclude: &exclude,
                seen: Some(&mut bake.seen),
            })?),
            CopyFrom::Stage(stage) => Origin::Layers {
                layers: stage.layers.iter().map(|layer| layer.diff_id).collect(),
                sources: paths.iter().map(|(path, _)| path.clone()).collect(),
                exclude: excluded,
                parents: copy.parents,
            },
        };
        if is_add
            && copy.unpack != Some(false)
            && let (Origin::Files(found), CopyFrom::Folder { path, .. }) = (&origin, &from)
        {
            refuse_archives(found, path).map_err(|reason| copy_error(&name, reason))?;
        }
        if is_add && copy.keep_git_dir || copy.checksum.is_some() {
            return Err(complain(
                &copy.to,
                "--checksum and --keep-git-dir are for what is fetched, which this version of kiln does not do".to_owned(),
                "take them out",
            ));
        }
        let to_folder = if copy.parents {
            format!("{}/", to.trim_end_matches('/'))
        } else {
            to.clone()
        };
        let inputs = Inputs::Copy {
            origin: &origin,
            heredocs: &heredocs,
            to: &to_folder,
            owner: owner_text.as_deref(),
            chmod: chmod_text.as_ref().map(|(mode, _)| mode.as_str()),
            link: copy.link,
        };
        let (layers, date) = (self.stage.layers.clone(), self.stage.date);
        // What is linked does not depend on what is below, except for the names of its owners.
        let named = owner_text
            .as_ref()
            .is_some_and(|owner| !owner.chars().all(|c| c.is_ascii_digit() || c == ':'));
        let below: &[Layer] = if copy.link && !named { &[] } else { &layers };
        bake.step(&name, below, date, &inputs, |bake| {
            let scratch = Scratch::new(bake.request.work, bake.store)?;
            let view = self.view(bake, &layers, &scratch.folder("look")?)?;
            let empty = scratch.folder("empty")?;
            let owner = match &owner_text {
                None => None,
                Some(text) => {
                    Some(owner(text, view.path()).map_err(|reason| copy_error(&name, reason))?)
                }
            };
            let mut placing = Placing {
                view: if copy.link { &empty } else { view.path() },
                owner,
                chmod: chmod.as_ref(),
                date,
                tree: Tree::new(),
            };
            // Mounted until the layer is written, since its files are read from it.
            let mounted;
            match (&origin, &from) {
                (Origin::Files(found), CopyFrom::Folder { path, .. }) => {
                    for one in found {
                        placing
                            .put(one, path, &to_folder)
                            .map_err(|error| placed(&name, error))?;
                    }
                }
                (_, CopyFrom::Stage(stage)) => {
                    mounted = self.view(bake, &stage.layers, &scratch.folder("from")?)?;
                    let mut root = Root {
                        path: mounted.path(),
                        ignore: None,
                        exclude: &exclude,
                        seen: None,
                    };
                    for one in &find(&mut root)? {
                        placing
                            .put(one, mounted.path(), &to_folder)
                            .map_err(|error| placed(&name, error))?;
                    }
                }
                (Origin::Layers { .. }, CopyFrom::Folder { .. }) => {}
            }
            for (name, content) in &heredocs {
                placing
                    .bytes(name, content.clone(), &to_folder)
                    .map_err(|error| placed(name, error))?;
            }
            let mut tree = placing.tree;
            tree.clamp_mtime(date);
            Ok(bake.store.add_layer(&tree)?)
        })
    }

    fn copied_from(
        &self,
        bake: &mut Bake<'_>,
        file: &Dockerfile,
        copy: &Copy,
    ) -> Result<CopyFrom, BakeError> {
        match &copy.from {
            None => Ok(CopyFrom::Folder {
                path: bake.request.context.to_owned(),
                is_context: true,
            }),
            Some(name) => self.named(bake, file, name),
        }
    }

    /// What `--from` or `from=` names: a stage before this one, a named context, or an image.
    pub(super) fn named(
        &self,
        bake: &mut Bake<'_>,
        file: &Dockerfile,
        name: &Text,
    ) -> Result<CopyFrom, BakeError> {
        let stages = bake.request.dockerfile;
        if let Some(path) = bake.request.contexts.get(&name.text) {
            return Ok(CopyFrom::Folder {
                path: path.clone(),
                is_context: false,
            });
        }
        if let Some(index) = stages.stage(&name.text, self.index) {
            return Ok(CopyFrom::Stage(bake.stage(index)?));
        }
        if stages.stage(&name.text, stages.stages.len()).is_some() {
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
            return Ok(CopyFrom::Stage(Rc::new(scratch())));
        }
        bake.image(&name.text, &name.whole()).map(CopyFrom::Stage)
    }

    /// What a RUN finds in its environment: ENV, ARG where no ENV has the name, and the network's own; and what of it is in its key.
    pub(super) fn environment(&self, bake: &Bake<'_>) -> (Environment, Environment) {
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
        for (name, value) in &self.args {
            if !has(&env, name) {
                env.push((name.clone(), value.clone()));
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
}

/// Names with their values.
type Environment = Vec<(String, String)>;

/// Where a COPY or a mount takes from.
pub(super) enum CopyFrom {
    Folder { path: PathBuf, is_context: bool },
    Stage(Rc<Stage>),
}

fn copy_error(step: &str, reason: String) -> BakeError {
    BakeError::DockerfileStep {
        step: step.to_owned(),
        reason,
    }
}

fn placed(step: &str, error: PlaceError) -> BakeError {
    match error {
        PlaceError::Io { path, source } => BakeError::io(path)(source),
        PlaceError::Layer(error) => BakeError::Layer(error),
        error @ (PlaceError::NotAFolder(_) | PlaceError::IsAFolder(_)) => {
            copy_error(step, error.to_string())
        }
    }
}

fn empty_layer(bake: &Bake<'_>, date: i64) -> Result<kiln_model::Digest, BakeError> {
    let mut tree = Tree::new();
    tree.clamp_mtime(date);
    Ok(bake.store.add_layer(&tree)?.diff_id)
}

/// `user`, `user:group` or `:group`, by the image's own files; a number needs none.
fn owner(text: &str, view: &Path) -> Result<(u32, u32), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let (uid, primary) = match (user, user.parse::<u32>()) {
        ("", _) => (0, 0),
        (_, Ok(number)) => (number, number),
        (name, Err(_)) => line(view, "etc/passwd", name)?
            .and_then(|fields| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))
            .ok_or_else(|| {
                format!(
                    "the image has no user `{name}` in /etc/passwd: use a number, or add it before"
                )
            })?,
    };
    let gid = match group.map(|group| (group, group.parse::<u32>())) {
        None => primary,
        Some((_, Ok(number))) => number,
        Some((name, Err(_))) => line(view, "etc/group", name)?
            .and_then(|fields| fields.get(2)?.parse().ok())
            .ok_or_else(|| {
                format!(
                    "the image has no group `{name}` in /etc/group: use a number, or add it before"
                )
            })?,
    };
    Ok((uid, gid))
}

/// The fields of the line of `name`, in a file of the image.
fn line(view: &Path, path: &str, name: &str) -> Result<Option<Vec<String>>, String> {
    let failed = |error: std::io::Error| format!("the image's /{path} can't be read: {error}");
    let real = view.join(resolve(view, Path::new(path), true).map_err(failed)?);
    let mut text = String::new();
    match std::fs::File::open(&real) {
        Ok(file) => file
            .take(PASSWD_LIMIT)
            .read_to_string(&mut text)
            .map(drop)
            .map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(text
        .lines()
        .map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>())
        .find(|fields| fields[0] == name))
}

/// ADD would unpack these; copying them as they are would be another image.
fn refuse_archives(found: &[super::source::Found], root: &Path) -> Result<(), String> {
    for one in found.iter().filter(|one| !one.is_folder) {
        let Some(entry) = one.entries.first() else {
            continue;
        };
        if is_archive(&root.join(&entry.at)) {
            return Err(format!(
                "`{}` is an archive, which ADD would unpack and this version of kiln does not: unpack it before, or COPY it as it is",
                one.name.to_string_lossy()
            ));
        }
    }
    Ok(())
}

fn is_archive(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(512).read_to_end(&mut start));
    let magic: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    read.is_ok()
        && (magic.iter().any(|magic| start.starts_with(magic))
            || start.get(257..262) == Some(b"ustar"))
}

/// `80`, `80/udp`, `8000-8002/tcp`, and of `host:container` the container's.
fn exposed(text: &str) -> Option<Vec<String>> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, protocol.to_lowercase()),
        None => (text, "tcp".to_owned()),
    };
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return None;
    }
    let ports = ports.rsplit(':').next()?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then(|| {
        (first..=last)
            .map(|port| format!("{port}/{protocol}"))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_a_range() {
        assert_eq!(exposed("80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed("127.0.0.1:8080:53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(exposed("8000-8001").unwrap(), ["8000/tcp", "8001/tcp"]);
        for wrong in ["x", "80/x", "9-8", "70000", ""] {
            assert_eq!(exposed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn owners_are_looked_up_in_the_image_and_never_outside() {
        let view = tempfile::tempdir().unwrap();
        let etc = view.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(etc.join("passwd"), "app:x:1000:1001::/:/bin/sh\n").unwrap();
        std::os::unix::fs::symlink("/etc/group-of-nobody", etc.join("group")).unwrap();
        for (text, expected) in [
            ("app", Some((1000, 1001))),
            ("app:7", Some((1000, 7))),
            ("5", Some((5, 5))),
            ("5:6", Some((5, 6))),
            (":6", Some((0, 6))),
            ("root", None),
            ("app:root", None),
        ] {
            assert_eq!(owner(text, view.path()).ok(), expected, "{text}");
        }
    }
}
