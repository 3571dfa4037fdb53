//! A bake of a Dockerfile alone: what was typed made into a request, and what happens told as for a definition's images.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use kiln_bake::{
    BakeError, BakedDockerfile, Checkout, ContextFolder, Deferred, DockerfileRequest, Granted,
    Listings, Registries, Tagging,
};
use kiln_config::dockerfile::{BaseValues, Complaint, Dockerfile, Ignore, LintInputs};
use kiln_oci::{Output, Store};

mod contexts;

use crate::baked::{tell, write_out};
use crate::failure::Failure;
use crate::git::CommitLookup;
use crate::granted::{Entitlement, Network};
use crate::output;
use crate::progress::{Live, Reporting};
use crate::{args, files, git, granted, named, settings, upkeep};

const CONTEXT: &str = "the context";

/// The build argument that is in place of the `check` directive.
const CHECK: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// As it was typed.
struct Given {
    secrets: Vec<String>,
    ssh: Vec<String>,
    allow: Vec<Entitlement>,
    network: Network,
}

pub(crate) struct DockerfileSettings {
    path: PathBuf,
    /// The path as it was typed.
    typed: PathBuf,
    context: PathBuf,
    pub(crate) tag: Option<String>,
    build_args: BTreeMap<String, String>,
    target: Option<String>,
    bases: BTreeMap<String, String>,
    /// Those of `bases` that `--build-context` gave.
    named_images: BTreeSet<String>,
    registries: Registries,
    /// Where the context is no folder of the caller's.
    unpacked: Option<ContextFolder>,
    /// Folders, and addresses of repositories.
    contexts: BTreeMap<String, String>,
    platform: Option<String>,
    given: Given,
    /// What was given, once it is read.
    granted: Granted,
    allow_leaks: Vec<String>,
    no_cache: bool,
    pub(crate) check: bool,
}

