//! Pruning: what is needed stays, whoever bakes meanwhile and whenever it is killed.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use kiln_model::Digest;
use kiln_oci::{Entry, ImageConfig, Layer, PruneOptions, Pruned, Store, StoreError, Tree};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// Most of it is the same for each number.
fn tree(number: u32) -> Tree {
    let noise = |seed: u32, length: u32| -> Vec<u8> {
        (0..length)
            .map(|at| ((at ^ seed).wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    };
    let mut tree = Tree::new();
    tree.insert("common", Entry::bytes(noise(7, 700_000), 0o644))
        .unwrap();
    tree.insert("own", Entry::bytes(noise(number << 8, 30_000), 0o644))
        .unwrap();
    tree
}

fn bake(store: &Store, number: u32) -> (Digest, Layer) {
    let layer = store.add_layer(&tree(number)).unwrap();
    let config = ImageConfig {
        author: Some(number.to_string()),
        ..ImageConfig::default()
    };
    let image = store
        .put_image(&config, std::slice::from_ref(&layer))
        .unwrap();
    store.attach(&image, "text/plain", b"said").unwrap();
    (image, layer)
}

/// Everything of the image is there and right.
fn verify(store: &Store, image: &Digest) {
    let image = store.image(image).unwrap();
    for layer in &image.layers {
        store.verify_blob(&layer.blob.digest).unwrap();
        store.layer_tree(layer).unwrap();
        for path in image.erofs_paths(store).unwrap() {
            assert!(path.is_file());
        }
        store.check_erofs(&layer.diff_id).unwrap();
    }
    for referrer in store.referrers(&image.digest).unwrap() {
        store.referrer_document(&referrer.digest).unwrap();
    }
}

fn prune(store: &Store, options: &PruneOptions) -> Pruned {
    let nothing = || Ok::<_, StoreError>(BTreeSet::new());
    store.prune(options, nothing).unwrap()
}

/// Names and lengths of all files.
fn files(store: &Store) -> BTreeSet<(std::path::PathBuf, u64)> {
    let mut files = BTreeSet::new();
    let mut open = vec![store.dir().to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                open.push(entry.path());
            } else {
                files.insert((entry.path(), meta.len()));
            }
        }
    }
    files
}

#[test]
fn what_is_tagged_or_used_stays_with_all_that_it_shares_bytes_with() {
    let (dir, store) = open();
    let [(gone, gone_layer), (tagged, _), (used, _)] = [1, 2, 3].map(|n| bake(&store, n));
    store.tag("app:2", &tagged).unwrap();
    let loose = store.put_bytes(b"nobody needs it").unwrap().digest;
    drop(store);

    let store = Store::open(dir.path()).unwrap().without_session();
    let before = files(&store);
    let in_use = || Ok::<_, StoreError>(BTreeSet::from([used]));
    let dry = PruneOptions {
        dry_run: true,
        ..PruneOptions::default()
    };
    let said = store.prune(&dry, in_use).unwrap();
    assert_eq!(files(&store), before);
    let pruned = store.prune(&PruneOptions::default(), in_use).unwrap();
    assert_eq!(pruned, said);
    assert_eq!((pruned.images.as_slice(), pruned.cache), (&[gone][..], 0));
    assert!(!store.has(&loose));
    assert!(store.image(&gone).is_err() && store.referrers(&gone).unwrap().is_empty());
    // Its layer came first, and the others have its bytes.
    assert!(store.has(&gone_layer.blob.digest));
    assert!(store.erofs_digest(&gone_layer.diff_id).unwrap().is_none());
    verify(&store, &tagged);
    verify(&store, &used);
    let again = store.prune(&PruneOptions::default(), in_use).unwrap();
    assert_eq!((again.files, again.needed), (0, pruned.needed));
    // What is left of it serves the next bake of the same.
    bake(&store, 1);
    verify(&store, &gone);
}

#[test]
fn what_a_needed_image_is_made_of_is_not_guessed() {
    let (dir, store) = open();
    let (tagged, _) = bake(&store, 1);
    let (gone, _) = bake(&store, 2);
    store.tag("app:1", &tagged).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap().without_session();
    let prune = |options| store.prune(&options, || Ok::<_, StoreError>(BTreeSet::new()));

    let manifest = store.blob_path(&tagged);
    let away = dir.path().join("away");
    fs::rename(&manifest, &away).unwrap();
    let broken: [fn(&std::path::Path); 2] = [
        // It is there and can't be read.
        |path| fs::create_dir(path).unwrap(),
        |path| fs::write(path, b"{}").unwrap(),
    ];
    for break_it in broken {
        break_it(&manifest);
        let before = files(&store);
        let error = prune(PruneOptions::default()).unwrap_err().to_string();
        assert!(error.contains(&tagged.hex()), "{error}");
        assert_eq!(files(&store), before);
        let _ = fs::remove_dir(&manifest);
    }
    fs::rename(&away, &manifest).unwrap();

    // Nobody asked for the other one: it goes, or is not counted on.
    fs::write(store.blob_path(&gone), b"{}").unwrap();
    let keep = PruneOptions {
        keep_storage: Some(1 << 30),
        ..PruneOptions::default()
    };
    assert_eq!(prune(keep).unwrap().images, []);
    assert_eq!(prune(PruneOptions::default()).unwrap().images, [gone]);
    verify(&store, &tagged);
}

