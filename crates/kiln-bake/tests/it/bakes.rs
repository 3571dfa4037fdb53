use kiln_bake::BakeError;

use crate::world::{World, copy, debian, image, told, user};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "two_stores_bake_the_same_image_without_the_archive_when_its_packages_are_there",
        same_digest,
    ),
    ("a_changed_file_bakes_only_what_comes_after_it", one_file),
    (
        "an_image_on_another_has_its_layers_and_its_packages",
        on_another,
    ),
    ("the_commit_changes_no_image", commit),
    (
        "a_step_that_fails_is_told_with_its_last_lines_and_leaves_no_tag",
        failing_step,
    ),
    ("a_step_reaches_no_network_and_can_not_mount", sealed),
    ("an_image_without_its_command_is_told", no_command),
    ("an_archive_that_is_not_there_is_told", unreachable),
    ("dpkg_inside_finds_nothing_to_complain_about", audit),
    ("a_bake_that_was_killed_leaves_the_cache_right", killed),
];

fn full() -> kiln_model::ImageSpec {
    let mut image = image();
    image.users = vec![user("app", 1000)];
    image.copies = vec![copy("app/", "/opt/app", Some("app"))];
    image.run = vec!["id -un > /opt/app/who && date +%s > /dev/null".into()];
    image.run_as = Some("app".into());
    image
}

fn same_digest() {
    let digests: Vec<_> = (0..2)
        .map(|_| {
            let world = World::fresh();
            world.write("app/file", "content");
            let baked = world
                .bake(&full())
                .unwrap_or_else(|error| panic!("{}", told(&error)));
            assert!(baked.steps.iter().all(|step| !step.cached));
            assert_eq!(
                world.file(&baked, "opt/app/who").unwrap(),
                (b"app\n".to_vec(), 1000, 1000)
            );
            assert_eq!(
                world.file(&baked, "opt/app/file").unwrap(),
                (b"content".to_vec(), 1000, 1000)
            );
            let again = world.bake(&full()).unwrap();
            assert!(again.steps.iter().all(|step| step.cached));
            assert_eq!((again.digest, &again.tag), (baked.digest, &baked.tag));
            baked.digest
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
}

fn cached(baked: &kiln_bake::Baked) -> Vec<bool> {
    baked.steps.iter().map(|step| step.cached).collect()
}

fn one_file() {
    let world = World::new();
    world.write("app/file", "one");
    world.bake(&full()).unwrap();
    world.write("app/file", "two");
    let baked = world.bake(&full()).unwrap();
    assert_eq!(cached(&baked), [true, true, false, false]);
    assert_eq!(world.file(&baked, "opt/app/file").unwrap().0, b"two");
}

/// In two stores: one that baked the base before, one where the image is the first.
fn on_another() {
    let mut above = image();
    above.name = "above".parse().unwrap();
    above.base = Some(Box::new(full()));
    above.copies = vec![copy("more", "/opt/app/more", None)];
    above.run = vec![
        "cat /opt/app/who /opt/app/file /opt/app/more > /tmp/all; cp /tmp/all /var/tmp/all".into(),
    ];
    above.run_as = Some("app".into());
    let write = |world: &World| {
        world.write("app/file", "file\n");
        world.write("more", "more\n");
    };
    let world = World::fresh();
    write(&world);
    let base = world.bake(&full()).unwrap();
    let baked = world
        .bake(&above)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!(cached(&baked), [true, true, true, true, false, false]);
    let all = world.file(&baked, "var/tmp/all").unwrap();
    assert_eq!(all, (b"app\nfile\nmore\n".to_vec(), 1000, 1000));
    // Its packages are those of the base's entry, and it has none of its own.
    assert_eq!(baked.lock, base.lock);
    let alone = World::fresh();
    write(&alone);
    let again = alone.bake(&above).unwrap();
    assert_eq!(cached(&again), [false; 6]);
    assert_eq!(again.digest, baked.digest);
    // What the base copies is part of what is baked.
    world.write("app/file", "other\n");
    let changed = world.bake(&above).unwrap();
    assert_eq!(cached(&changed), [true, true, false, false, false, false]);
}

fn commit() {
    let world = World::new();
    let mut wanted = image();
    wanted.version = "2".into();
    let baked = world.bake(&wanted).unwrap();
    assert_eq!(baked.tag, "tiny:2-0123456789ab");
    let manifest = String::from_utf8(world.store.image(&baked.digest).unwrap().manifest).unwrap();
    let config = serde_json::to_string(&baked.config).unwrap();
    assert!(!manifest.contains("0123456789ab") && !config.contains("0123456789ab"));
}

fn failing_step() {
    let world = World::new();
    let mut wanted = image();
    wanted.version = "fails".into();
    wanted.run = vec!["echo about to fail; exit 7".into()];
    let error = world.bake(&wanted).err().expect("the step fails");
    assert!(matches!(error, BakeError::Step { .. }));
    let text = told(&error);
    assert!(
        text.contains("code 7") && text.contains("about to fail"),
        "{text}"
    );
    assert!(
        world
            .store
            .tags()
            .unwrap()
            .iter()
            .all(|entry| !entry.tag.contains("fails"))
    );
}

fn sealed() {
    let world = World::new();
    let mut wanted = image();
    wanted.run = vec![
        "! mount -t tmpfs none /mnt 2>/dev/null".into(),
        "test \"$(cat /proc/net/dev | wc -l)\" = 3".into(),
        "test ! -e /dev/kmsg && test ! -e /dev/mem && ! mknod /tmp/x b 8 0 2>/dev/null".into(),
        "test \"$(hostname)\" = kiln && test -z \"$KILN_ROOT\"".into(),
    ];
    if let Err(error) = world.bake(&wanted) {
        panic!("{}", told(&error));
    }
}

fn no_command() {
    let world = World::new();
    let mut wanted = image();
    wanted.cmd = vec!["nothing-of-that-name".into()];
    let error = world.bake(&wanted).err().expect("it has no such command");
    assert!(
        told(&error).contains("nothing-of-that-name"),
        "{}",
        told(&error)
    );
}

fn unreachable() {
    let world = World::new();
    let mut wanted = image();
    debian(&mut wanted).packages = vec!["hello".into()];
    let error = world
        .bake(&wanted)
        .err()
        .expect("the lock does not fit and nobody answers");
    assert!(matches!(error, BakeError::Fetch { .. }));
    let text = told(&error);
    assert!(
        text.contains("127.0.0.1:1") && text.contains("kiln.lock"),
        "{text}"
    );
}

fn audit() {
    let world = World::new();
    let mut wanted = image();
    wanted.run = vec!["test -z \"$(dpkg --audit)\" && test -z \"$(dpkg --verify)\" && dpkg -s dpkg | grep -q 'ok installed'".into()];
    if let Err(error) = world.bake(&wanted) {
        panic!("{}", told(&error));
    }
}

/// What a killed bake leaves: a folder of its own, and no record.
fn killed() {
    let world = World::fresh();
    let dead = world.root.path().join("work/step-4194304-0/upper");
    std::fs::create_dir_all(&dead).unwrap();
    std::fs::write(dead.join("half"), "half").unwrap();
    let baked = world.bake(&image()).unwrap();
    assert!(!dead.exists(), "what a dead bake left is swept by the next");
    assert!(world.file(&baked, "half").is_none());
    assert_eq!(
        std::fs::read_dir(world.root.path().join("work"))
            .unwrap()
            .count(),
        0
    );
}
