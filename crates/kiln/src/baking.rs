//! Bakes what a definition needs, and makes of it what the daemon runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_bake::{BakeRequest, Baked, CommitInfo, Lock};
use kiln_model::{
    EnvironmentSpec, ImageName, ImageOrigin, ImageSpec, ProjectSpec, Release, ServiceDefinition,
    ServiceSpec,
};
use kiln_oci::Store;

use crate::definition::Definition;
use crate::failure::Failure;
use crate::output::{self, Audience};
use crate::{git, rollout, table};

pub(crate) struct Baking<'a> {
    store: Store,
    definition: &'a Definition,
    work: PathBuf,
    audience: Audience,
}

/// A baked image, with what its commit was.
pub(crate) struct Image {
    pub(crate) tag: String,
    pub(crate) digest: kiln_model::Digest,
    pub(crate) steps: Vec<kiln_bake::StepReport>,
    config: kiln_oci::ImageConfig,
    origin: ImageOrigin,
}

pub(crate) type Images = BTreeMap<ImageName, Image>;

impl<'a> Baking<'a> {
    pub(crate) fn new(
        root: &Path,
        definition: &'a Definition,
        audience: Audience,
    ) -> Result<Self, Failure> {
        let work = root.join("work");
        std::fs::create_dir_all(&work).map_err(|source| Failure::Root {
            path: root.to_owned(),
            source,
        })?;
        Ok(Self {
            store: Store::open(root)?,
            definition,
            work,
            audience,
        })
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
        let path = self.definition.folder.join("kiln.lock");
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(Failure::Lock {
                    path,
                    source: Box::new(error),
                });
            }
        };
        let mut lock = match &before {
            Some(text) => Some(Lock::parse(text).map_err(|error| Failure::Lock {
                path: path.clone(),
                source: Box::new(error),
            })?),
            None => None,
        };
        let mut images = Images::new();
        for name in names {
            let spec = self
                .definition
                .spec
                .images
                .get(name)
                .ok_or_else(|| self.unknown(name))?;
            let (image, locked) = self.one(spec, lock.as_ref())?;
            lock = Some(locked);
            images.insert(name.clone(), image);
        }
        if let Some(lock) = lock {
            let text = lock.to_string();
            if before.as_ref() != Some(&text) {
                replace(&path, &text).map_err(|error| Failure::Lock {
                    path: path.clone(),
                    source: Box::new(error),
                })?;
                self.audience.progress(&format!(
                    "{} written: commit it with the definition",
                    path.display()
                ))?;
            }
        }
        Ok(images)
    }

    fn unknown(&self, name: &ImageName) -> Failure {
        let known: Vec<&str> = self
            .definition
            .spec
            .images
            .keys()
            .map(ImageName::as_str)
            .collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        Failure::NoImage {
            name: name.to_string(),
            known,
        }
    }

    fn one(&self, spec: &ImageSpec, lock: Option<&Lock>) -> Result<(Image, Lock), Failure> {
        let commit = self.commit(spec);
        let now = rollout::now();
        let request = BakeRequest {
            image: spec,
            context: &self.definition.folder,
            lock,
            work: &self.work,
            commit: commit.as_ref().map(|commit| CommitInfo {
                sha: commit.sha.clone(),
                dirty: commit.dirty,
            }),
            now,
        };
        let name = &spec.name;
        // What each step did is said at the end.
        let baked = kiln_bake::bake(&self.store, &request, &mut |_| {}).map_err(|source| {
            Failure::Bake {
                image: name.to_string(),
                source: Box::new(source),
            }
        })?;
        let Baked {
            name: _,
            tag,
            digest,
            steps,
            lock,
            config,
        } = baked;
        for step in steps.iter().filter(|step| !step.cached) {
            let took = table::duration(Duration::from_millis(step.duration_ms));
            self.audience
                .progress(&format!("{name}: {} took {took}", step.name))?;
        }
        let cached = steps.iter().filter(|step| step.cached).count();
        let took = Duration::from_millis(steps.iter().map(|step| step.duration_ms).sum());
        self.audience.progress(&format!(
            "{name}: baked {tag} ({}), {cached} of {} steps from the cache, {}",
            digest.short(),
            steps.len(),
            table::duration(took)
        ))?;
        let origin = ImageOrigin {
            tag: tag.clone(),
            digest,
            dirty: commit.as_ref().is_none_or(|commit| commit.dirty),
            commit: commit.map(|commit| commit.sha),
            baked_at: now,
        };
        Ok((
            Image {
                tag,
                digest,
                steps,
                config,
                origin,
            },
            lock,
        ))
    }

    /// A repository that can't be read is no reason not to bake, but the image can't be called clean then.
    fn commit(&self, spec: &ImageSpec) -> Option<git::Commit> {
        let folder = &self.definition.folder;
        let mut inputs: Vec<PathBuf> = self
            .definition
            .file
            .file_name()
            .map(PathBuf::from)
            .into_iter()
            .collect();
        inputs.extend(spec.copies.iter().map(|copy| PathBuf::from(&copy.from)));
        match git::commit(folder, &inputs) {
            Ok(commit) => commit,
            Err(error) => {
                let cause = std::error::Error::source(&error)
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                output::warning(&format!(
                    "the Git repository can't be read, so the image is tagged as dirty: {error}{cause}"
                ));
                None
            }
        }
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
        },
        policy: policy.clone(),
        origin: image.origin.clone(),
    }
}

/// The whole lock or the one before, whatever happens meanwhile.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension(format!("lock.{}", std::process::id()));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        // The cause matters more than what is left of it.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