impl DockerfileSettings {
    pub(crate) fn new(
        path: PathBuf,
        arguments: args::Dockerfile,
        contexts: Vec<String>,
    ) -> Result<Self, Failure> {
        let args::Dockerfile {
            dockerfile: _,
            tag,
            build_args,
            target,
            bases,
            pull,
            insecure_registries,
            build_contexts,
            platform,
            secrets,
            ssh,
            allow,
            allow_leaks,
            shell_on_error,
            network,
            no_cache,
            check,
        } = arguments;
        if tag.is_none() && !check {
            return Err(Failure::Arguments {
                what: "a Dockerfile's image needs a tag",
                help: "give it one: --tag NAME:VERSION",
            });
        }
        let context = match &contexts[..] {
            [] => PathBuf::from("."),
            [one] => PathBuf::from(one),
            _ => {
                return Err(Failure::Arguments {
                    what: "a Dockerfile has one context",
                    help: "name one folder: kiln bake --dockerfile FILE --tag TAG CONTEXT",
                });
            }
        };
        // As docker has it: a name alone is the caller's own variable, and one that it has not is not given.
        let mut given = BTreeMap::new();
        for one in build_args {
            if let Some((name, value)) = one.split_once('=') {
                given.insert(name.to_owned(), value.to_owned());
                continue;
            }
            match std::env::var(&one) {
                Ok(value) => {
                    given.insert(one, value);
                }
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(Failure::Arguments {
                        what: "the variable that a --build-arg names is no UTF-8",
                        help: "give another value: --build-arg NAME=VALUE",
                    });
                }
            }
        }
        let build_args = given;
        // As BuildKit has it, a named context may be an image, and is then one wherever the name stands.
        let mut bases: BTreeMap<String, String> = bases.into_iter().collect();
        let mut named_images = BTreeSet::new();
        let mut folders = Vec::new();
        for (name, value) in build_contexts {
            let image = if let Some(image) = value.strip_prefix("docker-image://") {
                image.to_owned()
            } else if let Some(layout) = value.strip_prefix("oci-layout://") {
                format!("oci:{layout}")
            } else {
                folders.push((name, value));
                continue;
            };
            named_images.insert(name.to_lowercase());
            bases.insert(name, image);
        }
        Ok(Self {
            typed: path.clone(),
            path,
            context,
            tag,
            build_args,
            target,
            bases,
            named_images,
            registries: settings::registries(pull, insecure_registries),
            unpacked: None,
            contexts: folders.into_iter().collect(),
            platform,
            given: Given {
                secrets,
                ssh,
                allow,
                network,
            },
            granted: Granted {
                shell_on_error,
                ..Granted::default()
            },
            allow_leaks,
            no_cache,
            check,
        })
    }

    /// Reads what the steps are given: once, since it may come through a pipe.
    pub(crate) fn take_granted(&mut self) -> Result<(), Failure> {
        let Given {
            secrets,
            ssh,
            allow,
            network,
        } = &self.given;
        self.granted = Granted {
            shell_on_error: self.granted.shell_on_error,
            ..granted::granted(secrets, ssh, allow, *network)?
        };
        Ok(())
    }

    pub(crate) fn read(&self) -> Result<Dockerfile, Failure> {
        let bytes = match &self.unpacked {
            // A file of the context, and none of the host's.
            Some(folder) => files::read_inside(folder.path(), CONTEXT, &self.path),
            None => std::fs::read(&self.path),
        };
        parsed(bytes, &self.typed, &self.build_args)
    }

    /// All warnings, without baking: of the target and what it needs, or of every stage.
    pub(crate) fn lint(
        &self,
        dockerfile: &Dockerfile,
        root: Option<&Path>,
    ) -> Result<Vec<Complaint>, Failure> {
        let ignore = read_ignore(&self.path, &self.context)?;
        let store = root
            .filter(|root| root.join("store").is_dir())
            .map(Store::open)
            .transpose()?;
        let bases = match &store {
            Some(store) => named::bases(store, &self.bases)?,
            None => self.bases.clone(),
        };
        let base = |name: &str| {
            let known = kiln_bake::known_base(store.as_ref()?, &bases, name)?;
            Some(BaseValues {
                has_shell: !known.shell.is_empty(),
                env: known.env,
            })
        };
        let stages = dockerfile.stages.len();
        Ok(dockerfile.lint(&LintInputs {
            build_args: &self.build_args,
            target: self
                .target
                .as_ref()
                .and_then(|name| dockerfile.stage(name, stages)),
            arch: kiln_bake::arch(),
            ignore: &ignore,
            base: Some(&base),
        }))
    }

    /// Where the Dockerfile and its context are in a repository. `None` also where nothing of one can be had again.
    fn commit(&self, ignore: &Ignore, listings: &Listings) -> git::LookupResult {
        if self.unpacked.is_some() {
            return Ok(None);
        }
        // Where they are not there the bake says it.
        let (Ok(dockerfile), Ok(context)) = (self.path.canonicalize(), self.context.canonicalize())
        else {
            return Ok(None);
        };
        let inputs = inputs(dockerfile, context.clone(), ignore);
        git::commit_without_lock(&context, &inputs, listings)
    }

    /// `None` where the repository has not both.
    fn checkout(&self, commit: &git::Commit) -> Option<Checkout> {
        let dockerfile = self.path.canonicalize().ok()?;
        let context = self.context.canonicalize().ok()?;
        // The folder of the work tree.
        let depth = commit.prefix.components().count();
        let root = context.ancestors().nth(depth)?;
        Some(Checkout {
            sha: commit.sha.clone(),
            dirty: commit.dirty,
            changed: commit
                .changed
                .as_ref()
                .map(|path| path.display().to_string()),
            dockerfile: dockerfile.strip_prefix(root).ok()?.to_str()?.to_owned(),
            context: commit.prefix.to_str()?.to_owned(),
        })
    }

    pub(crate) fn bake(
        &self,
        root: &Path,
        dockerfile: &Dockerfile,
        outputs: &[Output],
        reporting: Reporting,
    ) -> Result<BakedDockerfile, Failure> {
        contexts::must_be_folder(&self.context)?;
        let ignore = read_ignore(&self.path, &self.context)?;
        let work = settings::work(root)?;
        let contexts = self.named_contexts(&work)?;
        let store = Store::open(root)?;
        let bases = named::bases(&store, &self.bases)?;
        let tag = self.tag.clone().unwrap_or_default();
        let baked = std::thread::scope(|scope| {
            let commit = CommitLookup::start(scope, |listings| self.commit(&ignore, listings));
            let checkout = || self.checkout(commit.found()?);
            let request = DockerfileRequest {
                dockerfile,
                context: &self.context,
                ignore: &ignore,
                tag: Tagging::As(&tag),
                tests: &[],
                build_args: &self.build_args,
                target: self.target.as_deref(),
                bases: &bases,
                named_images: &self.named_images,
                registries: &self.registries,
                contexts: &contexts.folders,
                repositories: &contexts.repositories,
                granted: &self.granted,
                allow_leaks: &self.allow_leaks,
                platform: self.platform.as_deref(),
                no_cache: self.no_cache,
                work: &work,
                checkout: Deferred::new(&checkout),
                listings: commit.listings(),
                move_clock: None,
            };
            let baked = carry_out(&store, &request, &tag, reporting)?;
            commit.told("so `kiln verify` will not know the commit", output::warning);
            Ok::<_, Failure>(baked)
        })?;
        tell(
            &format!("{tag}: baked"),
            &baked.digest,
            &baked.steps,
            reporting,
        )?;
        for output in outputs {
            write_out(&store, (&baked.digest, &tag), &tag, output, reporting)?;
        }
        if baked.steps.iter().any(|step| !step.cached) {
            upkeep::after_bake(root, &store, reporting)?;
        }
        Ok(baked)
    }
}

