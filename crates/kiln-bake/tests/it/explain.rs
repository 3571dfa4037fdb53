//! Why steps were done anew.

use kiln_bake::Baked;

use crate::world::{World, copy, image, told};

pub(crate) const TESTS: &[(&str, fn())] = &[(
    "a_bake_says_which_input_of_a_step_changed_since_the_last",
    reasons,
)];

fn reasons() {
    let world = World::new();
    world.write("app/server.py", "one");
    world.write("app/other", "one");
    let mut wanted = image();
    wanted.name = "explained".parse().unwrap();
    // Its packages are those of the shared lock.
    wanted.base = Some(Box::new(image()));
    wanted.copies = vec![copy("app/", "/opt/app", None)];
    wanted.run = vec!["echo one > /srv/a".into(), "echo two > /srv/b".into()];
    let bake = |wanted: &kiln_model::ImageSpec| -> Baked {
        world
            .bake(wanted)
            .unwrap_or_else(|error| panic!("{}", told(&error)))
    };
    let said = |baked: &Baked| -> Vec<(bool, Vec<String>)> {
        let steps = baked.steps.iter();
        steps
            .map(|step| (step.cached, step.reasons.clone()))
            .collect()
    };
    let cached = || (true, Vec::new());
    let anew = |reason: &str| (false, vec![reason.to_owned()]);
    let first = said(&bake(&wanted));
    let new = anew("nothing was baked under this name before");
    assert_eq!(first[1..], [new.clone(), new.clone(), new]);
    assert!(said(&bake(&wanted)).iter().all(|step| *step == cached()));

    world.write("app/server.py", "two");
    let below = anew("it stands on `copy app/ /opt/app`, which was done anew");
    let file = anew("app/server.py changed");
    assert_eq!(said(&bake(&wanted)), [cached(), file, below.clone(), below]);

    wanted.run[1] = "echo three > /srv/b".into();
    let command = anew("command changed: echo two > /srv/b → echo three > /srv/b");
    assert_eq!(
        said(&bake(&wanted)),
        [cached(), cached(), cached(), command]
    );

    wanted.env.insert("LEVEL".into(), "debug".into());
    let level = anew("env LEVEL added: debug");
    assert_eq!(
        said(&bake(&wanted)),
        [cached(), cached(), level.clone(), level]
    );
}
