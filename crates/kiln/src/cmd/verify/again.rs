//! What the second bake is made of: the files of the commit, and the packages and bases of the first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_bake::Lock;
use kiln_model::{Digest, ImageSpec};
use kiln_oci::{ArchiveReference, Output, Store};

use super::recorded::{External, Kind, Recorded};
use super::{Work, refused};
use crate::cmd::rebake::{Rebake, What};
use crate::definition::{self, Definition};
use crate::failure::Failure;
use crate::git;
use crate::settings::DefinitionSettings;

pub(super) struct Again<'a> {
    pub(super) store: &'a Store,
    /// As the caller named it.
    pub(super) image: &'a str,
    pub(super) recorded: &'a Recorded,
    pub(super) work: &'a Work,
    pub(super) move_clock: Option<i32>,
}

impl Again<'_> {
    pub(super) fn rebake(
        &self,
        commit: &str,
        settings: DefinitionSettings,
    ) -> Result<Rebake, Failure> {
        let External {
            definition,
            dockerfile,
            context,
            ..
        } = &self.recorded.external_parameters;
        let (kind, root) = (self.recorded.kind(), self.folder("root")?);
        let what = match (kind, definition, dockerfile, context) {
            (Kind::Definition, definition, _, _) => {
                let path = definition.clone().unwrap_or_else(|| "kiln.hcl".into());
                self.of_definition(commit, settings, &path, &root)?
            }
            (Kind::Dockerfile, Some(path), _, _) => {
                self.of_definition(commit, settings, path, &root)?
            }
            (Kind::Dockerfile, None, Some(dockerfile), Some(context)) => {
                self.given()?;
                let source = self.check_out(commit, settings.folder(), Path::new(""))?;
                let External {
                    target,
                    allow_leaks,
                    ..
                } = &self.recorded.external_parameters;
                What::Dockerfile {
                    path: source.join(dockerfile),
                    context: source.join(context),
                    build_args: self.build_args()?,
                    target: target.clone(),
                    bases: self.bases(&root)?,
                    allow_leaks: allow_leaks.clone(),
                    no_network: self.recorded.external_parameters.no_network,
                }
            }
            (Kind::Dockerfile, None, _, _) => {
                return Err(self.refused(
                    "its provenance does not say where its Dockerfile is in the repository",
                    "bake it again",
                ));
            }
        };
        Ok(Rebake {
            root,
            image: self.image.to_owned(),
            what,
            move_clock: self.move_clock,
            networked: self.recorded.networked().into_iter().collect(),
        })
    }

    /// Of this bake's own.
    fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        match self.move_clock {
            Some(_) => self.work.folder(name),
            None => self.work.folder(&format!("{name}-2")),
        }
    }

    fn refused(&self, why: impl Into<String>, help: &str) -> Failure {
        refused(self.image, why, help)
    }

    fn check_out(&self, commit: &str, here: &Path, prefix: &Path) -> Result<PathBuf, Failure> {
        let source = self.folder("source")?;
        let is_there =
            git::check_out(here, commit, prefix, &source).map_err(|source| Failure::Commit {
                commit: commit.to_owned(),
                source,
            })?;
        if is_there {
            return Ok(source);
        }
        Err(self.refused(
            format!("{} is in no Git repository", here.display()),
            "go to the repository that the image was baked from, or name a file of it with --file",
        ))
    }

    fn of_definition(
        &self,
        commit: &str,
        settings: DefinitionSettings,
        path: &Path,
        root: &Path,
    ) -> Result<What, Failure> {
        let here = settings.folder().to_owned();
        let prefix = path.parent().unwrap_or(Path::new(""));
        let source = self.check_out(commit, &here, prefix)?;
        let read = definition::read(DefinitionSettings {
            file: source.join(path.file_name().unwrap_or_default()),
            ..settings
        })?;
        let name = self.recorded.external_parameters.image.as_deref();
        let mut images = read.spec.images.iter();
        let Some((_, spec)) = images.find(|(known, _)| Some(known.as_str()) == name) else {
            return Err(self.refused(
                format!("its commit has no image `{}`", name.unwrap_or_default()),
                "was it baked with other variables? give them with --var",
            ));
        };
        if let Some(dockerfile) = &spec.dockerfile {
            return Ok(What::Dockerfile {
                path: source.join(&dockerfile.file),
                context: source.join(&dockerfile.context),
                build_args: dockerfile.args.clone(),
                target: dockerfile.target.clone(),
                bases: self.bases(root)?,
                allow_leaks: spec.allow_leak.clone(),
                no_network: false,
            });
        }
        let spec = ImageSpec {
            // They say nothing of what is in it.
            tests: Vec::new(),
            ..spec.clone()
        };
        let lock = self.lock(&read, &here, &spec)?;
        let packages = Store::open(root)?;
        for package in lock.packages().filter(|package| self.store.has(package)) {
            packages.put_file(&self.store.blob_path(&package))?;
        }
        Ok(What::Definition {
            image: Box::new(spec),
            context: source,
            lock: lock.to_string(),
        })
    }

    /// The lock that the image was baked with: that of the commit, or the present one beside the definition.
    fn lock(&self, read: &Definition, here: &Path, spec: &ImageSpec) -> Result<Lock, Failure> {
        let wanted = self.recorded.internal_parameters.lock;
        for folder in [read.folder.as_path(), here] {
            let path = folder.join("kiln.lock");
            let Ok(text) = std::fs::read_to_string(&path) else {
                continue;
            };
            let lock = Lock::parse(&text).map_err(|error| Failure::Lock {
                path,
                source: Box::new(error),
            })?;
            if lock.digest_of(spec) == wanted {
                return Ok(lock);
            }
        }
        Err(self.refused(
            "neither its commit nor the present folder has the kiln.lock that it was baked with",
            "commit kiln.lock with the definition, bake again, and verify that image",
        ))
    }

    /// What a Dockerfile was given besides its repository can't be had again.
    fn given(&self) -> Result<(), Failure> {
        let External {
            contexts,
            secrets,
            ssh,
            allow,
            ..
        } = &self.recorded.external_parameters;
        let given = [
            ("the named context", contexts, "--build-context"),
            ("the secret", secrets, "--secret"),
            ("the SSH agent", ssh, "--ssh"),
            ("the right", allow, "--allow"),
        ];
        match given.into_iter().find(|(_, names, _)| !names.is_empty()) {
            None => Ok(()),
            Some((what, names, flag)) => Err(self.refused(
                format!(
                    "it was baked with {what} {}, which no commit has",
                    names.join(", ")
                ),
                &format!("bake it again without {flag} to have an image that can be verified, or compare a second bake with `kiln diff`"),
            )),
        }
    }

    fn build_args(&self) -> Result<BTreeMap<String, String>, Failure> {
        let mut args = BTreeMap::new();
        for (name, value) in &self.recorded.external_parameters.build_args {
            let Some(value) = value else {
                return Err(self.refused(
                    format!("its build argument {name} looks secret by its name, so that nobody knows what it was"),
                    "give secrets with --secret, and what is none another name",
                ));
            };
            args.insert(name.clone(), value.clone());
        }
        Ok(args)
    }

    /// Brings the bases to the second store, and answers what their names mean there. They are what they were: by digest.
    fn bases(&self, root: &Path) -> Result<BTreeMap<String, String>, Failure> {
        let second = Store::open(root)?;
        let mut brought: BTreeMap<Digest, ()> = BTreeMap::new();
        let mut bases = BTreeMap::new();
        for (name, digest) in self.recorded.bases() {
            if brought.insert(digest, ()).is_none() {
                let image = self.store.image(&digest).map_err(|_| {
                    self.refused(
                        format!(
                            "its base {name} ({}) is not in the store any more",
                            digest.short()
                        ),
                        "bake it again, which brings the base, and verify that image",
                    )
                })?;
                let arch = image.config.architecture;
                let layout = self.work.folder(&format!("base-{}", digest.short()))?;
                let output = Output::OciLayout(layout.clone());
                self.store.export(&digest, "base:1", &output)?;
                let there: ArchiveReference = format!("oci:{}", layout.display())
                    .parse()
                    .map_err(|source| self.base(source))?;
                second
                    .import_archive(&there, &arch)
                    .map_err(|source| self.base(source))?;
                // The second store has it now.
                let _ = std::fs::remove_dir_all(&layout);
            }
            bases.insert(name, digest.to_string());
        }
        Ok(bases)
    }

    fn base(&self, source: kiln_oci::ImportError) -> Failure {
        Failure::Base {
            image: self.image.to_owned(),
            source: Box::new(source),
        }
    }
}
