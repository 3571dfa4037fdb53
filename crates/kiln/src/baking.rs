//! Bakes what a definition needs, and makes of it what the daemon runs.

mod of_dockerfile;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_bake::{BakeRequest, Baked, CommitInfo, Deferred, Listings, Lock, StepReport, Update};
use kiln_config::dockerfile::Ignore;
use kiln_model::{
    Digest, EnvironmentSpec, ImageName, ImageOrigin, ImageSpec, ProjectSpec, Release,
    ServiceDefinition, ServiceSpec, Timestamp,
};
use kiln_oci::{Output, Store};

use crate::baked::{tell, write_out};
use crate::definition::Definition;
use crate::failure::Failure;
use crate::git::CommitLookup;
use crate::locks::{self, Relocked};
use crate::output;
use crate::progress::{Live, Reporting};
use crate::{git, rollout, settings, upkeep};

pub(crate) struct Baking<'a> {
    store: Store,
    definition: &'a Definition,
    root: PathBuf,
    work: PathBuf,
    reporting: Reporting,
    no_cache: bool,
}

/// A baked image, with what its commit was.
pub(crate) struct Image {
    pub(crate) tag: String,
    pub(crate) digest: Digest,
    pub(crate) steps: Vec<StepReport>,
    /// Steps that used the network.
    pub(crate) networked: Vec<String>,
    config: kiln_oci::ImageConfig,
    origin: ImageOrigin,
}

/// What a bake gave, of either kind.
struct Made {
    tag: String,
    digest: Digest,
    steps: Vec<StepReport>,
    networked: Vec<String>,
    config: kiln_oci::ImageConfig,
}

/// What a command has baked so far.
struct Progress {
    lock: Lock,
    images: Images,
    /// Those whose bases are being baked, from the first one on.
    under_way: Vec<ImageName>,
}

pub(crate) type Images = BTreeMap<ImageName, Image>;