#[test]
fn a_session_keeps_what_it_asked_for_or_wrote_until_it_ends() {
    let (_dir, store) = open();
    let (image, layer) = bake(&store.in_session(), 1);
    let key = Digest::of(b"step");
    let record = serde_json::to_vec(&layer).unwrap();
    store.in_session().cache_put(&key, &record).unwrap();
    let bake = store.in_session();
    assert!(bake.cache_get(&key).is_some());
    let pruned = prune(&store, &PruneOptions::default());
    // The image's record was not asked for, the step's was, and with it goes the layer.
    assert_eq!(pruned.images, [image]);
    assert!(bake.has(&layer.blob.digest));
    bake.check_erofs(&layer.diff_id).unwrap();
    drop(bake);
    prune(&store, &PruneOptions::default());
    assert!(store.without_session().cache_get(&key).is_none());
    let left: Vec<_> = files(&store)
        .into_iter()
        .filter(|(path, _)| !path.ends_with("gate"))
        .collect();
    assert_eq!(left, []);
}

#[test]
fn limits_keep_the_most_recently_used() {
    let (dir, store) = open();
    let images = [1, 2, 3].map(|number| {
        let mut tree = Tree::new();
        tree.insert("file", Entry::bytes(vec![number as u8; 600_000], 0o644))
            .unwrap();
        let layer = store.add_layer(&tree).unwrap();
        store.put_image(&ImageConfig::default(), &[layer]).unwrap()
    });
    drop(store);
    let store = Store::open(dir.path()).unwrap().without_session();
    let age = |digest: &Digest, hours: u64| {
        let then = SystemTime::now() - Duration::from_secs(hours * 3600);
        for (path, _) in files(&store) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with(&digest.hex()) {
                let file = fs::File::open(path).unwrap();
                file.set_modified(then).unwrap();
            }
        }
    };
    for (image, hours) in images.iter().zip([30, 10, 1]) {
        let image = store.image(image).unwrap();
        let layer = &image.layers[0];
        for digest in [
            image.digest,
            image.config_digest,
            layer.blob.digest,
            layer.diff_id,
            layer.erofs.unwrap(),
        ] {
            age(&digest, hours);
        }
    }
    let older_than = |hours: u64| PruneOptions {
        older_than: Some(Duration::from_secs(hours * 3600)),
        ..PruneOptions::default()
    };
    assert_eq!(prune(&store, &older_than(40)).files, 0);
    assert_eq!(prune(&store, &older_than(20)).images, [images[0]]);
    let one = PruneOptions {
        keep_storage: Some(1_000_000),
        ..PruneOptions::default()
    };
    let pruned = prune(&store, &one);
    assert_eq!(pruned.images, [images[1]]);
    assert!(pruned.cache > 600_000 && pruned.cache <= 1_000_000);
    verify(&store, &images[2]);
}

#[test]
fn bakes_that_race_with_prunes_end_with_whole_images() {
    let (dir, store) = open();
    let ended = AtomicBool::new(false);
    let prunes = std::thread::scope(|scope| {
        let pruner = scope.spawn(|| {
            let mut removed = 0;
            while !ended.load(Ordering::Relaxed) {
                removed += prune(&store, &PruneOptions::default()).files;
            }
            removed
        });
        let bakers: Vec<_> = (0..3)
            .map(|baker| {
                let root = dir.path();
                scope.spawn(move || {
                    for round in 0..12 {
                        // As a process of its own: what it used is free again when it ends.
                        let store = Store::open(root).unwrap();
                        let (image, _) = bake(&store, baker + round % 4);
                        verify(&store, &image);
                        if round == 5 {
                            store.tag(&format!("kept:{baker}"), &image).unwrap();
                        }
                    }
                })
            })
            .collect();
        let baked: Vec<_> = bakers.into_iter().map(|baker| baker.join()).collect();
        ended.store(true, Ordering::Relaxed);
        assert!(baked.iter().all(Result::is_ok), "a bake failed");
        pruner.join().unwrap()
    });
    assert!(prunes > 0, "nothing was ever pruned");
    for baker in 0..3 {
        let image = store.resolve(&format!("kept:{baker}")).unwrap();
        verify(&store, &image);
    }
}

const ROOT: &str = "KILN_TEST_PRUNE_ROOT";

