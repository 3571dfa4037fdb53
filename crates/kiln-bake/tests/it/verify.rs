//! The same image from another store, another folder, another clock; and what is told where it is not the same.

use kiln_bake::{Circumstances, Difference, compare, static_programs};

use crate::world::{World, copy, image, told, user};

pub(crate) const TESTS: &[(&str, fn())] = &[(
    "what_depends_on_the_clock_or_on_chance_is_found_in_a_second_bake_and_nothing_else",
    found,
)];

const MOVED: i32 = 400 * 86_400 + 26_009;

fn found() {
    let mut wanted = image();
    wanted.users = vec![user("app", 1000)];
    wanted.copies = vec![copy("app/", "/opt/app", Some("app"))];
    wanted.run = vec![
        "sort /etc/passwd > /srv/sorted; touch /srv/touched; date -d @$SOURCE_DATE_EPOCH > /srv/clamped".into(),
        "date > /srv/date".into(),
        // No second of it is left, so that only a clock that was moved far shows it.
        "perl -e 'print 1900 + (localtime)[5], \"\\n\"' > /srv/year".into(),
        "mkdir /srv/d && head -c 32 /dev/urandom > /srv/d/random && mktemp -p /srv/d".into(),
        // What the second bake laid over the image is no part of it.
        "ls -A /etc | grep -v kiln-clock | grep -v ld.so.preload > /srv/list; chmod 700 /etc/skel".into(),
    ];
    let worlds = [None, Some(MOVED)].map(|moved| {
        // The second has nothing baked before.
        let world = match moved {
            None => World::new(),
            Some(_) => World::fresh(),
        };
        world.write("app/file", "content");
        let baked = world
            .bake_with_clock(&wanted, moved)
            .unwrap_or_else(|error| panic!("{}", told(&error)));
        (world, baked)
    });
    let [(first, old), (second, new)] = &worlds;
    let steps: Vec<String> = old.steps.iter().map(|step| step.name.clone()).collect();
    let circumstances = Circumstances {
        moved: i64::from(MOVED),
        ..Circumstances::default()
    };
    let differences = compare(
        (&first.store, &old.digest),
        (&second.store, &new.digest),
        &steps,
        &circumstances,
    )
    .unwrap();
    let paths: Vec<_> = differences.iter().map(|one| one.path.as_str()).collect();
    let [date, year, rest @ ..] = differences.as_slice() else {
        panic!("{differences:#?}");
    };
    assert_eq!(
        (date.path.as_str(), year.path.as_str()),
        ("/srv/date", "/srv/year"),
        "{differences:#?}"
    );
    for one in [date, year] {
        assert!(one.cause.contains("time of day"), "{one:?}");
    }
    assert_eq!(date.step.as_deref(), Some("run date > /srv/date"));
    let random = rest.iter().find(|one| one.path == "/srv/d/random").unwrap();
    assert!(random.cause.contains("random"), "{random:?}");
    let named =
        |one: &&Difference| one.path.starts_with("/srv/d/tmp.") && one.cause.contains("name");
    assert_eq!(rest.iter().filter(named).count(), 2, "{differences:#?}");
    assert_eq!(paths.len(), 5, "{differences:#?}");
    assert!(second.file(new, "etc/ld.so.preload").is_none());
    let fixed = static_programs(&first.store, &old.digest).unwrap();
    assert_eq!(fixed, ["/usr/sbin/ldconfig"]);
}