impl<'a> Baking<'a> {
    pub(crate) fn new(
        root: &Path,
        definition: &'a Definition,
        reporting: impl Into<Reporting>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            work: settings::work(root)?,
            store: Store::open(root)?,
            definition,
            root: root.to_owned(),
            reporting: reporting.into(),
            no_cache: false,
        })
    }

    /// Every step is carried out, also one that the cache has.
    pub(crate) fn without_cache(mut self, no_cache: bool) -> Self {
        self.no_cache = no_cache;
        self
    }

    /// Bakes the images that the environment's services run.
    pub(crate) fn used(&self) -> Result<Images, Failure> {
        let names: std::collections::BTreeSet<ImageName> = self
            .definition
            .spec
            .services
            .values()
            .map(|service| service.image.clone())
            .collect();
        self.all(&names.into_iter().collect::<Vec<_>>())
    }

    pub(crate) fn all(&self, names: &[ImageName]) -> Result<Images, Failure> {
        // Written before anything is baked: what a failed bake found is not looked for again, and an image of a lock that no commit
        // has is no commit's.
        let relocked = self.lock(names, &Update::Nothing)?;
        if let Some(other) = relocked.lock.other_writer() {
            output::warning(&format!(
                "{} was written by another version of kiln, which writes layers with {other}: the images have the same files and other digests; `kiln lock` makes it this version's",
                relocked.path.display()
            ));
        }
        self.write_lock(&relocked)?;
        let mut progress = Progress {
            lock: relocked.lock,
            images: Images::new(),
            under_way: Vec::new(),
        };
        for name in names {
            self.one_of(name, &mut progress)?;
        }
        let mut images = progress.images;
        let made = |image: &Image| image.steps.iter().any(|step| !step.cached);
        if images.values().any(made) {
            upkeep::after_bake(&self.root, &self.store, self.reporting)?;
        }
        // Those that others stand on were not asked for.
        images.retain(|name, _| names.contains(name));
        Ok(images)
    }

    /// Bakes an image of the definition, unless it was.
    fn one_of(&self, name: &ImageName, progress: &mut Progress) -> Result<(), Failure> {
        if progress.images.contains_key(name) {
            return Ok(());
        }
        let spec = self.definition.image(name.as_str())?;
        self.begin(name, progress)?;
        let image = match &spec.dockerfile {
            Some(dockerfile) => self.of_dockerfile(spec, dockerfile, progress)?,
            None => {
                // One that a Dockerfile stands on may not be in it yet.
                if !progress.lock.covers(spec) {
                    let relocked = self.lock(std::slice::from_ref(name), &Update::Nothing)?;
                    self.write_lock(&relocked)?;
                    progress.lock = relocked.lock;
                }
                self.one(spec, &progress.lock)?
            }
        };
        progress.under_way.pop();
        progress.images.insert(name.clone(), image);
        Ok(())
    }

    pub(crate) fn write(&self, images: &Images, output: &Output) -> Result<(), Failure> {
        for (name, image) in images {
            let (digest, tag) = (&image.digest, &image.tag);
            write_out(
                &self.store,
                (digest, tag),
                name.as_str(),
                output,
                self.reporting,
            )?;
        }
        Ok(())
    }

    /// The lock with what these images need.
    pub(crate) fn lock(&self, names: &[ImageName], update: &Update) -> Result<Relocked, Failure> {
        let images: Vec<&ImageSpec> = names
            .iter()
            .map(|name| self.definition.image(name.as_str()))
            .collect::<Result<_, _>>()?;
        locks::relock(&self.store, &self.definition.folder, &images, update)
    }

    pub(crate) fn write_lock(&self, relocked: &Relocked) -> Result<(), Failure> {
        if relocked.is_changed() {
            relocked.write()?;
            self.reporting.line(&format!(
                "{} written: commit it with the definition",
                relocked.path.display()
            ))?;
        }
        Ok(())
    }

    fn one(&self, spec: &ImageSpec, lock: &Lock) -> Result<Image, Failure> {
        std::thread::scope(|scope| {
            let commit = CommitLookup::start(scope, |listings| self.commit(spec, None, listings));
            let now = rollout::now();
            let made = self.bake(spec, lock, &commit, now)?;
            self.image(&spec.name, made, &commit, now)
        })
    }

    fn bake(
        &self,
        spec: &ImageSpec,
        lock: &Lock,
        commit: &CommitLookup<'_>,
        now: Timestamp,
    ) -> Result<Made, Failure> {
        let commit_info = || commit.found().map(|commit| self.commit_info(commit));
        let request = BakeRequest {
            image: spec,
            context: &self.definition.folder,
            lock: Some(lock),
            work: &self.work,
            commit: Deferred::new(&commit_info),
            listings: commit.listings(),
            now,
            no_cache: self.no_cache,
            move_clock: None,
        };
        let name = &spec.name;
        let live = Live::start(name.as_str(), self.reporting.progress);
        // Nobody reads any more: the bake is ended all the same, and the failure told then.
        let mut told = Ok(());
        let baked = kiln_bake::bake(&self.store, &request, &mut |progress| {
            live.tell(progress, &mut |line| {
                if told.is_ok() {
                    told = self.reporting.line(line);
                }
            });
        });
        drop(live);
        let baked = baked.map_err(|source| Failure::Bake {
            image: name.to_string(),
            source: Box::new(source),
        })?;
        told?;
        let Baked {
            name: _,
            tag,
            digest,
            steps,
            lock: _,
            config,
        } = baked;
        Ok(Made {
            tag,
            digest,
            steps,
            networked: Vec::new(),
            config,
        })
    }

    /// Tells that it is baked.
    fn image(
        &self,
        name: &ImageName,
        made: Made,
        commit: &CommitLookup<'_>,
        now: Timestamp,
    ) -> Result<Image, Failure> {
        let Made {
            tag,
            digest,
            steps,
            networked,
            config,
        } = made;
        tell(
            &format!("{name}: baked {tag}"),
            &digest,
            &steps,
            self.reporting,
        )?;
        // A repository that can't be read is no reason not to bake, but the image can't be called clean then.
        let commit = commit.told("so the image is tagged as dirty", output::warning);
        if let Some(git::Commit {
            sha,
            changed: Some(path),
            ..
        }) = commit
        {
            self.reporting.line(&format!(
                "{name}: the tag says `dirty`, since {} is not as commit {} has it",
                path.display(),
                &sha[..12]
            ))?;
        }
        let origin = ImageOrigin {
            tag: tag.clone(),
            digest,
            dirty: commit.is_none_or(|commit| commit.dirty),
            commit: commit.map(|commit| commit.sha.clone()),
            baked_at: now,
        };
        Ok(Image {
            tag,
            digest,
            steps,
            networked,
            config,
            origin,
        })
    }

    fn commit_info(&self, commit: &git::Commit) -> CommitInfo {
        let name = self.definition.file.file_name().unwrap_or_default();
        CommitInfo {
            sha: commit.sha.clone(),
            dirty: commit.dirty,
            definition: commit.prefix.join(name).to_string_lossy().into_owned(),
        }
    }

    fn commit(
        &self,
        spec: &ImageSpec,
        ignore: Option<&Ignore>,
        listings: &Listings,
    ) -> git::LookupResult {
        let folder = &self.definition.folder;
        let first = self.definition.file.file_name().map(PathBuf::from);
        let mut inputs: Vec<PathBuf> = first.into_iter().collect();
        inputs.extend(self.definition.files.iter().cloned());
        for part in spec.chain() {
            inputs.extend(part.copies.iter().map(|copy| PathBuf::from(&copy.from)));
        }
        let mut inputs: Vec<git::Input<'_>> = inputs.into_iter().map(git::Input::from).collect();
        if let (Some(dockerfile), Some(ignore)) = (&spec.dockerfile, ignore) {
            // Not relative to the present folder.
            let folder = folder.canonicalize().unwrap_or_else(|_| folder.clone());
            inputs.extend(crate::dockerfile::inputs(
                folder.join(&dockerfile.file),
                folder.join(&dockerfile.context),
                ignore,
            ));
        }
        git::commit(folder, &inputs, listings)
    }
}

