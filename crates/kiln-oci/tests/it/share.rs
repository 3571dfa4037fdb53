//! What layers have in common is in the store once, and each layer is what it would be alone.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_model::Digest;
use kiln_oci::{Entry, Image, ImageConfig, Layer, Output, Store, StoreError, Tree};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// Bytes that do not compress, other ones for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// What a folder takes on the disk.
fn disk_usage(path: &Path) -> u64 {
    let meta = fs::symlink_metadata(path).unwrap();
    let mut sum = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            sum += disk_usage(&entry.unwrap().path());
        }
    }
    sum
}

/// Files from small to several pieces long.
fn base() -> Tree {
    let mut tree = Tree::new();
    for number in 0..400_u64 {
        let length = 500 + (number as usize * 37) % 9000;
        let entry = Entry::bytes(noise(number, length), 0o644).mtime(1_700_000_000);
        tree.insert(format!("app/dir{}/file{number}", number % 11), entry)
            .unwrap();
    }
    for number in 0..10_u64 {
        let entry = Entry::bytes(noise(1000 + number, 900_000), 0o755).mtime(1_700_000_000);
        tree.insert(format!("app/large{number}"), entry).unwrap();
    }
    let entry = Entry::bytes(noise(2000, 8 << 20), 0o644).mtime(1_700_000_000);
    tree.insert("app/data", entry).unwrap();
    tree
}

fn version(number: u64) -> Tree {
    let mut tree = base();
    let entry = Entry::bytes(noise(5000 + number, 3000), 0o644).mtime(1_700_000_000);
    tree.insert("app/dir5/version", entry).unwrap();
    tree
}

fn bytes_of(store: &Store, blob: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = store.open_blob(blob).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(file.size(), bytes.len() as u64);
    bytes
}

fn is_sparse(store: &Store, layer: &Layer) -> bool {
    assert!(store.has(&layer.blob.digest));
    !store.blob_path(&layer.blob.digest).exists()
}

#[test]
fn a_blob_is_the_same_bytes_whatever_else_the_store_has() {
    let (_dir, store) = open();
    store.add_layer(&version(1)).unwrap();
    let second = store.add_layer(&version(2)).unwrap();
    let (_other_dir, other) = open();
    let alone = other.add_layer(&version(2)).unwrap();
    assert!(is_sparse(&store, &second) && !is_sparse(&other, &alone));
    assert_eq!((second.diff_id, &second.blob), (alone.diff_id, &alone.blob));
    let bytes = bytes_of(&store, &second.blob.digest);
    assert!(bytes == bytes_of(&other, &alone.blob.digest));
    assert_eq!(Digest::of(&bytes), second.blob.digest);
    // Any zstd reader takes it as one stream.
    let mut stream = Vec::new();
    kiln_oci::tar::write(&version(2), &mut stream).unwrap();
    assert!(zstd::decode_all(bytes.as_slice()).unwrap() == stream);
    assert_eq!(Digest::of(&stream), second.diff_id);
}

#[test]
fn a_file_twice_in_a_layer_is_in_its_blob_once() {
    let (_dir, store) = open();
    let mut tree = Tree::new();
    for name in ["a", "b"] {
        tree.insert(name, Entry::bytes(noise(1, 3 << 20), 0o644))
            .unwrap();
    }
    let layer = store.add_layer(&tree).unwrap();
    store.verify_blob(&layer.blob.digest).unwrap();
    assert!(layer.blob.size > 6 << 20);
    assert!(disk_usage(&store.dir().join("blobs")) < 4 << 20);
}

#[test]
fn a_blob_whose_donor_is_gone_is_told_and_mended_by_the_next_bake() {
    let (_dir, store) = open();
    let first = store.add_layer(&version(1)).unwrap();
    let second = store.add_layer(&version(2)).unwrap();
    fs::remove_file(store.blob_path(&first.blob.digest)).unwrap();
    let error = store.verify_blob(&second.blob.digest).unwrap_err();
    assert!(
        matches!(&error, StoreError::DonorMissing { donor, .. } if *donor == first.blob.digest),
        "{error}"
    );
    assert_eq!(store.add_layer(&version(2)).unwrap().blob, second.blob);
    store.verify_blob(&second.blob.digest).unwrap();
}

