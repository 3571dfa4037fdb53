//! RUN: a command in a sealed container over what the stage has so far.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use kiln_config::dockerfile::{
    Command, Complaint, Dockerfile, Flag, Instruction, Run, is_heredoc_mark,
};
use kiln_engine::sandbox::SandboxNetwork;
use kiln_engine::{MountSource, SandboxMount, StepLink, StepNetwork, host_resolver};
use kiln_oci::{Layer, Tree};

use super::bake::Bake;
use super::key::{Inputs, Network};
use super::mount_points;
use super::mounts::Planned;
use super::schedule::lock;
use super::stage_builder::StageBuilder;
use super::step::Made;
use crate::error::BakeError;
use crate::granted::PROXIES;
use crate::leaks;
use crate::progress::BakeProgress;
use crate::step::clock;
use crate::step::container::{Container, interact, run};
use crate::step::scratch::Scratch;

/// Where a here-document that is a script of its own is found while it runs.
const SCRIPTS: &str = "run/kiln-heredoc";
/// The build argument that names the sandbox.
const HOSTNAME: &str = "BUILDKIT_SANDBOX_HOSTNAME";

/// Names with their values.
type Environment = Vec<(String, String)>;

/// A command with what it is run on.
struct Planning<'a> {
    name: &'a str,
    argv: &'a [String],
    env: Environment,
    user: &'a str,
    workdir: &'a str,
    script: Option<&'a str>,
    mounts: &'a [Planned<'a>],
    network: Network,
    privileged: bool,
    layers: &'a [Layer],
    date: i64,
    /// For who looks into a failed step.
    shell: String,
}

