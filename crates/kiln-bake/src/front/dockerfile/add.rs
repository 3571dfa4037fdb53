//! What ADD takes from elsewhere: files of the network, and archives, which are unpacked.

use std::path::{Path, PathBuf};

use kiln_config::dockerfile::{Complaint, Copy, Dockerfile, Text};
use kiln_git::{GitSource, Resolved};
use kiln_http::without_user;
use kiln_model::Digest;

use super::bake::Bake;
use super::errors::{at, copy_error, placed};
use super::key::CommitKey;
use super::place::Placing;
use super::source::{Found, Taken};
use super::stage_builder::StageBuilder;
use super::unpack::{UnpackError, tar_stream, unpack};
use crate::download;
use crate::error::BakeError;
use crate::progress::BakeProgress;
use crate::record::provenance::Material;
use crate::step::scratch::Scratch;

/// BuildKit's mode of what it fetches.
const FETCHED_MODE: u32 = 0o600;

/// A source, and the folder that its entries are below.
pub(super) struct Added {
    pub(super) found: Found,
    pub(super) root: PathBuf,
    /// It lies in a folder of the caller's.
    pub(super) is_own: bool,
    /// Unpacked, should it be an archive.
    pub(super) unpack: bool,
}

pub(super) fn is_remote(path: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| path.starts_with(scheme))
}

impl StageBuilder {
    /// The digest that `--checksum` wants, of the only source.
    pub(super) fn checksum(
        &self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        copy: &Copy,
        remotes: usize,
    ) -> Result<Option<Digest>, BakeError> {
        let Some(text) = &copy.checksum else {
            return Ok(None);
        };
        let complain = |what: String, help: &str| {
            Err(BakeError::Dockerfile(file.error(Complaint::error(
                text.whole(),
                what,
                help,
            ))))
        };
        if copy.sources.len() > 1 {
            return complain(
                "--checksum is of one source, and here are several".to_owned(),
                "write an ADD for each",
            );
        }
        if remotes == 0 {
            return complain(
                "--checksum is for what is fetched".to_owned(),
                "take it out: files of the context are known by their content",
            );
        }
        let value = self.expand(bake, file, text)?;
        match value.parse() {
            Ok(digest) => Ok(Some(digest)),
            Err(_) => complain(
                format!("`{value}` is not a checksum"),
                "write sha256: and the 64 hex digits that `sha256sum` prints",
            ),
        }
    }

    /// The commits that the repositories' references name. `--checksum` may say which the only one has to be.
    pub(super) fn commits(
        &self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        copy: &Copy,
        repositories: Vec<(GitSource, &Text)>,
    ) -> Result<Vec<Commit>, BakeError> {
        let complain = |text: &Text, what: String, help: String| {
            BakeError::Dockerfile(file.error(Complaint::error(text.whole(), what, help)))
        };
        let mut commits = Vec::new();
        for (source, text) in repositories {
            if copy.keep_git_dir && source.keep_git_dir == Some(false) {
                return Err(complain(
                    text,
                    "its query says keep-git-dir=false, and the instruction --keep-git-dir"
                        .to_owned(),
                    "take one of them out".to_owned(),
                ));
            }
            bake.tell(BakeProgress::Downloading {
                url: without_user(&source.url),
            });
            let found = source.resolve(bake.access()).map_err(|error| {
                let place = Complaint::error(text.whole(), "this can't be had", "");
                at(file.error(place), error.into())
            })?;
            let name = found.commit.to_string();
            match &copy.checksum {
                Some(wanted) => {
                    let value = self.expand(bake, file, wanted)?;
                    let is_wanted = value.len() >= 7 && GitSource::is_wanted(&value, &found);
                    if copy.sources.len() > 1 || !is_wanted {
                        return Err(complain(
                            wanted,
                            format!("`{}` is the commit {name} now, and not {value}", text.text),
                            "--checksum of a repository is the name of its commit".to_owned(),
                        ));
                    }
                }
                None if name != source.reference && source.checksum.is_none() => bake.warn(
                    self.index,
                    vec![Complaint::warning(
                        "FetchedWithoutChecksum",
                        text.whole(),
                        format!(
                            "`{}` is whatever it names on the day of the bake",
                            text.text
                        ),
                        format!("--checksum={name} makes it this commit"),
                    )],
                ),
                None => {}
            }
            bake.notes().fetched.insert(Material {
                uri: told(&source.url),
                kind: "gitCommit",
                digest: name,
            });
            commits.push(Commit {
                keep: copy.keep_git_dir || source.keep_git_dir == Some(true),
                source,
                found,
            });
        }
        Ok(commits)
    }

