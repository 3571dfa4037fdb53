//! An image as other people's tools read it: an OCI layout (as a folder or an archive), docker's archive, or a tar of its files.
//!
//! The same image under the same tag gives the same bytes each time: no time of day, no owner and no order of the disk's is in
//! them. What comes from the store is checked against its digest on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kiln_model::{Digest, canonical_json};
use serde::{Deserialize, Serialize};

use crate::image::{Descriptor, Image, MEDIA_INDEX, MEDIA_MANIFEST, REF_NAME};
use crate::layer::{Entry, Kind, LayerError, Tree};
use crate::store::{Store, StoreError};
use crate::{Content, tar};

/// What containerd's import calls the image.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Where an image is written to, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A folder; the image is added to the layout that is there, in place of one of its name.
    OciLayout(PathBuf),
    OciArchive(PathBuf),
    /// What `docker load` reads.
    DockerArchive(PathBuf),
    /// The files alone, as an instance sees them.
    Tar(PathBuf),
    /// An OCI layout or archive with its layers in gzip, for who does not know zstd. It is another image by its digest, of
    /// the same configuration and files.
    Gzip(Box<Self>),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no output: expected oci:DIR, oci-archive:FILE, docker-archive:FILE or tar:FILE; behind the first two, `,compression=gzip` for layers in gzip instead of zstd"
)]
pub struct OutputError {
    text: String,
}

impl FromStr for Output {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || OutputError {
            text: text.to_owned(),
        };
        let (text, gzip) = match text.rsplit_once(",compression=") {
            Some((text, "gzip")) => (text, Some(true)),
            Some((text, "zstd")) => (text, Some(false)),
            Some(_) => return Err(error()),
            None => (text, None),
        };
        let (kind, path) = text.split_once(':').ok_or_else(error)?;
        if path.is_empty() {
            return Err(error());
        }
        let path = PathBuf::from(path);
        let wrap = |output| {
            if gzip == Some(true) {
                Self::Gzip(Box::new(output))
            } else {
                output
            }
        };
        match kind {
            "oci" => Ok(wrap(Self::OciLayout(path))),
            "oci-archive" => Ok(wrap(Self::OciArchive(path))),
            // Their layers are not compressed.
            _ if gzip.is_some() => Err(error()),
            "docker-archive" => Ok(Self::DockerArchive(path)),
            "tar" => Ok(Self::Tar(path)),
            _ => Err(error()),
        }
    }
}