#[test]
fn damage_is_not_passed_on_to_a_new_blob() {
    let (_dir, store) = open();
    let first = store.add_layer(&version(1)).unwrap();
    let path = store.blob_path(&first.blob.digest);
    let mut bytes = fs::read(&path).unwrap();
    for at in (0..bytes.len()).step_by(100_000) {
        bytes[at] ^= 1;
    }
    fs::write(&path, bytes).unwrap();
    let second = store.add_layer(&version(2)).unwrap();
    store.verify_blob(&second.blob.digest).unwrap();
    let (_other_dir, other) = open();
    assert_eq!(second.blob, other.add_layer(&version(2)).unwrap().blob);
}

#[test]
fn without_its_index_the_store_is_right_and_takes_more_space() {
    let (_dir, store) = open();
    store.add_layer(&version(1)).unwrap();
    for (number, damage) in [(2, true), (3, false)] {
        for entry in fs::read_dir(store.dir().join("frames")).unwrap() {
            let path = entry.unwrap().path();
            if damage {
                let mut bytes = fs::read(&path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(&path, bytes).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
        }
        let layer = store.add_layer(&version(number)).unwrap();
        store.verify_blob(&layer.blob.digest).unwrap();
        assert!(!is_sparse(&store, &layer));
    }
}

fn image(store: &Store, layer: &Layer) -> Image {
    let config = ImageConfig::default();
    let digest = store
        .put_image(&config, std::slice::from_ref(layer))
        .unwrap();
    store.image(&digest).unwrap()
}

#[test]
fn a_sparse_blob_is_exported_as_if_it_were_whole() {
    let outputs = [true, false].map(|sparse| {
        let (dir, store) = open();
        if sparse {
            store.add_layer(&version(1)).unwrap();
        }
        let layer = store.add_layer(&version(2)).unwrap();
        assert_eq!(is_sparse(&store, &layer), sparse);
        let image = image(&store, &layer);
        ["oci-archive", "docker-archive", "tar"].map(|kind| {
            let path = dir.path().join(kind);
            let output: Output = format!("{kind}:{}", path.display()).parse().unwrap();
            store.export(&image.digest, "a:1", &output).unwrap();
            Digest::of(&fs::read(path).unwrap())
        })
    });
    assert_eq!(outputs[0], outputs[1]);
}

#[test]
fn fifty_blobs_that_differ_in_one_file_take_little_more_than_one() {
    let (_dir, store) = open();
    let blobs = store.dir().join("blobs");
    store.add_layer(&version(0)).unwrap();
    let one = disk_usage(&blobs);
    let layers: Vec<Layer> = (1..50)
        .map(|number| store.add_layer(&version(number)).unwrap())
        .collect();
    let all = disk_usage(&blobs);
    assert!(all * 5 <= one * 6, "one version {one}, fifty {all}");
    for layer in layers.iter().step_by(12) {
        store.verify_blob(&layer.blob.digest).unwrap();
    }
}

#[test]
fn a_change_within_a_large_file_keeps_most_of_it() {
    let (_dir, store) = open();
    let blobs = store.dir().join("blobs");
    store.add_layer(&base()).unwrap();
    let one = disk_usage(&blobs);
    let mut tree = base();
    let mut data = noise(2000, 8 << 20);
    data[5_000_000] ^= 1;
    tree.insert("app/data", Entry::bytes(data, 0o644).mtime(1_700_000_000))
        .unwrap();
    let layer = store.add_layer(&tree).unwrap();
    let more = disk_usage(&blobs) - one;
    assert!(more < 1 << 20, "one version {one}, the second {more} more");
    store.verify_blob(&layer.blob.digest).unwrap();
}
