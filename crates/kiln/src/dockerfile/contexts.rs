//! Contexts that are no folders yet: archives, standard input, repositories of the network.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use kiln_bake::{BakeError, ContextFolder, ContextRepository};

use super::DockerfileSettings;
use crate::failure::Failure;
use crate::settings;

/// The build argument with which a context of a repository has its `.git`.
const KEEP_GIT_DIR: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";

/// The contexts besides the main one.
pub(super) struct Named {
    pub(super) folders: BTreeMap<String, PathBuf>,
    /// Of the main one as well, without a name.
    pub(super) repositories: BTreeMap<String, ContextRepository>,
    /// Gone with this.
    fetched: Vec<ContextFolder>,
}

fn failed(path: &Path, source: std::io::Error) -> Failure {
    Failure::Context {
        path: path.to_owned(),
        source,
    }
}

pub(super) fn must_be_folder(path: &Path) -> Result<(), Failure> {
    match path.metadata() {
        Ok(there) if there.is_dir() => Ok(()),
        Ok(_) => Err(failed(path, ErrorKind::NotADirectory.into())),
        Err(error) => Err(failed(path, error)),
    }
}

impl DockerfileSettings {
    /// Whether the context has to be unpacked or fetched before anything can be read.
    pub(crate) fn is_packed(&self) -> bool {
        self.is_repository() || self.context.as_os_str() == "-" || self.context.is_file()
    }

    /// Whether the context is one of the network, which may need a secret.
    pub(crate) fn is_repository(&self) -> bool {
        let text = self.context.to_string_lossy();
        ContextFolder::is_repository(&text) && !self.context.exists()
    }

    /// Makes a folder of a context that is an archive, standard input or a repository. The Dockerfile is then a file of it.
    pub(crate) fn unpack(&mut self, root: &Path) -> Result<(), Failure> {
        let name = self.context.display().to_string();
        let work = settings::work(root)?;
        let folder = if self.is_repository() {
            let keep = self.build_args.get(KEEP_GIT_DIR).is_some_and(|value| {
                // As BuildKit reads it.
                matches!(&**value, "1" | "t" | "T" | "true" | "TRUE" | "True")
            });
            ContextFolder::check_out(&work, &name, keep, &self.granted)
        } else if name == "-" {
            // Swept with those of killed bakes.
            let folder = work.join(format!("step-{}-stdin", std::process::id()));
            let path = folder.join("context");
            let copied = std::fs::create_dir_all(&folder)
                .and_then(|()| std::fs::File::create(&path))
                .and_then(|mut file| std::io::copy(&mut std::io::stdin().lock(), &mut file));
            let unpacked = copied
                .map_err(|error| failed(Path::new(&name), error))
                .map(|_| ContextFolder::unpack(&work, &path, "on standard input"));
            // What can't be removed now is swept later.
            let _ = std::fs::remove_dir_all(&folder);
            unpacked?
        } else {
            ContextFolder::unpack(&work, &self.context, &name)
        };
        let folder = folder.map_err(|source| self.unfetched(source))?;
        // Also where the name has `..` or is absolute: a file of the context, never one of the host.
        let inside = self
            .path
            .components()
            .filter(|part| matches!(part, Component::Normal(_)));
        let path = folder.path().join(inside.collect::<PathBuf>());
        self.path = path;
        self.context = folder.path().to_owned();
        self.unpacked = Some(folder);
        Ok(())
    }

    fn unfetched(&self, source: BakeError) -> Failure {
        Failure::Bake {
            image: self.tag.clone().unwrap_or_default(),
            source: Box::new(source),
        }
    }

    /// The named contexts as folders.
    pub(super) fn named_contexts(&self, work: &Path) -> Result<Named, Failure> {
        let mut named = Named {
            folders: BTreeMap::new(),
            repositories: BTreeMap::new(),
            fetched: Vec::new(),
        };
        if let Some(repository) = self.unpacked.as_ref().and_then(ContextFolder::repository) {
            named.repositories.insert(String::new(), repository.clone());
        }
        for (name, value) in &self.contexts {
            let path = Path::new(value);
            if path.exists() || !ContextFolder::is_repository(value) {
                must_be_folder(path)?;
                named.folders.insert(name.clone(), path.to_owned());
                continue;
            }
            let folder = ContextFolder::check_out(work, value, false, &self.granted)
                .map_err(|source| self.unfetched(source))?;
            let path = folder.path().to_owned();
            named.folders.insert(name.clone(), path);
            if let Some(repository) = folder.repository() {
                named.repositories.insert(name.clone(), repository.clone());
            }
            named.fetched.push(folder);
        }
        Ok(named)
    }
}
