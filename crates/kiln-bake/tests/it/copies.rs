use std::os::unix::fs::symlink;

use crate::world::{World, copy, image, told};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("nothing_outside_the_definitions_folder_is_copied", outside),
    ("a_source_that_is_not_there_is_told", missing),
    (
        "a_single_file_a_folder_and_a_link_are_copied_as_they_are",
        kinds,
    ),
];

fn refused(world: &World, from: &str) -> String {
    let mut wanted = image();
    wanted.copies = vec![copy(from, "/opt/x", None)];
    told(&world.bake(&wanted).err().expect("it is refused"))
}

fn outside() {
    let world = World::new();
    symlink("/etc", world.context.join("link")).unwrap();
    for from in ["../", "/etc/passwd", "a/../../b", "link/passwd"] {
        let text = refused(&world, from);
        assert!(text.contains(from), "{text}");
    }
}

fn missing() {
    let world = World::new();
    assert!(refused(&world, "nowhere/").contains("nowhere/"));
}

fn kinds() {
    let world = World::new();
    world.write("one", "1");
    world.write("tree/a/b", "2");
    symlink("../../../etc/shadow", world.context.join("tree/link")).unwrap();
    let mut wanted = image();
    wanted.copies = vec![
        copy("one", "/opt/", None),
        copy("tree/", "/usr/share/tree", Some("nobody")),
    ];
    let baked = world
        .bake(&wanted)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!(
        world.file(&baked, "opt/one").unwrap(),
        (b"1".to_vec(), 0, 0)
    );
    assert_eq!(
        world.file(&baked, "usr/share/tree/a/b").unwrap(),
        (b"2".to_vec(), 65534, 65534)
    );
    assert!(
        world.file(&baked, "usr/share/tree/link").is_none(),
        "a link stays a link"
    );
}