/// What the environment is to run, with images known by their digest.
pub(crate) fn environment(spec: &ProjectSpec, images: &Images) -> EnvironmentSpec {
    let services = spec
        .services
        .iter()
        .filter_map(|(name, service)| {
            Some((
                name.clone(),
                self::service(service, images.get(&service.image)?),
            ))
        })
        .collect();
    EnvironmentSpec {
        project: spec.project.clone(),
        environment: spec.environment.clone(),
        services,
    }
}

fn service(definition: &ServiceDefinition, image: &Image) -> ServiceSpec {
    let ServiceDefinition {
        image: _,
        command,
        env,
        // Refused where the definition is read.
        secrets: _,
        port,
        tmpfs,
        resources,
        egress,
        policy,
    } = definition;
    let run = &image.config.config;
    let mut merged: BTreeMap<String, String> = run
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    merged.extend(env.clone());
    let command = if command.is_empty() {
        run.entrypoint.iter().chain(&run.cmd).cloned().collect()
    } else {
        command.clone()
    };
    // What is the default has one form, or one release would have two identities.
    let unless = |text: &str, default: &str| {
        if text == default {
            String::new()
        } else {
            text.to_owned()
        }
    };
    ServiceSpec {
        release: Release {
            image: image.digest,
            command,
            env: merged,
            user: unless(&run.user, "root"),
            workdir: unless(&run.working_dir, "/"),
            stop_signal: unless(run.stop_signal.as_deref().unwrap_or_default(), "SIGTERM"),
            port: *port,
            tmpfs: tmpfs.clone(),
            resources: resources.clone(),
            egress: *egress,
            unknown: kiln_model::UnknownFields::default(),
        },
        policy: policy.clone(),
        origin: image.origin.clone(),
    }
}
