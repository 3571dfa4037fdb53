//! The store on a real disk, a full one and a read-only one.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln_model::Digest;
use kiln_oci::{Entry, ImageConfig, RunConfig, Store, StoreError, Tree};

use crate::mounts::{Mounted, read};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn left_in_tmp(store: &Store) -> usize {
    fs::read_dir(store.dir().join("tmp")).unwrap().count()
}

fn tree(text: &str) -> Tree {
    let mut tree = Tree::new();
    tree.insert(
        "etc/file",
        Entry::bytes(text.as_bytes().to_vec(), 0o640).owner(5, 6),
    )
    .unwrap();
    tree.insert("big", Entry::bytes(vec![b'b'; 100_000], 0o644))
        .unwrap();
    tree
}

fn config() -> ImageConfig {
    ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        config: RunConfig {
            user: "app".to_owned(),
            cmd: vec!["/bin/app".to_owned()],
            env: vec!["B=2".to_owned(), "A=1".to_owned()],
            ..RunConfig::default()
        },
        ..ImageConfig::default()
    }
}

#[test]
fn blobs_come_back_by_digest() {
    let (_dir, store) = open();
    let blob = store.put_bytes(b"abc").unwrap();
    assert_eq!(blob.digest, Digest::of(b"abc"));
    assert!(blob.is_new && store.has(&blob.digest));
    assert!(!store.put_reader(b"abc".as_slice()).unwrap().is_new);
    assert_eq!(store.blob_size(&blob.digest).unwrap(), 3);
    assert_eq!(store.read_blob(&blob.digest, 3).unwrap(), b"abc");
    let mut text = String::new();
    store
        .open_blob(&blob.digest)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "abc");
    store.verify_blob(&blob.digest).unwrap();
    assert!(matches!(
        store.read_blob(&blob.digest, 2),
        Err(StoreError::BlobTooLarge { limit: 2, .. })
    ));
    let absent = Digest::of(b"absent");
    assert!(
        matches!(store.open_blob(&absent), Err(StoreError::BlobMissing { digest }) if digest == absent)
    );
    assert_eq!(left_in_tmp(&store), 0);
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let (_dir, store) = open();
    let mut writer = store.blob_writer().unwrap();
    writer.write_all(b"half").unwrap();
    assert_eq!(left_in_tmp(&store), 1);
    drop(writer);
    assert_eq!(left_in_tmp(&store), 0);
    assert!(!store.has(&Digest::of(b"half")));
}

#[test]
fn a_changed_blob_is_found() {
    let (_dir, store) = open();
    let digest = store.put_bytes(b"content").unwrap().digest;
    fs::write(store.blob_path(&digest), b"CONTENT").unwrap();
    for error in [
        store.verify_blob(&digest).err(),
        store.read_blob(&digest, 100).err(),
    ] {
        assert!(
            matches!(error, Some(StoreError::BlobCorrupt { .. })),
            "{error:?}"
        );
    }
}

#[test]
fn many_writers_of_one_blob_agree() {
    let (_dir, store) = open();
    let bytes = vec![9; 300_000];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| store.put_reader(bytes.as_slice()).unwrap());
        }
    });
    store.verify_blob(&Digest::of(&bytes)).unwrap();
    assert_eq!(left_in_tmp(&store), 0);
}

#[test]
fn only_what_dead_writers_left_is_removed() {
    let (dir, store) = open();
    let old = SystemTime::now() - Duration::from_secs(3600);
    let age = |path: &Path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(old).unwrap();
    };
    // The writer of this one lives: it holds the lock.
    let writer = store.blob_writer().unwrap();
    let tmp = store.dir().join("tmp");
    let alive = fs::read_dir(&tmp).unwrap().next().unwrap().unwrap().path();
    age(&alive);
    fs::write(tmp.join("dead"), "left").unwrap();
    age(&tmp.join("dead"));
    fs::write(tmp.join("young"), "not locked yet").unwrap();
    Store::open(dir.path()).unwrap();
    assert!(alive.exists());
    assert!(!tmp.join("dead").exists());
    assert!(tmp.join("young").exists());
    drop(writer);
}

