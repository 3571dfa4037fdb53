//! What layers have in common is in the store once, and each layer is what it would be alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::erofs::fsck;
use crate::mounts::{Mounted, Seen, SeenKind, read};
use crate::tree::{assert_same, expected};
use kiln_model::Digest;
use proptest::test_runner::{Config, TestRunner};

use kiln_oci::{Entry, Image, ImageConfig, Layer, Output, Store, StoreError, Tree};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// Bytes that do not compress, other ones for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
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

fn donors_of(store: &Store, file: &Path) -> Vec<PathBuf> {
    let donors = kiln_oci::erofs::donors(&fs::File::open(file).unwrap()).unwrap();
    donors.iter().map(|donor| store.erofs_path(donor)).collect()
}

/// The file that was written for the layer.
fn own_file(store: &Store, layer: &Layer) -> PathBuf {
    store.erofs_files(layer).unwrap().pop().unwrap().1
}

/// What the kernel and fsck.erofs say of the layer, mounted as the engine does.
fn check(store: &Store, layer: &Layer, tree: &Tree, folder: &Path) {
    let files = store.erofs_files(layer).unwrap();
    let mut mounts = Vec::new();
    for (at, (_, file)) in files.iter().enumerate() {
        let donors = donors_of(store, file);
        let point = folder.join(format!("mnt{at}"));
        mounts.push(Mounted::erofs_with(file, &donors, &point));
        fsck(file, &donors);
    }
    store.check_erofs(&layer.diff_id).unwrap();
    let wanted = expected(tree);
    if let [_, _] = mounts[..] {
        let points: Vec<&Path> = mounts.iter().map(|mount| mount.path.as_path()).collect();
        let both = Mounted::overlay(&points, &folder.join("both"));
        // An overlay hides what is overlayfs's own, has one link for each directory, and shows no whiteout.
        let plain = |mut seen: BTreeMap<Vec<u8>, Seen>| {
            seen.retain(|_, seen| seen.kind != SeenKind::Char(0, 0));
            for seen in seen.values_mut() {
                seen.xattrs.remove(b"trusted.overlay.opaque".as_slice());
                if seen.kind == SeenKind::Dir {
                    seen.nlink = 1;
                }
            }
            seen
        };
        assert_same(&plain(read(&both.path)), &plain(wanted));
    } else {
        assert_same(&read(&mounts[0].path), &wanted);
    }
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
fn a_sparse_blob_that_was_changed_is_told_with_its_own_file() {
    let (_dir, store) = open();
    store.add_layer(&version(1)).unwrap();
    let second = store.add_layer(&version(2)).unwrap();
    let sparse = store.dir().join("blobs/sparse");
    let sparse = sparse.join(second.blob.digest.hex());
    let mut bytes = fs::read(&sparse).unwrap();
    bytes[10] ^= 1;
    fs::write(&sparse, bytes).unwrap();
    let error = store.verify_blob(&second.blob.digest).unwrap_err();
    assert!(
        matches!(&error, StoreError::BlobCorrupt { path, .. } if *path == sparse),
        "{error}"
    );
    // As the message says.
    fs::remove_file(&sparse).unwrap();
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
fn an_index_that_is_lost_or_damaged_is_made_again() {
    let (dir, store) = open();
    store.add_layer(&version(1)).unwrap();
    // Nothing of ours, and not looked at again.
    let foreign = zstd::encode_all(noise(3, 200_000).as_slice(), 1).unwrap();
    let foreign = store.put_bytes(&foreign).unwrap().digest;
    let indexes = || -> Vec<PathBuf> {
        let entries = fs::read_dir(store.dir().join("frames")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut before = Vec::new();
    for (number, damage) in [(2, true), (3, false), (4, true)] {
        for path in indexes() {
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
        assert!(is_sparse(&store, &layer));
        assert!(indexes().contains(&dir.path().join("store/frames").join(foreign.hex())));
        let all: Vec<_> = indexes()
            .iter()
            .map(|path| fs::read(path).unwrap())
            .collect();
        assert!(
            before.iter().all(|bytes| all.contains(bytes)),
            "others than before"
        );
        before = all;
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
fn fifty_versions_that_differ_in_one_file_take_little_more_than_one() {
    let (dir, store) = open();
    let add = |number| {
        let layer = store.add_layer(&version(number)).unwrap();
        image(&store, &layer);
        layer
    };
    add(0);
    let one = disk_usage(store.dir());
    let layers: Vec<Layer> = (1..50).map(add).collect();
    let all = disk_usage(store.dir());
    let erofs = disk_usage(&store.dir().join("erofs"));
    assert!(
        all * 5 <= one * 6,
        "one version {one}, fifty {all}, EROFS {erofs}"
    );
    for (number, layer) in layers.iter().enumerate().step_by(12) {
        store.verify_blob(&layer.blob.digest).unwrap();
        check(&store, layer, &version(number as u64 + 1), dir.path());
    }
}

#[test]
fn a_change_within_a_large_file_keeps_most_of_it() {
    let (dir, store) = open();
    store.add_layer(&base()).unwrap();
    let one = disk_usage(store.dir());
    let mut tree = base();
    let mut data = noise(2000, 8 << 20);
    data[5_000_000] ^= 1;
    tree.insert("app/data", Entry::bytes(data, 0o644).mtime(1_700_000_000))
        .unwrap();
    let layer = store.add_layer(&tree).unwrap();
    let more = disk_usage(store.dir()) - one;
    assert!(more < 3 << 20, "one version {one}, the second {more} more");
    store.verify_blob(&layer.blob.digest).unwrap();
    check(&store, &layer, &tree, dir.path());
}

#[test]
fn a_layer_is_made_again_where_a_file_that_it_takes_blocks_from_is_gone() {
    let (dir, store) = open();
    let first = store.add_layer(&version(1)).unwrap();
    let mut tree = version(2);
    tree.remove("app/dir3/file3");
    let second = store.add_layer(&tree).unwrap();
    assert_eq!(
        donors_of(&store, &own_file(&store, &second)),
        [store.erofs_path(&first.erofs.unwrap())]
    );
    fs::remove_file(store.erofs_path(&first.erofs.unwrap())).unwrap();
    assert!(matches!(
        store.check_erofs(&second.diff_id),
        Err(StoreError::LayerMissing { .. })
    ));
    store.erofs_files(&second).unwrap();
    let erofs = store.erofs_digest(&second.diff_id).unwrap();
    let again = Layer { erofs, ..second };
    assert_ne!(again.erofs, second.erofs);
    check(&store, &again, &tree, dir.path());
}

#[test]
fn a_file_that_is_cut_or_foreign_counts_as_gone() {
    for cut in [true, false] {
        let (_dir, store) = open();
        let first = store.add_layer(&version(1)).unwrap();
        let mut tree = version(2);
        tree.remove("app/dir3/file3");
        let second = store.add_layer(&tree).unwrap();
        let donor = store.erofs_path(&first.erofs.unwrap());
        let whole = fs::read(&donor).unwrap();
        let other = if cut {
            whole[..whole.len() / 2 / 4096 * 4096].to_vec()
        } else {
            vec![0; whole.len()]
        };
        fs::write(&donor, other).unwrap();
        assert!(store.check_erofs(&second.diff_id).is_err());
        let file = own_file(&store, &second);
        assert_ne!(file, store.erofs_path(&second.erofs.unwrap()));
        assert!(donors_of(&store, &file).is_empty());
        store.check_erofs(&second.diff_id).unwrap();
    }
}

#[test]
fn blocks_are_taken_from_several_files_and_from_the_layer_itself() {
    let (dir, store) = open();
    let file = |seed, length| Entry::bytes(noise(seed, length), 0o644);
    let mut trees = Vec::new();
    for seed in 1..=4 {
        let mut tree = Tree::new();
        tree.insert("own", file(seed, 700_000 + seed as usize))
            .unwrap();
        store.add_layer(&tree).unwrap();
        trees.push(tree);
    }
    let mut both = Tree::new();
    for seed in 1..=4 {
        both.insert(format!("d/{seed}"), file(seed, 700_000 + seed as usize))
            .unwrap();
    }
    // Of one file of the store and new bytes, twice; a hard link; pieces that end within a block.
    let mixed = [noise(1, 524_288), noise(77, 524_288), noise(78, 4097)].concat();
    for name in ["mixed", "twin"] {
        both.insert(name, Entry::bytes(mixed.clone(), 0o600))
            .unwrap();
    }
    let target = "mixed".into();
    let link = kiln_oci::Kind::Hardlink { target };
    both.insert("link", Entry::new(link, 0)).unwrap();
    let layer = store.add_layer(&both).unwrap();
    assert_eq!(donors_of(&store, &own_file(&store, &layer)).len(), 4);
    let size = fs::metadata(store.erofs_path(&layer.erofs.unwrap())).unwrap();
    assert!(size.len() < 600_000, "{}", size.len());
    check(&store, &layer, &both, dir.path());
    // Written again from its blob, it is the same.
    fs::remove_file(store.erofs_path(&layer.erofs.unwrap())).unwrap();
    store.erofs_files(&layer).unwrap();
    assert_eq!(store.erofs_digest(&layer.diff_id).unwrap(), layer.erofs);
}

#[test]
fn a_layer_with_a_path_less_is_whole_again_and_still_shares() {
    let (dir, store) = open();
    let first = store.add_layer(&version(1)).unwrap();
    let changed = store.add_layer(&version(2)).unwrap();
    assert_eq!(store.erofs_files(&changed).unwrap().len(), 2);
    assert_eq!(
        store.erofs_files(&changed).unwrap()[0].0,
        first.erofs.unwrap()
    );
    let size = fs::metadata(own_file(&store, &changed)).unwrap().len();
    assert!(size < 40_000, "{size}");
    check(&store, &changed, &version(2), dir.path());
    let mut tree = version(3);
    tree.remove("app/dir3/file3");
    let less = store.add_layer(&tree).unwrap();
    assert_eq!(store.erofs_files(&less).unwrap().len(), 1);
    check(&store, &less, &tree, dir.path());
    // The list of what the first one has is gone, or wrong: each layer is whole.
    for entry in fs::read_dir(store.dir().join("erofs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|suffix| suffix == "list") {
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let alone = store.add_layer(&version(4)).unwrap();
    assert_eq!(store.erofs_files(&alone).unwrap().len(), 1);
    check(&store, &alone, &version(4), dir.path());
}

#[test]
fn random_differences_are_read_as_the_layer() {
    let mut runner = TestRunner::new(Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    });
    let mut differences = 0;
    let trees = (crate::random::tree(), crate::random::tree());
    let counted = std::cell::RefCell::new(&mut differences);
    runner
        .run(&trees, |(mut tree, few)| {
            let (dir, store) = open();
            // Of a folder that only one layer has, an overlay lists the whiteouts too.
            let all: Vec<_> = tree.iter().map(|(path, _)| path.to_path_buf()).collect();
            for path in all {
                let kind = tree.get(&path).map(|entry| &entry.kind);
                if matches!(kind, Some(kiln_oci::Kind::Whiteout)) {
                    tree.remove(&path);
                }
            }
            for number in 0..400 {
                let entry = Entry::bytes(noise(number, 1500), 0o644);
                tree.insert(format!("much/{}/{number}", number % 5), entry)
                    .unwrap();
            }
            store.add_layer(&tree).unwrap();
            let linked: Vec<_> = few.iter().map(|(path, _)| path.to_path_buf()).collect();
            for path in linked {
                let entry = few.get(&path).unwrap().clone();
                let left_out = matches!(
                    entry.kind,
                    kiln_oci::Kind::Hardlink { .. } | kiln_oci::Kind::Whiteout
                );
                if !left_out && path != Path::new("") {
                    tree.insert(Path::new("much/new").join(path), entry)
                        .unwrap();
                }
            }
            tree.insert("much/3/8", Entry::bytes(*b"changed", 0o600))
                .unwrap();
            let layer = store.add_layer(&tree).unwrap();
            if store.erofs_files(&layer).unwrap().len() == 2 {
                **counted.borrow_mut() += 1;
            }
            check(&store, &layer, &tree, dir.path());
            Ok(())
        })
        .unwrap();
    assert!(differences > 10, "{differences} of 24 were differences");
}

#[test]
fn random_trees_that_share_are_read_as_they_were_written() {
    let mut runner = TestRunner::new(Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    });
    let trees = (crate::random::tree(), crate::random::tree(), 0..1000_u64);
    runner
        .run(&trees, |(mut one, mut two, seed)| {
            let (dir, store) = open();
            let lengths = [8192, 8193, 70_000, 524_288, 524_289, 1_100_000];
            for (at, length) in lengths.iter().enumerate() {
                let entry = Entry::bytes(noise(seed + at as u64, *length), 0o644);
                one.insert(format!("shared/{at}"), entry.clone()).unwrap();
                two.insert(format!("elsewhere/{at}"), entry).unwrap();
            }
            for tree in [&one, &two] {
                let layer = store.add_layer(tree).unwrap();
                check(&store, &layer, tree, dir.path());
                assert!(
                    tree.get("elsewhere").is_none()
                        || donors_of(&store, &own_file(&store, &layer)).len() == 1
                );
            }
            Ok(())
        })
        .unwrap();
}