    /// A file of the network, as a source that lies in the store.
    pub(super) fn fetched(
        &self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        (url, text): (&str, &Text),
        checksum: Option<&Digest>,
        unpack: bool,
    ) -> Result<Added, BakeError> {
        bake.tell(BakeProgress::Downloading {
            url: url.to_owned(),
        });
        let fetched = download::fetch(bake.store, url, checksum).map_err(|error| {
            let place = Complaint::error(text.whole(), "this can't be had", "");
            at(file.error(place), error)
        })?;
        if checksum.is_none() {
            bake.warn(
                self.index,
                vec![Complaint::warning(
                    "FetchedWithoutChecksum",
                    text.whole(),
                    format!("`{url}` is whatever its server gives on the day of the bake"),
                    format!("--checksum={} makes it this one", fetched.digest),
                )],
            );
        }
        bake.notes().fetched.insert(Material {
            uri: told(url),
            kind: "sha256",
            digest: fetched.digest.hex(),
        });
        let path = bake.store.blob_path(&fetched.digest);
        Ok(Added {
            found: Found {
                name: download::file_name(url).into(),
                is_folder: false,
                at: PathBuf::from(fetched.digest.hex()),
                entries: vec![Taken::fetched(
                    FETCHED_MODE,
                    // What has a checksum is the same from every server, and so is its layer.
                    fetched.mtime().filter(|_| checksum.is_none()),
                    fetched.size,
                    fetched.digest,
                )],
            },
            root: path.parent().map(Path::to_owned).unwrap_or_default(),
            is_own: false,
            unpack,
        })
    }
}

/// An address without what may be somebody's secret: a user and a query.
fn told(url: &str) -> String {
    without_user(url.split(['?', '#']).next().unwrap_or(url))
}

/// Unpacks the source, where it is an archive. False: it is to be copied as it is.
pub(super) fn unpacked(
    placing: &mut Placing<'_>,
    added: &Added,
    scratch: &Scratch,
    step: &str,
    to: &str,
) -> Result<bool, BakeError> {
    let [entry] = &added.found.entries[..] else {
        return Ok(false);
    };
    if !added.unpack || added.found.is_folder || !entry.is_file() {
        return Ok(false);
    }
    let path = added.root.join(added.found.place(entry));
    let Some(stream) = tar_stream(&path).map_err(BakeError::io(&path))? else {
        return Ok(false);
    };
    let target = placing.target(to).map_err(|error| placed(step, error))?;
    // A mode is not for what is unpacked, nor for the folders on the way.
    let chmod = placing.chmod.take();
    let made = placing.folder(&target);
    placing.chmod = chmod;
    made.map_err(|error| placed(step, error))?;
    let spill = scratch
        .folder("unpacked")?
        .join(path.file_name().unwrap_or_default());
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&spill)
        .map_err(BakeError::io(&spill))?;
    // Open as long as the layer is written; several sources may have one name.
    std::fs::remove_file(&spill).map_err(BakeError::io(&spill))?;
    unpack(placing, stream, entry.size, &target, file).map_err(|error| match error {
        UnpackError::Write(error) => BakeError::io(&spill)(error),
        UnpackError::Layer(error) => BakeError::Layer(error),
        error => copy_error(
            step,
            format!(
                "the archive `{}` can't be unpacked: {error}",
                added.found.name.to_string_lossy()
            ),
        ),
    })?;
    Ok(true)
}

/// A commit that is taken.
pub(super) struct Commit {
    pub(super) source: GitSource,
    pub(super) found: Resolved,
    /// With `.git`.
    pub(super) keep: bool,
}

impl Commit {
    pub(super) fn key(&self) -> CommitKey<'_> {
        let Self {
            source,
            found,
            keep,
        } = self;
        CommitKey {
            commit: found.commit.to_string(),
            folder: &source.folder,
            without_submodules: !source.submodules,
            kept: keep.then(|| {
                let tag = found.tag.map(|tag| tag.to_string());
                (without_user(&source.url), found.name.as_deref(), tag)
            }),
        }
    }
}