impl StageBuilder {
    pub(super) fn run(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        instruction: &Instruction,
        run: &Run,
    ) -> Result<Layer, BakeError> {
        let (network, privileged) = rights(bake, file, instruction, &run.flags)?;
        let mounts = self.mounts(bake, file, run)?;
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
            mounts: mounts.iter().map(Planned::key).collect(),
            network: &network,
            privileged,
        };
        let (layers, date) = (self.stage.layers.clone(), self.stage.date);
        let name = self.name(instruction);
        bake.step(self.index, &name, &layers, date, &inputs, || {
            let planning = Planning {
                name: &name,
                argv: &argv,
                env,
                user: &user,
                workdir: &workdir,
                script: script.as_deref(),
                mounts: &mounts,
                network,
                privileged,
                layers: &layers,
                date,
                shell: self.shell().swap_remove(0),
            };
            bake.execute(file, planning)
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
        let mut keyed = env.clone();
        if let Some(name) = bake.request.build_args.get(HOSTNAME) {
            keyed.push((HOSTNAME.to_owned(), name.clone()));
        }
        // One of its two spellings is enough, as for BuildKit.
        for name in &PROXIES {
            let given = &bake.request.build_args;
            let other = || given.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            let value = given.get(*name).or_else(|| other().map(|(_, value)| value));
            if let Some(value) = value.filter(|_| !has(&env, name)) {
                env.push(((*name).to_owned(), value.clone()));
            }
        }
        (env, keyed)
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

/// The network and the rights that a RUN asks for, where it may have them.
fn rights(
    bake: &Bake<'_>,
    file: &Dockerfile,
    instruction: &Instruction,
    flags: &[Flag],
) -> Result<(Network, bool), BakeError> {
    let granted = bake.request.granted;
    let (mut network, mut privileged) = (Network::Default, false);
    for flag in flags {
        let value = flag.value.as_ref().map_or("", |value| value.text.as_str());
        let span = flag
            .value
            .as_ref()
            .map_or(instruction.span.clone(), |value| value.whole());
        let (what, help) = match (flag.name.as_str(), value) {
            ("mount", _) | ("security", "sandbox") => continue,
            ("network", "none") => {
                network = Network::None;
                continue;
            }
            ("network", "default") => continue,
            ("network", "host") if granted.network_host => {
                network = Network::Host;
                continue;
            }
            ("security", "insecure") if granted.security_insecure => {
                privileged = true;
                continue;
            }
            ("network", "host") => (
                "a RUN has the host's network only where the caller allows it".to_owned(),
                "bake with --allow network.host",
            ),
            ("security", "insecure") => (
                "a RUN has all rights only where the caller allows it".to_owned(),
                "bake with --allow security.insecure",
            ),
            ("network", other) => (
                format!("there is no network `{other}` for a RUN"),
                "it is default, none or host",
            ),
            ("security", other) => (
                format!("there is no security `{other}` for a RUN"),
                "it is sandbox or insecure",
            ),
            (name, value) => (
                format!("--{name}={value} is not supported by this version of kiln"),
                "take it out",
            ),
        };
        return Err(BakeError::Dockerfile(
            file.error(Complaint::error(span, what, help)),
        ));
    }
    if granted.no_network {
        network = Network::None;
    }
    Ok((network, privileged))
}

impl Bake<'_> {
    fn execute(&self, file: &Dockerfile, planning: Planning<'_>) -> Result<Made, BakeError> {
        let Planning {
            name,
            argv,
            mut env,
            user,
            workdir,
            script,
            mounts: planned,
            network,
            privileged,
            layers,
            date,
            shell,
        } = planning;
        let scratch = Scratch::new(self.request.work)?;
        let (upper, work) = (scratch.folder("upper")?, scratch.folder("work")?);
        let mut mounted = self.mounted(file, planned, &scratch)?;
        env.retain(|(name, _)| !mounted.env.iter().any(|(other, _)| other == name));
        env.append(&mut mounted.env);
        let mut mounts = std::mem::take(&mut mounted.mounts);
        let own = scratch.folder("own")?;
        let mut give = |to: &str, name: &str, text: &str, mode: u32| {
            let path = own.join(name);
            fs::write(&path, text)
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
                .map_err(BakeError::io(&path))?;
            mounts.push(SandboxMount {
                to: to.to_owned(),
                writable: false,
                source: MountSource::Folder {
                    root: path,
                    inside: PathBuf::new(),
                },
            });
            Ok::<_, BakeError>(())
        };
        if let Some(text) = script {
            give(&format!("/{SCRIPTS}/script"), "script", text, 0o755)?;
        }
        let hostname = self.request.build_args.get(HOSTNAME);
        let hostname = hostname.map_or("kiln", String::as_str);
        let hosts =
            format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        give("/etc/hosts", "hosts", &hosts, 0o644)?;
        let network = match network {
            Network::None => SandboxNetwork::None,
            Network::Host => {
                let text = host_resolver().map_err(BakeError::io("/etc/resolv.conf"))?;
                give("/etc/resolv.conf", "resolv.conf", &text, 0o644)?;
                SandboxNetwork::Host
            }
            Network::Default => {
                let (link, resolver) = self.link()?;
                give("/etc/resolv.conf", "resolv.conf", &resolver, 0o644)?;
                SandboxNetwork::Outbound(link)
            }
        };
        let made_for = {
            let view = self.view(layers, &scratch.folder("look")?)?;
            mount_points::find(view.path(), &mut mounts).map_err(BakeError::View)?
        };
        let mut lowers = self.lowers(layers)?;
        if let Some(other) = self.request.move_clock
            && !other.not_for.contains(name)
        {
            let folder = scratch.folder("clock")?;
            let moved = clock::Moved::new(folder, other.moved).map_err(BakeError::io(&work))?;
            lowers.extend(moved.map(|moved| moved.lower()));
        }
        let is_host = matches!(network, SandboxNetwork::Host);
        let container = Container {
            mounts,
            network,
            privileged,
            hostname,
            shown: &|line| self.request.granted.masked(line),
            stop: &|| self.schedule.is_stopped(),
            ..Container::sealed(self.request.tag.name(), name, lowers, (&upper, &work))
        };
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut said = |line: &str| self.said(name, line);
        let ran = run(&container, &argv, env.clone(), user, workdir, &mut said);
        if let Err(error @ BakeError::Step { .. }) = &ran
            && self.request.granted.shell_on_error
            // What the others do is for nothing, and what they say would be in the way.
            && self.schedule.stop()
        {
            self.tell(BakeProgress::Shell {
                why: error.to_string(),
            });
            let mut container = container;
            if let SandboxNetwork::Outbound(_) = container.network {
                // The other one goes with its step, and not at once.
                container.network = SandboxNetwork::Outbound(self.link()?.0);
            }
            let shell = [shell.as_str()];
            if let Err(failed) = interact(&container, &shell, env, user, workdir) {
                self.tell(BakeProgress::Shell {
                    why: kiln_fs::with_causes(&failed),
                });
            }
        }
        let used_network = ran?;
        let mut tree = Tree::from_upper(&upper)?;
        mount_points::remove(&mut tree, &made_for);
        tree.clamp_mtime(date);
        if !tree.is_empty() {
            let view = self.view(layers, &scratch.folder("below")?)?;
            tree.leave_out_unchanged(view.path())?;
        }
        Ok(Made {
            // Also those of other steps, by way of a cache.
            given: leaks::given(&tree, self.request.granted.secrets.values())?,
            layer: self.add(&tree)?,
            used_network: used_network || is_host,
        })
    }

    /// A place in the bake's network, and what its resolver's configuration says.
    fn link(&self) -> Result<(StepLink, String), BakeError> {
        let mut network = lock(&self.network);
        let network = match &mut *network {
            Some(network) => network,
            none => none.insert(StepNetwork::open(self.store.dir())?),
        };
        Ok((network.link()?, network.resolver().to_owned()))
    }
}
