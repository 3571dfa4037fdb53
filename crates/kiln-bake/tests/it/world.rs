//! A store and a definition's folder of a test's own. The base is fetched once and shared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kiln_bake::{BakeError, BakeRequest, Baked, CommitInfo, Deferred, Listings, Lock, bake};
use kiln_model::{CopySpec, DebianOrigin, DebianSpec, ImageSpec, Timestamp, UserSpec};
use kiln_oci::Store;
use tempfile::TempDir;

const SHA: &str = "0123456789abcdef0123";

pub(crate) struct World {
    pub(crate) root: TempDir,
    pub(crate) store: Store,
    pub(crate) context: PathBuf,
    pub(crate) lock: Lock,
}

/// The lock of the smallest image, and the folder with its packages.
fn base() -> &'static (TempDir, Lock) {
    static BASE: OnceLock<(TempDir, Lock)> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let context = folder.path().join("context");
        std::fs::create_dir(&context).unwrap();
        let baked = run(&store, folder.path(), &context, &image(), None, SHA, None)
            .unwrap_or_else(|error| panic!("the first bake needs the archive: {}", told(&error)));
        (folder, baked.lock)
    })
}

/// The packages of the smallest image with their content, as the archive has them.
pub(crate) fn packages() -> Vec<(serde_json::Value, PathBuf)> {
    let (folder, lock) = base();
    let store = Store::open(folder.path()).unwrap();
    let lock: serde_json::Value = serde_json::from_str(&lock.to_string()).unwrap();
    let packages = lock["images"]["tiny"]["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let digest = package["sha256"].as_str().unwrap().parse().unwrap();
            (package.clone(), store.blob_path(&digest))
        })
        .collect()
}

/// A bookworm with nothing but the essential packages, whose archive is nowhere: only what the store has can be used.
pub(crate) fn image() -> ImageSpec {
    ImageSpec {
        name: "tiny".parse().unwrap(),
        version: "1".into(),
        base: None,
        debian: Some(DebianSpec::of("bookworm")),
        dockerfile: None,
        users: Vec::new(),
        copies: Vec::new(),
        run: Vec::new(),
        run_as: None,
        env: BTreeMap::new(),
        entrypoint: Vec::new(),
        cmd: vec!["sh".into()],
        labels: BTreeMap::new(),
        workdir: None,
        stop_signal: None,
        allow_leak: Vec::new(),
        tests: Vec::new(),
    }
}

pub(crate) fn debian(image: &mut ImageSpec) -> &mut DebianSpec {
    image.debian.as_mut().expect("it is made of Debian")
}

pub(crate) fn mirror(image: &mut ImageSpec, url: impl Into<String>) {
    debian(image).origin = DebianOrigin::Mirror {
        url: url.into(),
        security: None,
    };
}

pub(crate) fn user(name: &str, uid: u32) -> UserSpec {
    UserSpec {
        name: name.into(),
        uid,
        gid: None,
    }
}

pub(crate) fn copy(from: &str, to: &str, owner: Option<&str>) -> CopySpec {
    CopySpec {
        from: from.into(),
        to: to.into(),
        owner: owner.map(str::to_owned),
    }
}

fn run(
    store: &Store,
    root: &Path,
    context: &Path,
    image: &ImageSpec,
    lock: Option<&Lock>,
    sha: &str,
    move_clock: Option<i32>,
) -> Result<Baked, BakeError> {
    let work = root.join("work");
    std::fs::create_dir_all(&work).unwrap();
    let commit = || {
        Some(CommitInfo {
            sha: sha.into(),
            dirty: false,
            definition: "kiln.hcl".into(),
        })
    };
    let request = BakeRequest {
        image,
        context,
        lock,
        work: &work,
        commit: Deferred::new(&commit),
        listings: &Listings::default(),
        now: Timestamp(0),
        no_cache: false,
        move_clock,
    };
    bake(store, &request, &mut |_| {})
}

impl World {
    /// On the shared store, where the base is baked already.
    pub(crate) fn new() -> Self {
        let (source, lock) = base();
        let root = tempfile::tempdir().unwrap();
        let context = root.path().join("context");
        std::fs::create_dir(&context).unwrap();
        let store = Store::open(source.path()).unwrap();
        Self {
            root,
            store,
            context,
            lock: lock.clone(),
        }
    }

    /// On a store of its own, with the base's packages and nothing baked.
    pub(crate) fn fresh() -> Self {
        let (source, lock) = base();
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let text = lock.to_string();
        let packages = text.split('"').filter(|word| word.starts_with("sha256:"));
        let blobs = Store::open(source.path()).unwrap();
        for digest in packages {
            store
                .put_file(&blobs.blob_path(&digest.parse().unwrap()))
                .unwrap();
        }
        let context = root.path().join("context");
        std::fs::create_dir(&context).unwrap();
        Self {
            root,
            store,
            context,
            lock: lock.clone(),
        }
    }

    pub(crate) fn bake(&self, image: &ImageSpec) -> Result<Baked, BakeError> {
        self.bake_commit(image, SHA)
    }

    pub(crate) fn bake_commit(&self, image: &ImageSpec, sha: &str) -> Result<Baked, BakeError> {
        // An archive that nobody answers for: a bake that asks it fails.
        let mut image = image.clone();
        if image.debian.is_some() {
            mirror(&mut image, "http://127.0.0.1:1/debian");
        }
        run(
            &self.store,
            self.root.path(),
            &self.context,
            &image,
            Some(&self.lock),
            sha,
            None,
        )
    }

    pub(crate) fn bake_with_clock(
        &self,
        image: &ImageSpec,
        moved: Option<i32>,
    ) -> Result<Baked, BakeError> {
        let (root, context) = (self.root.path(), &self.context);
        run(
            &self.store,
            root,
            context,
            image,
            Some(&self.lock),
            SHA,
            moved,
        )
    }

    /// On a store without anything, with no lock: everything comes from the archive.
    pub(crate) fn empty() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    pub(crate) fn at(root: TempDir) -> Self {
        let store = Store::open(root.path()).unwrap();
        let context = root.path().join("context");
        std::fs::create_dir(&context).unwrap();
        Self {
            root,
            store,
            context,
            lock: Lock::default(),
        }
    }

    pub(crate) fn bake_from(&self, image: &ImageSpec) -> Result<Baked, BakeError> {
        run(
            &self.store,
            self.root.path(),
            &self.context,
            image,
            None,
            SHA,
            None,
        )
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.context.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The content and owner of a file of the image's topmost layer that has it.
    pub(crate) fn file(&self, baked: &Baked, path: &str) -> Option<(Vec<u8>, u32, u32)> {
        let image = self.store.image(&baked.digest).unwrap();
        image.layers.iter().rev().find_map(|layer| {
            let tree = self.store.layer_tree(layer).unwrap();
            let entry = tree.get(path)?;
            let kiln_oci::Kind::File { content, size } = &entry.kind else {
                return None;
            };
            let bytes = match content {
                kiln_oci::Content::Bytes(bytes) => bytes.to_vec(),
                kiln_oci::Content::Range { file, offset } => {
                    use std::os::unix::fs::FileExt;
                    let mut bytes = vec![0; usize::try_from(*size).unwrap()];
                    file.read_exact_at(&mut bytes, *offset).unwrap();
                    bytes
                }
                other => panic!("a layer that was read back has {other:?}"),
            };
            Some((bytes, entry.uid, entry.gid))
        })
    }
}

pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
