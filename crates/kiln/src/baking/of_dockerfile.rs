//! The images of a definition that are a Dockerfile's, after those of the same definition that they stand on.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use kiln_bake::{BakedDockerfile, Deferred, DockerfileRequest, Granted, Tagging, images_named};
use kiln_model::{BaseSpec, DockerfileSpec, ImageName, ImageSpec};
use kiln_oci::ArchiveReference;
use kiln_oci::same_name;

use super::{Baking, Image, Made, Progress};
use crate::definition::FOLDER;
use crate::dockerfile::{carry_out, read_ignore, read_inside};
use crate::failure::Failure;
use crate::git::CommitLookup;
use crate::settings;

/// What the names that a Dockerfile has mean.
struct Bases {
    named: BTreeMap<String, String>,
    /// The commit says which they are.
    is_clean: bool,
}

impl Baking<'_> {
    pub(super) fn of_dockerfile(
        &self,
        spec: &ImageSpec,
        said: &DockerfileSpec,
        progress: &mut Progress,
    ) -> Result<Image, Failure> {
        let folder = &self.definition.folder;
        let context = folder.join(&said.context);
        let path = folder.join(&said.file);
        let wrong = |source| Failure::Context {
            path: context.clone(),
            source,
        };
        let real = context.canonicalize().map_err(wrong)?;
        if !real.starts_with(folder.canonicalize().map_err(wrong)?) {
            let why = format!("it is outside of {FOLDER}");
            return Err(wrong(std::io::Error::new(ErrorKind::InvalidInput, why)));
        }
        let dockerfile = read_inside(folder, FOLDER, &path, &said.args)?;
        let ignore = read_ignore(&path, &context)?;
        let Bases {
            named: bases,
            is_clean,
        } = self.bases(
            spec,
            &images_named(&dockerfile, &said.args, said.target.as_deref()),
            progress,
        )?;
        let now = crate::rollout::now();
        std::thread::scope(|scope| {
            let commit = CommitLookup::start(scope, |listings| {
                let mut commit = self.commit(spec, Some(&ignore), listings)?;
                if let Some(commit) = &mut commit {
                    commit.dirty |= !is_clean;
                }
                Ok(commit)
            });
            let commit_info = || commit.found().map(|commit| self.commit_info(commit));
            let request = DockerfileRequest {
                named_images: &BTreeSet::new(),
                dockerfile: &dockerfile,
                context: &context,
                ignore: &ignore,
                tag: Tagging::Version {
                    image: spec.name.as_str(),
                    version: &spec.version,
                    commit: Deferred::new(&commit_info),
                },
                tests: &spec.tests,
                build_args: &said.args,
                target: said.target.as_deref(),
                bases: &bases,
                registries: &settings::registries(false, Vec::new()),
                contexts: &BTreeMap::new(),
                // A definition has no secrets yet.
                repositories: &BTreeMap::new(),
                granted: &Granted::default(),
                allow_leaks: &spec.allow_leak,
                platform: None,
                no_cache: self.no_cache,
                checkout: Deferred::none(),
                listings: commit.listings(),
                move_clock: None,
                work: &self.work,
            };
            let name = spec.name.as_str();
            let baked = carry_out(&self.store, &request, name, self.reporting)?;
            let BakedDockerfile {
                tag,
                digest,
                steps,
                config,
                warnings: _,
                bases: _,
                networked,
            } = baked;
            let made = Made {
                tag,
                digest,
                steps,
                networked,
                config,
            };
            self.image(&spec.name, made, &commit, now)
        })
    }

    /// What `bases` means for the names that the Dockerfile has. Images of the definition are baked first.
    fn bases(
        &self,
        spec: &ImageSpec,
        named: &std::collections::BTreeSet<String>,
        progress: &mut Progress,
    ) -> Result<Bases, Failure> {
        let mut bases = Bases {
            named: BTreeMap::new(),
            is_clean: true,
        };
        for (name, base) in &self.definition.spec.bases {
            if !named.iter().any(|known| same_name(known, name)) {
                continue;
            }
            let reference = match base {
                BaseSpec::Image(image) => {
                    self.one_of(image, progress)?;
                    let image = &progress.images[image];
                    bases.is_clean &= !image.origin.dirty;
                    image.digest.to_string()
                }
                BaseSpec::Reference(text) if ArchiveReference::is_one(text) => {
                    let archive: ArchiveReference =
                        text.parse().map_err(|source| Failure::Base {
                            image: spec.name.to_string(),
                            source: Box::new(source),
                        })?;
                    bases.is_clean &= archive.is_pinned();
                    archive.below(&self.definition.folder)
                }
                BaseSpec::Reference(text) => text.clone(),
            };
            bases.named.insert(name.clone(), reference);
        }
        Ok(bases)
    }

    /// An image that stands on itself would never begin.
    pub(super) fn begin(&self, name: &ImageName, progress: &mut Progress) -> Result<(), Failure> {
        if progress.under_way.contains(name) {
            let chain = progress.under_way.iter().map(ImageName::to_string);
            return Err(Failure::BaseCircle {
                chain: chain.chain([name.to_string()]).collect::<Vec<_>>(),
            });
        }
        progress.under_way.push(name.clone());
        Ok(())
    }
}