#[test]
fn a_tag_is_given_once() {
    let (_dir, store) = open();
    let one = store.put_image(&config(), &[]).unwrap();
    let mut other = config();
    other.architecture = "arm64".to_owned();
    let two = store.put_image(&other, &[]).unwrap();
    store.tag("shop/api:1.4.0-abc", &one).unwrap();
    store.tag("shop/api:1.4.0-abc", &one).unwrap();
    let error = store.tag("shop/api:1.4.0-abc", &two).unwrap_err();
    assert!(matches!(error, StoreError::TagTaken { existing, .. } if existing == one));
    assert_eq!(store.resolve("shop/api:1.4.0-abc").unwrap(), one);
    for wrong in ["", "a b", "../x", "-x", "sha256:abcd", &"x".repeat(201)] {
        assert!(
            matches!(store.tag(wrong, &one), Err(StoreError::TagInvalid { .. })),
            "{wrong}"
        );
    }
    assert!(matches!(
        store.tag("x", &Digest::of(b"no")),
        Err(StoreError::BlobMissing { .. })
    ));
    let tags = store.tags().unwrap();
    assert_eq!(tags.len(), 1);
    assert_eq!(
        (tags[0].tag.as_str(), tags[0].digest),
        ("shop/api:1.4.0-abc", one)
    );
}

#[test]
fn of_many_who_give_one_tag_one_succeeds() {
    let (_dir, store) = open();
    let images: Vec<_> = (0..6)
        .map(|number| {
            let mut config = config();
            config.os = format!("os{number}");
            store.put_image(&config, &[]).unwrap()
        })
        .collect();
    let given = std::thread::scope(|scope| {
        let store = &store;
        let threads: Vec<_> = images
            .iter()
            .map(|image| scope.spawn(move || store.tag("app:1", image).is_ok()))
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap())
            .filter(|ok| *ok)
            .count()
    });
    assert_eq!(given, 1);
    assert!(images.contains(&store.resolve("app:1").unwrap()));
}

#[test]
fn references_are_tags_digests_and_their_first_digits() {
    let (_dir, store) = open();
    let image = store.put_image(&config(), &[]).unwrap();
    for reference in [
        image.to_string(),
        image.hex()[..4].to_owned(),
        format!("sha256:{}", image.short()),
    ] {
        assert_eq!(store.resolve(&reference).unwrap(), image, "{reference}");
    }
    // Three digits, none of an image, and a layer's or configuration's digest prefix are no images.
    let config_digest = store.image(&image).unwrap().config_digest;
    for reference in [
        &image.hex()[..3],
        "latest",
        &config_digest.hex()[..12],
        &Digest::of(b"x").to_string(),
    ] {
        let error = store.resolve(reference).unwrap_err();
        assert!(
            matches!(error, StoreError::UnknownReference { .. }),
            "{reference}: {error}"
        );
    }
    let mut prefixes = std::collections::BTreeMap::new();
    let (first, second) = (0..)
        .find_map(|number| {
            let mut config = config();
            config.os = format!("os{number}");
            let image = store.put_image(&config, &[]).unwrap();
            let earlier = prefixes.insert(image.hex()[..4].to_owned(), image)?;
            Some((earlier, image))
        })
        .unwrap();
    let Err(StoreError::AmbiguousReference { mut matches, .. }) = store.resolve(&first.hex()[..4])
    else {
        panic!("four digits of two images were taken for one");
    };
    matches.sort();
    let mut wanted = vec![first, second];
    wanted.sort();
    assert_eq!(matches, wanted);
}

#[test]
fn a_cache_record_that_is_not_whole_counts_as_absent() {
    let (_dir, store) = open();
    let key = Digest::of(b"step");
    assert_eq!(store.cache_get(&key), None);
    store.cache_put(&key, b"{\"layer\":1}").unwrap();
    store.cache_put(&key, b"{\"layer\":2}").unwrap();
    assert_eq!(store.cache_get(&key).unwrap(), b"{\"layer\":2}");
    let path = store.dir().join("cache").join(key.hex());
    let bytes = fs::read(&path).unwrap();
    for end in 0..bytes.len() {
        fs::write(&path, &bytes[..end]).unwrap();
        assert_eq!(store.cache_get(&key), None, "cut at {end}");
    }
}