/// What of a repository a Dockerfile's bake takes. Paths are those of [`read_ignore`] and its like.
pub(crate) fn inputs(
    dockerfile: PathBuf,
    context: PathBuf,
    ignore: &Ignore,
) -> Vec<git::Input<'_>> {
    // They are read also where the context does not have them.
    let rules = ignore_files(&dockerfile, &context);
    let rules = rules.into_iter().filter(|path| path.exists());
    let files = rules.chain([dockerfile]).map(git::Input::from);
    files
        .chain([git::Input::context(context, ignore)])
        .collect()
}

pub(crate) fn read(
    path: &Path,
    build_args: &BTreeMap<String, String>,
) -> Result<Dockerfile, Failure> {
    parsed(std::fs::read(path), path, build_args)
}

/// A Dockerfile that must be inside `root`, which is called `name`.
pub(crate) fn read_inside(
    root: &Path,
    name: &str,
    path: &Path,
    build_args: &BTreeMap<String, String>,
) -> Result<Dockerfile, Failure> {
    parsed(files::read_inside(root, name, path), path, build_args)
}

/// `typed` is what a person calls it.
fn parsed(
    bytes: std::io::Result<Vec<u8>>,
    typed: &Path,
    build_args: &BTreeMap<String, String>,
) -> Result<Dockerfile, Failure> {
    let bytes = bytes.map_err(|source| Failure::ReadDockerfile {
        path: typed.to_owned(),
        source,
    })?;
    let name = typed.display().to_string();
    let check = build_args.get(CHECK).map(String::as_str);
    Ok(Dockerfile::parse_bytes(name, bytes, check)?)
}

fn ignore_files(dockerfile: &Path, context: &Path) -> [PathBuf; 2] {
    let mut own = dockerfile.to_owned().into_os_string();
    own.push(".dockerignore");
    [PathBuf::from(own), context.join(".dockerignore")]
}

/// `Dockerfile.dockerignore` beside the Dockerfile, or the context's `.dockerignore`.
pub(crate) fn read_ignore(dockerfile: &Path, context: &Path) -> Result<Ignore, Failure> {
    let beside = match dockerfile.parent() {
        _ if dockerfile.starts_with(context) => (context, CONTEXT),
        Some(folder) if !folder.as_os_str().is_empty() => (folder, "the Dockerfile's folder"),
        _ => (Path::new("."), "the Dockerfile's folder"),
    };
    let [own, of_context] = ignore_files(dockerfile, context);
    for (path, (root, name)) in [(own, beside), (of_context, (context, CONTEXT))] {
        match files::read_text_inside(root, name, &path) {
            Ok(text) => {
                return Ignore::parse(&text).map_err(|line| Failure::Ignore { path, line });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(Failure::ReadDockerfile { path, source }),
        }
    }
    Ok(Ignore::default())
}

/// Bakes, and tells what happens as for any image, called `label`.
pub(crate) fn carry_out(
    store: &Store,
    request: &DockerfileRequest<'_>,
    label: &str,
    reporting: Reporting,
) -> Result<BakedDockerfile, Failure> {
    let dockerfile = request.dockerfile;
    for warning in &request.warnings() {
        output::aside(&warning.render(&dockerfile.file));
    }
    let live = Live::start(label, reporting.progress);
    // Nobody reads any more: the bake is ended all the same, and the failure told then.
    let mut told = Ok(());
    let baked = kiln_bake::bake_dockerfile(store, request, &mut |progress| {
        live.tell(progress, &mut |line| {
            if told.is_ok() {
                told = reporting.line(line);
            }
        });
    });
    drop(live);
    let baked = baked.map_err(|error| match error {
        BakeError::Dockerfile(error) => Failure::Dockerfile(Box::new(error)),
        BakeError::Instruction { place, source } => Failure::Instruction { place, source },
        error => Failure::Bake {
            image: label.to_owned(),
            source: Box::new(error),
        },
    })?;
    told?;
    for warning in &baked.warnings {
        output::aside(&warning.render(&dockerfile.file));
    }
    for step in &baked.networked {
        reporting.line(&format!(
            "{label}: `{step}` used the network: it may give something else another day"
        ))?;
    }
    Ok(baked)
}
