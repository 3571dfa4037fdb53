//! Files of which is known what they hold: they give the layer that reading them gives, and nothing is believed that is not so.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_model::Digest;
use kiln_oci::{Content, Entry, Kind, KnownFile, LayerError, Stamp, Store, StoreError, Tree};

use crate::share::noise;

struct Folder {
    dir: tempfile::TempDir,
    open: Arc<OwnedFd>,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = Arc::new(File::open(dir.path()).unwrap().into());
        Self { dir, open }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a file holds at this moment.
    fn known(&self, name: &str) -> KnownFile {
        let bytes = fs::read(self.path(name)).unwrap();
        let pieces = bytes.chunks(KnownFile::PIECE).map(Digest::of);
        KnownFile {
            stamp: Stamp::of_file(&File::open(self.path(name)).unwrap()).unwrap(),
            pieces: pieces.collect(),
        }
    }

    fn tree(&self, files: &[(&str, Option<KnownFile>)]) -> Tree {
        let mut tree = Tree::new();
        for (name, known) in files {
            let (dir, path) = (self.open.clone(), PathBuf::from(name));
            let size = fs::metadata(self.path(name)).unwrap().len();
            let content = match known.clone().map(Arc::new) {
                Some(file) => Content::Known { dir, path, file },
                None => Content::Under { dir, path },
            };
            let entry = Entry::new(Kind::File { content, size }, 0o644);
            tree.insert(name, entry).unwrap();
        }
        tree
    }
}

fn changed(result: Result<kiln_oci::Layer, StoreError>) -> PathBuf {
    match result {
        Err(StoreError::Layer(LayerError::ContentDiffers { path })) => path,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_known_file_gives_the_layer_that_reading_it_gives() {
    let folder = Folder::new();
    fs::write(folder.path("empty"), b"").unwrap();
    fs::write(folder.path("small"), b"text").unwrap();
    fs::write(folder.path("middle"), noise(1, 200_000)).unwrap();
    fs::write(folder.path("large"), noise(2, 3 * KnownFile::PIECE + 5)).unwrap();
    let names = ["empty", "large", "middle", "small"];
    let read = folder.tree(&names.map(|name| (name, None)));
    let known = || folder.tree(&names.map(|name| (name, Some(folder.known(name)))));
    let (one, other) = (Folder::new(), Folder::new());
    let one = Store::open(one.dir.path()).unwrap();
    let other = Store::open(other.dir.path()).unwrap();
    let layer = one.add_layer(&read).unwrap();
    assert_eq!(other.add_layer(&known()).unwrap(), layer);
    // And again, where the store has most of it.
    fs::write(folder.path("small"), b"other").unwrap();
    let read = folder.tree(&names.map(|name| (name, None)));
    let (layer, from_known) = (
        one.add_layer(&read).unwrap(),
        other.add_layer(&known()).unwrap(),
    );
    assert_eq!(
        (from_known.diff_id, from_known.blob),
        (layer.diff_id, layer.blob.clone())
    );
    other.verify_blob(&layer.blob.digest).unwrap();
    assert!(other.layer_tree(&layer).is_ok());
}

#[test]
fn a_file_that_is_not_as_it_was_known_is_an_error() {
    let folder = Folder::new();
    let store = Store::open(folder.dir.path()).unwrap();
    for size in [4, 300_000] {
        fs::write(folder.path("file"), noise(1, size)).unwrap();
        let known = folder.known("file");
        fs::write(folder.path("file"), noise(2, size)).unwrap();
        let tree = folder.tree(&[("file", Some(known))]);
        assert_eq!(changed(store.add_layer(&tree)), Path::new("file"));
    }
}

#[test]
fn stat_data_that_lie_make_no_damaged_layer() {
    let folder = Folder::new();
    let store = Store::open(folder.dir.path()).unwrap();
    fs::write(folder.path("file"), noise(1, 300_000)).unwrap();
    let before = folder.known("file");
    store
        .add_layer(&folder.tree(&[("file", Some(before.clone()))]))
        .unwrap();
    // As where a disk or a clock is wrong: other bytes, and the stat data that are said to belong to the old ones.
    fs::write(folder.path("file"), noise(2, 300_000)).unwrap();
    let lie = KnownFile {
        stamp: folder.known("file").stamp,
        pieces: before.pieces,
    };
    let tree = folder.tree(&[("file", Some(lie))]);
    match store.add_layer(&tree) {
        Err(StoreError::Io { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::InvalidData);
        }
        other => panic!("{other:?}"),
    }
}