/// The child of the test below: bakes, and prunes, without end.
#[test]
#[ignore = "only as a child of another test"]
fn bake_and_prune_without_end() {
    let root = std::env::var_os(ROOT).unwrap();
    for number in 0.. {
        let store = Store::open(root.as_ref()).unwrap();
        bake(&store, number % 5);
        store.cache_put(&Digest::of(b"key"), b"record").unwrap();
        drop(store);
        let store = Store::open(root.as_ref()).unwrap();
        prune(&store, &PruneOptions::default());
    }
}

#[test]
fn killed_at_any_instant_the_store_is_right() {
    let (dir, store) = open();
    let (tagged, _) = bake(&store, 1);
    store.tag("kept:1", &tagged).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap().without_session();
    for round in 0..15 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "prune::bake_and_prune_without_end", "--ignored"])
            .env(ROOT, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(150 + round * 29));
        assert_eq!(child.try_wait().unwrap(), None, "the child ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        verify(&store, &tagged);
        for image in store.images().unwrap() {
            verify(&store, &image.digest);
        }
        bake(&store.in_session(), 2);
    }
    prune(&store, &PruneOptions::default());
    verify(&store, &tagged);
    assert_eq!(store.images().unwrap().len(), 1);
    assert_eq!(
        fs::read_dir(store.dir().join("sessions")).unwrap().count(),
        0
    );
}

/// A cache of a step, used so long ago.
fn mount(store: &Store, name: &str, id: &str, age: Duration) -> fs::File {
    let folder = store.dir().join("mounts").join(name);
    fs::create_dir_all(folder.join("data/deep")).unwrap();
    fs::write(folder.join("data/deep/file"), vec![1; 1 << 20]).unwrap();
    fs::write(folder.join("id"), id).unwrap();
    let lock = fs::File::create(folder.join("lock")).unwrap();
    lock.set_modified(SystemTime::now() - age).unwrap();
    lock
}

#[test]
fn caches_of_steps_go_as_all_else_unless_a_step_has_them() {
    let (_dir, store) = open();
    let store = store.without_session();
    let day = Duration::from_secs(24 * 3600);
    let folder = |name: &str| store.dir().join("mounts").join(name);
    let fill = || {
        mount(&store, "aa", "old", 9 * day);
        mount(&store, "bb", "young", day / 2);
        mount(&store, "bb.1", "young", 3 * day);
        mount(&store, "cc", "taken", 20 * day)
    };
    let names = |pruned: &Pruned| -> Vec<String> {
        let ids = pruned.mounts.iter().map(|mount| mount.id.clone());
        ids.collect()
    };
    let taken = fill();
    rustix::fs::flock(&taken, rustix::fs::FlockOperation::LockShared).unwrap();
    // What a prune left that was killed.
    fs::create_dir_all(folder("dd.gone-7/data")).unwrap();
    let week = PruneOptions {
        older_than: Some(7 * day),
        ..PruneOptions::default()
    };
    let dry = PruneOptions {
        dry_run: true,
        ..week.clone()
    };
    assert_eq!(names(&prune(&store, &dry)), ["old"]);
    assert!(folder("aa").is_dir() && folder("dd.gone-7").is_dir());
    let pruned = prune(&store, &week);
    assert_eq!(names(&pruned), ["old"]);
    assert!(pruned.freed >= 1 << 20 && pruned.needed >= 1 << 20 && pruned.cache >= 2 << 20);
    assert!(!folder("aa").exists() && !folder("dd.gone-7").exists());
    let small = PruneOptions {
        keep_storage: Some(3 << 19),
        ..PruneOptions::default()
    };
    assert_eq!(names(&prune(&store, &small)), ["young"]);
    assert!(folder("bb").is_dir() && !folder("bb.1").exists() && folder("cc").is_dir());
    drop(taken);
    let all = prune(&store, &PruneOptions::default());
    assert_eq!(names(&all), ["taken", "young"]);
    assert_eq!(fs::read_dir(store.dir().join("mounts")).unwrap().count(), 0);
}

#[test]
fn a_tag_that_was_taken_away_keeps_nothing_and_is_never_another_images() {
    let (dir, store) = open();
    let [(one, _), (other, _)] = [1, 2].map(|n| bake(&store, n));
    store.tag("app:1", &one).unwrap();
    assert_eq!(store.remove_tag("app:1").unwrap(), one);
    let again = store.remove_tag("app:1").unwrap_err();
    assert!(matches!(again, StoreError::UnknownReference { .. }));
    assert!(store.tags().unwrap().is_empty() && store.resolve("app:1").is_err());
    let taken = store.tag("app:1", &other).unwrap_err();
    assert!(matches!(taken, StoreError::TagTaken { existing, .. } if existing == one));
    store.tag("app:1", &one).unwrap();
    assert_eq!(store.resolve("app:1").unwrap(), one);
    store.remove_tag("app:1").unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap().without_session();
    let pruned = prune(&store, &PruneOptions::default());
    assert_eq!(pruned.images.len(), 2);
    let (again, _) = bake(&store, 1);
    assert_eq!(again, one);
    store.tag("app:1", &one).unwrap();
}