impl Output {
    /// Whether more than one image may be written to it.
    pub fn takes_several(&self) -> bool {
        match self {
            Self::OciLayout(_) => true,
            Self::OciArchive(_) | Self::DockerArchive(_) | Self::Tar(_) => false,
            Self::Gzip(output) => output.takes_several(),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::OciLayout(path)
            | Self::OciArchive(path)
            | Self::DockerArchive(path)
            | Self::Tar(path) => path,
            Self::Gzip(output) => output.path(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no space left on the disk for {}: free some, or write it elsewhere", path.display())]
    NoSpace { path: PathBuf },
    #[error("{} is neither empty nor an OCI layout: name another folder", path.display())]
    NotLayout { path: PathBuf },
    #[error("the index {} can't be understood: mend it, or write to another folder", path.display())]
    Index {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the image's description has no canonical form")]
    Document(#[from] kiln_model::CanonicalError),
    #[error("the image's files can't be written to {}", path.display())]
    Layer {
        path: PathBuf,
        #[source]
        source: LayerError,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ExportError + use<> {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ExportError::NoSpace { path },
        _ => ExportError::Io {
            action,
            path,
            source,
        },
    }
}

/// The index of a layout. Members and images that are not ours are kept as they are.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    manifests: Vec<IndexEntry>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct IndexEntry {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// An entry of docker's `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl Store {
    /// Writes the image `digest`, called `tag`, to `output`. A file that is there is replaced, whole or not at all.
    pub fn export(&self, digest: &Digest, tag: &str, output: &Output) -> Result<(), ExportError> {
        self.export_image(&self.image(digest)?, tag, output)
    }

    fn export_image(&self, image: &Image, tag: &str, output: &Output) -> Result<(), ExportError> {
        match output {
            Output::Gzip(output) => self.export_image(&self.in_gzip(image)?, tag, output),
            Output::OciLayout(path) => self.export_layout(image, tag, path),
            Output::OciArchive(path) => {
                let index = index(image, tag)?;
                write_tar(&self.layout(image, index)?, path)
            }
            Output::DockerArchive(path) => write_tar(&self.docker(image, tag)?, path),
            Output::Tar(path) => {
                let layers = self.layer_trees(image)?;
                let tree = Tree::merge(&layers).map_err(|source| ExportError::Layer {
                    path: path.clone(),
                    source,
                })?;
                write_tar(&tree, path)
            }
        }
    }

    /// The image's layers read back from their blobs, bottom to top.
    pub fn layer_trees(&self, image: &Image) -> Result<Vec<Tree>, StoreError> {
        image
            .layers
            .iter()
            .map(|layer| self.layer_tree(layer))
            .collect()
    }

    fn export_layout(&self, image: &Image, tag: &str, folder: &Path) -> Result<(), ExportError> {
        let marker = folder.join("oci-layout");
        let blobs = folder.join("blobs/sha256");
        let is_new = match fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(io_error("list", folder)(error)),
        };
        if !is_new && !marker.is_file() {
            return Err(ExportError::NotLayout {
                path: folder.to_path_buf(),
            });
        }
        fs::create_dir_all(&blobs).map_err(io_error("create", &blobs))?;
        for digest in blobs_of(image) {
            self.copy_blob(&digest, &blobs.join(digest.hex()))?;
        }
        replace(&marker, |out| out.write_all(LAYOUT))?;
        // Last, so that what the index names is there.
        let path = folder.join("index.json");
        let mut index = index(image, tag)?;
        match fs::read(&path) {
            Ok(bytes) => {
                let invalid = |source| ExportError::Index {
                    path: path.clone(),
                    source,
                };
                let mut there: Index = serde_json::from_slice(&bytes).map_err(invalid)?;
                there.manifests.retain(|entry| {
                    entry
                        .annotations
                        .get(REF_NAME)
                        .is_none_or(|name| name != tag)
                });
                there.manifests.append(&mut index.manifests);
                index = there;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("read", &path)(error)),
        }
        let index = canonical_json(&index)?;
        replace(&path, |out| out.write_all(&index))
    }

    /// One that is there with its size stays: it was written whole, or not under this name.
    fn copy_blob(&self, digest: &Digest, to: &Path) -> Result<(), ExportError> {
        let size = self.blob_size(digest)?;
        if fs::metadata(to).is_ok_and(|meta| meta.len() == size) {
            return Ok(());
        }
        self.verify_blob(digest)?;
        let mut blob = self.open_blob(digest)?;
        replace(to, |out| io::copy(&mut blob, out).map(drop))
    }

    fn layout(&self, image: &Image, index: Index) -> Result<Tree, ExportError> {
        let mut tree = Tree::new();
        add(&mut tree, "oci-layout", Entry::bytes(LAYOUT, 0o644))?;
        let index = Entry::bytes(canonical_json(&index)?, 0o644);
        add(&mut tree, "index.json", index)?;
        for digest in blobs_of(image) {
            self.verify_blob(&digest)?;
            let size = self.blob_size(&digest)?;
            let content = Content::Blob(self.open_blob(&digest)?);
            let entry = Entry::new(Kind::File { content, size }, 0o644);
            add(&mut tree, &format!("blobs/sha256/{}", digest.hex()), entry)?;
        }
        Ok(tree)
    }

    /// Layers are uncompressed here: docker before version 23 does not know zstd.
    fn docker(&self, image: &Image, tag: &str) -> Result<Tree, ExportError> {
        let mut tree = Tree::new();
        let mut names = Vec::new();
        for layer in &image.layers {
            let name = format!("{}.tar", layer.diff_id.hex());
            if !names.contains(&name) {
                let (content, size) = self.layer_tar(layer)?;
                let entry = Entry::new(Kind::File { content, size }, 0o644);
                add(&mut tree, &name, entry)?;
            }
            names.push(name);
        }
        let config = format!("{}.json", image.config_digest.hex());
        let size = self.blob_size(&image.config_digest)?;
        let content = self.read_blob(&image.config_digest, size)?;
        add(&mut tree, &config, Entry::bytes(content, 0o644))?;
        let manifest = canonical_json(&[DockerImage {
            config,
            repo_tags: vec![tag.to_owned()],
            layers: names,
        }])?;
        add(&mut tree, "manifest.json", Entry::bytes(manifest, 0o644))?;
        Ok(tree)
    }
}

fn add(tree: &mut Tree, path: &str, entry: Entry) -> Result<(), ExportError> {
    tree.insert(path, entry)
        .map_err(|source| ExportError::Layer {
            path: PathBuf::from(path),
            source,
        })
}

fn blobs_of(image: &Image) -> BTreeSet<Digest> {
    let layers = image.layers.iter().map(|layer| layer.blob.digest);
    layers.chain([image.digest, image.config_digest]).collect()
}

fn index(image: &Image, tag: &str) -> Result<Index, ExportError> {
    let descriptor = Descriptor {
        media_type: MEDIA_MANIFEST.to_owned(),
        digest: image.digest,
        size: image.manifest.len() as u64,
        annotations: BTreeMap::new(),
    };
    let not_json = |source| ExportError::Index {
        path: PathBuf::from("index.json"),
        source,
    };
    let mut entry: IndexEntry = serde_json::to_value(descriptor)
        .and_then(serde_json::from_value)
        .map_err(not_json)?;
    entry.annotations.insert(REF_NAME.into(), tag.into());
    entry.annotations.insert(CONTAINERD_NAME.into(), tag.into());
    Ok(Index {
        schema_version: 2,
        media_type: Some(MEDIA_INDEX.to_owned()),
        manifests: vec![entry],
        others: BTreeMap::new(),
    })
}

fn write_tar(tree: &Tree, path: &Path) -> Result<(), ExportError> {
    let mut failure = None;
    let written = replace(path, |out| {
        tar::write(tree, out).map_err(|error| match error {
            LayerError::Write(error) => error,
            other => {
                failure = Some(other);
                io::ErrorKind::Other.into()
            }
        })
    });
    match failure {
        Some(source) => Err(ExportError::Layer {
            path: path.to_path_buf(),
            source,
        }),
        None => written,
    }
}

/// Writes `path` beside itself first: whole or as it was.
fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), ExportError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.part", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = || {
        let mut out = BufWriter::with_capacity(256 << 10, File::create(&beside)?);
        write(&mut out)?;
        out.flush()?;
        out.get_ref().sync_data()?;
        fs::rename(&beside, path)
    };
    let written = written();
    if written.is_err() {
        #[expect(
            clippy::let_underscore_must_use,
            reason = "the cause matters more than what is left of it"
        )]
        let _ = fs::remove_file(&beside);
    }
    written.map_err(io_error("write", path))
}
