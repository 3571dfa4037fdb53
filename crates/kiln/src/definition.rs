//! Reads the definition from disk.

use std::path::{Path, PathBuf};

use kiln_config::{Inputs, Outside, Source, load};
use kiln_model::{ImageName, ImageSpec, ProjectSpec};

use crate::failure::Failure;
use crate::files::read_inside;
use crate::output;
use crate::settings::DefinitionSettings;

/// A definition that is right, and where it came from.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) spec: ProjectSpec,
    pub(crate) file: PathBuf,
    pub(crate) folder: PathBuf,
    /// The files that it consists of and that it read, besides the first, relative to the folder.
    pub(crate) files: Vec<PathBuf>,
}

impl Definition {
    /// Refuses what an instance can't be given.
    pub(crate) fn for_running(self) -> Result<Self, Failure> {
        for (name, service) in &self.spec.services {
            if let Some(secret) = service.secrets.keys().next() {
                return Err(Failure::Secret {
                    service: name.to_string(),
                    secret: secret.clone(),
                });
            }
        }
        Ok(self)
    }

    /// The images of these names; all, where none is named.
    pub(crate) fn images(&self, names: &[String]) -> Result<Vec<ImageName>, Failure> {
        if names.is_empty() {
            return Ok(self.spec.images.keys().cloned().collect());
        }
        let names = names.iter();
        names
            .map(|name| self.image(name).map(|spec| spec.name.clone()))
            .collect()
    }

    pub(crate) fn image(&self, name: &str) -> Result<&ImageSpec, Failure> {
        let mut images = self.spec.images.values();
        let found = images.find(|spec| spec.name.as_str() == name);
        found.ok_or_else(|| {
            let known: Vec<&str> = self.spec.images.keys().map(ImageName::as_str).collect();
            Failure::NoImage {
                name: name.to_owned(),
                known: if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                },
            }
        })
    }
}

pub(crate) fn read(settings: DefinitionSettings) -> Result<Definition, Failure> {
    let folder = settings.folder().to_owned();
    let DefinitionSettings {
        file,
        environment,
        variables,
    } = settings;
    let mut names = vec![file.clone()];
    if file.file_name().is_some_and(|name| name == "kiln.hcl") {
        names.extend(further_files(&folder)?);
    }
    let mut sources = Vec::new();
    for path in &names {
        sources.push(Source {
            name: path.display().to_string(),
            text: text(path)?,
        });
    }
    let inputs = Inputs {
        environment,
        variables,
    };
    let loaded = load(
        sources,
        &inputs,
        &Here {
            folder: folder.clone(),
        },
    )?;
    for warning in &loaded.warnings {
        output::warning(warning);
    }
    let more = names.iter().skip(1).filter_map(|path| path.file_name());
    let files = more.map(PathBuf::from);
    Ok(Definition {
        spec: loaded.spec,
        file,
        folder,
        files: files
            .chain(loaded.files.into_iter().map(PathBuf::from))
            .collect(),
    })
}

pub(crate) fn text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Failure::NoDefinition {
            path: path.to_owned(),
        },
        _ => Failure::ReadDefinition {
            path: path.to_owned(),
            source,
        },
    })
}

/// Every `*.kiln.hcl` beside a `kiln.hcl`, in the order of their names.
pub(crate) fn further_files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Failure::NoDefinition {
            path: folder.join("kiln.hcl"),
        },
        _ => Failure::ReadDefinition {
            path: folder.to_owned(),
            source,
        },
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let more = name
            .to_str()
            .is_some_and(|name| name.ends_with(".kiln.hcl") && !name.starts_with('.'));
        if more {
            found.push(match folder {
                here if here == Path::new(".") => PathBuf::from(name),
                folder => folder.join(name),
            });
        }
    }
    found.sort();
    Ok(found)
}

/// The definition's folder and this process's environment.
struct Here {
    folder: PathBuf,
}

pub(crate) const FOLDER: &str = "the definition's folder";

/// More than any `fileset` means.
const MOST_FILES: usize = 100_000;

/// Regular files below `folder`. Links are not followed: what they lead to is not what the commit has there.
fn list(folder: &Path, inside: &str, found: &mut Vec<String>) -> Result<(), String> {
    let why = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such folder".to_owned(),
        _ => error.to_string(),
    };
    for entry in std::fs::read_dir(folder).map_err(why)? {
        let entry = entry.map_err(why)?;
        let name = entry.file_name();
        // Git's own.
        if name == ".git" {
            continue;
        }
        let Some(name) = name.to_str() else {
            return Err(format!("the name {name:?} in it is no UTF-8"));
        };
        let path = if inside.is_empty() {
            name.to_owned()
        } else {
            format!("{inside}/{name}")
        };
        let kind = entry.file_type().map_err(why)?;
        if kind.is_dir() {
            list(&entry.path(), &path, found)?;
        } else if kind.is_file() {
            if found.len() >= MOST_FILES {
                return Err(format!("it has more than {MOST_FILES} files"));
            }
            found.push(path);
        }
    }
    Ok(())
}

impl Outside for Here {
    fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        // What is baked has to come from the commit.
        let read = read_inside(&self.folder, FOLDER, &self.folder.join(path));
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            _ => error.to_string(),
        })
    }

    fn files(&self, folder: &str) -> Result<Vec<String>, String> {
        if folder.starts_with('/') || folder.split('/').any(|part| part == "..") {
            return Err(format!("it is outside of {FOLDER}"));
        }
        let mut start = self.folder.clone();
        for part in folder.split('/') {
            start.push(part);
            if start.is_symlink() {
                return Err(format!(
                    "`{part}` is a symbolic link: name the folder itself"
                ));
            }
        }
        let mut found = Vec::new();
        list(&start, "", &mut found)?;
        found.sort();
        Ok(found)
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    /// The newest of the lock's images. A lock that can't be understood is the bake's to tell.
    fn date(&self) -> Option<i64> {
        let text = std::fs::read_to_string(self.folder.join("kiln.lock")).ok()?;
        let lock: serde_json::Value = serde_json::from_str(&text).ok()?;
        let images = lock.get("images")?.as_object()?;
        images
            .values()
            .filter_map(|i| i.get("date")?.as_i64())
            .max()
    }
}