#[test]
fn equal_trees_make_equal_images_in_different_stores() {
    let digests = [0, 1].map(|_| {
        let (_dir, store) = open();
        let layers = ["one", "two"].map(|text| store.add_layer(&tree(text)).unwrap());
        let image = store.put_image(&config(), &layers).unwrap();
        (
            image,
            layers.map(|layer| (layer.diff_id, layer.blob, layer.erofs)),
        )
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn an_image_reads_back_and_its_layers_mount() {
    let (dir, store) = open();
    let layers = [
        store.add_layer(&tree("low")).unwrap(),
        store.add_layer(&tree("high")).unwrap(),
    ];
    let digest = store.put_image(&config(), &layers).unwrap();
    store.tag("app:1", &digest).unwrap();
    let image = store.image(&digest).unwrap();
    assert_eq!(image.layers, layers);
    assert_eq!(image.config.config, config().config);
    assert_eq!(
        image.config.rootfs.diff_ids,
        [layers[0].diff_id, layers[1].diff_id]
    );
    assert_eq!(Digest::of(&image.manifest), digest);
    let paths = image.erofs_paths(&store).unwrap();
    for (path, text) in paths.iter().zip(["low", "high"]) {
        let mounted = Mounted::erofs(path, &dir.path().join("mnt"));
        assert_eq!(
            fs::read_to_string(mounted.path.join("etc/file")).unwrap(),
            text
        );
    }
    let listed = store.images().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].digest, listed[0].tags.as_slice()),
        (digest, ["app:1".to_owned()].as_slice())
    );
    let documents: u64 = [digest, image.config_digest]
        .iter()
        .map(|d| store.blob_size(d).unwrap())
        .sum();
    let blobs: u64 = layers
        .iter()
        .map(|layer| store.blob_size(&layer.blob.digest).unwrap())
        .sum();
    assert_eq!(listed[0].size, documents + blobs);
}

#[test]
fn the_json_is_canonical_and_others_json_is_read() {
    let (_dir, store) = open();
    let digest = store.put_image(&config(), &[]).unwrap();
    let image = store.image(&digest).unwrap();
    let json = String::from_utf8(store.read_blob(&image.config_digest, 4096).unwrap()).unwrap();
    assert_eq!(
        json,
        r#"{"architecture":"amd64","config":{"Cmd":["/bin/app"],"Env":["B=2","A=1"],"User":"app"},"os":"linux","rootfs":{"diff_ids":[],"type":"layers"}}"#
    );
    let others = r#"{"architecture":"amd64","os":"linux","config":{"Cmd":null,"Labels":null,"ExposedPorts":{"80/tcp":{}},"ArgsEscaped":true},"rootfs":{"type":"layers","diff_ids":[]},"variant":"v2"}"#;
    let parsed: ImageConfig = serde_json::from_str(others).unwrap();
    assert!(parsed.config.cmd.is_empty());
    assert!(parsed.config.exposed_ports.contains_key("80/tcp"));
}

#[test]
fn an_erofs_file_that_is_missing_is_made_again_bit_for_bit() {
    let (_dir, store) = open();
    let layer = store.add_layer(&tree("text")).unwrap();
    let digest = store
        .put_image(&config(), std::slice::from_ref(&layer))
        .unwrap();
    let path = store.erofs_path(&layer.erofs.unwrap());
    let before = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        store.check_erofs(&layer.diff_id),
        Err(StoreError::LayerMissing { .. })
    ));
    assert_eq!(
        store.image(&digest).unwrap().erofs_paths(&store).unwrap(),
        std::slice::from_ref(&path)
    );
    assert!(fs::read(&path).unwrap() == before);
    store.check_erofs(&layer.diff_id).unwrap();
    assert_eq!(left_in_tmp(&store), 0);
}

#[test]
fn a_changed_layer_is_named() {
    let (_dir, store) = open();
    let layer = store.add_layer(&tree("text")).unwrap();
    let path = store.erofs_path(&layer.erofs.unwrap());
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = store.check_erofs(&layer.diff_id).unwrap_err();
    assert!(
        matches!(&error, StoreError::LayerChanged { diff_id, .. } if *diff_id == layer.diff_id)
    );
    assert!(error.to_string().contains(&layer.diff_id.to_string()));
}

#[test]
fn a_mounted_layer_keeps_its_file_when_it_is_baked_again() {
    let (_dir, store) = open();
    let layer = store.add_layer(&tree("text")).unwrap();
    let inode = || {
        fs::metadata(store.erofs_path(&layer.erofs.unwrap()))
            .unwrap()
            .ino()
    };
    let before = inode();
    assert_eq!(store.add_layer(&tree("text")).unwrap(), layer);
    assert_eq!(inode(), before);
}

#[test]
fn a_blob_that_is_not_its_layer_is_refused() {
    let (_dir, store) = open();
    let mut layer = store.add_layer(&tree("text")).unwrap();
    let other = store.add_layer(&tree("other")).unwrap();
    layer.blob = other.blob;
    fs::remove_file(store.erofs_path(&layer.erofs.unwrap())).unwrap();
    let error = store.erofs_files(&layer).unwrap_err();
    assert!(
        matches!(error, StoreError::DiffIdWrong { actual, .. } if actual == other.diff_id),
        "{error}"
    );
    assert!(!store.erofs_path(&layer.erofs.unwrap()).exists());
}

#[test]
fn a_layer_of_a_directory_is_what_the_directory_was() {
    let (dir, store) = open();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/b/file"), vec![1; 5000]).unwrap();
    fs::write(source.join("a/empty"), "").unwrap();
    let mut tree = Tree::from_upper(&source).unwrap();
    tree.clamp_mtime(1_000_000_000);
    let layer = store.add_layer(&tree).unwrap();
    let mounted = Mounted::erofs(&store.lowers(&[layer]).unwrap()[0], &dir.path().join("mnt"));
    let seen = read(&mounted.path);
    assert_eq!(seen.len(), 5);
    assert!(seen.values().all(|seen| seen.mtime == 1_000_000_000));
    assert_eq!(
        fs::read(mounted.path.join("a/b/file")).unwrap(),
        vec![1; 5000]
    );
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::tmpfs("1m", &dir.path().join("disk"));
    let store = Store::open(&disk.path).unwrap();
    let noise: Vec<u8> = (0..2_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut tree = Tree::new();
    tree.insert("noise", Entry::bytes(noise.clone(), 0o644))
        .unwrap();
    for error in [store.put_bytes(&noise).err(), store.add_layer(&tree).err()] {
        let error = error.expect("two megabytes fitted into one");
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    }
    assert!(!store.has(&Digest::of(&noise)));
    assert_eq!(left_in_tmp(&store), 0);
    assert_eq!(fs::read_dir(store.dir().join("erofs")).unwrap().count(), 0);
    store.put_bytes(b"small").unwrap();
}

#[test]
fn a_read_only_disk_is_said_and_can_still_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::tmpfs("4m", &dir.path().join("disk"));
    let digest = Store::open(&disk.path)
        .unwrap()
        .put_bytes(b"before")
        .unwrap()
        .digest;
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount_remount(&disk.path, flags, c"").unwrap();
    let store = Store::open(&disk.path).unwrap();
    assert_eq!(store.read_blob(&digest, 10).unwrap(), b"before");
    let error = store.put_bytes(b"after").unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
}

#[test]
fn what_is_said_about_an_image_names_it_and_leaves_it_as_it_is() {
    let (_dir, store) = open();
    let layer = store.add_layer(&tree("x")).unwrap();
    let image = store.put_image(&config(), &[layer]).unwrap();
    let (sbom, other) = ("application/spdx+json", "application/vnd.in-toto+json");
    let first = store.attach(&image, sbom, b"{\"a\":1}").unwrap();
    let second = store.attach(&image, other, b"{}").unwrap();
    assert_eq!(store.attach(&image, sbom, b"{\"a\":1}").unwrap(), first);
    let referrers = store.referrers(&image).unwrap();
    let mut seen: Vec<_> = referrers
        .iter()
        .map(|referrer| (referrer.digest, referrer.artifact_type.as_str()))
        .collect();
    seen.sort();
    let mut expected = [(first, sbom), (second, other)];
    expected.sort();
    assert_eq!(seen, expected);
    assert_eq!(store.referrer_document(&first).unwrap(), b"{\"a\":1}");
    // By the image specification: the subject is the image's own descriptor, and there is no configuration.
    let manifest = store.read_blob(&first, 1 << 20).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["subject"]["digest"], image.to_string());
    assert_eq!(
        manifest["subject"]["size"],
        store.blob_size(&image).unwrap()
    );
    assert_eq!(manifest["artifactType"], sbom);
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.oci.empty.v1+json"
    );
    // It is no image of its own.
    assert_eq!(store.images().unwrap().len(), 1);
    let nowhere = Digest::of(b"nowhere");
    assert!(store.referrers(&nowhere).unwrap().is_empty());
    assert!(store.attach(&nowhere, sbom, b"{}").is_err());
}
