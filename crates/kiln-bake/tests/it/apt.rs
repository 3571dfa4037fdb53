//! The image's own apt, on a Debian of kiln's: it finds the archive, and installs packages in steps of a Dockerfile.

use std::collections::BTreeMap;
use std::fs;

use kiln_model::ImageSpec;

use crate::dockerfile::Bench;
use crate::world::{World, copy, debian, image, mirror, told};

pub(crate) const TESTS: &[(&str, fn())] = &[(
    "apt_has_the_sources_of_the_definition_and_installs_in_steps_of_dockerfiles",
    sources,
)];

const FILE: &str = "etc/apt/sources.list.d/debian.sources";

/// Where this machine's apt has its bookworm from.
fn machine() -> String {
    let mut files = vec![std::path::PathBuf::from("/etc/apt/sources.list")];
    let more = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten();
    files.extend(more.map(|entry| entry.unwrap().path()));
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    let addresses = texts.flat_map(|text| {
        let words = text.split_whitespace().map(str::to_owned);
        words.collect::<Vec<_>>()
    });
    let mut addresses = addresses.filter(|word| word.starts_with("http"));
    addresses
        .find(|word| word.trim_end_matches('/').ends_with("/debian"))
        .expect("the tests need a Debian whose apt sources name an archive")
}

fn sources() {
    let world = World::empty();
    let mut wanted = image();
    debian(&mut wanted).packages = vec!["apt".into()];
    let bake = |image: &ImageSpec| {
        let baked = world.bake_from(image);
        baked.unwrap_or_else(|error| panic!("{}", told(&error)))
    };
    let text = |image: &ImageSpec| {
        let (bytes, ..) = world.file(&bake(image), FILE)?;
        Some(String::from_utf8(bytes).unwrap())
    };
    // The machine's mirror has no part in it.
    let public = text(&wanted).unwrap();
    for line in [
        "URIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\n",
        "URIs: http://deb.debian.org/debian-security\nSuites: bookworm-security\n",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
    ] {
        assert!(public.contains(line), "{line} in {public}");
    }
    // Where the definition brings sources, there are no others.
    world.write("own/apt/sources.list.d/own.list", "");
    wanted.copies = vec![copy("own", "/etc", None)];
    assert_eq!(text(&wanted), None);
    wanted.copies.clear();

    let mirror_here = machine();
    mirror(&mut wanted, &mirror_here);
    let baked = bake(&wanted);
    let anew: Vec<_> = baked.steps.iter().filter(|step| !step.cached).collect();
    assert!(
        anew.iter().all(|step| step.name == "apt sources"),
        "another mirror installs nothing anew: {anew:?}"
    );
    let bench = Bench::on(world.root.path());
    let bases = BTreeMap::from([("debian:bookworm".to_owned(), baked.tag.clone())]);
    let dockerfile = "FROM debian:bookworm\n\
        RUN apt-get update && apt-get install -y --no-install-recommends nginx-light curl\n\
        RUN test -z \"$(apt-get -q check | grep -v -e ^Reading -e ^Building)\" && dpkg --audit > /audit && dpkg --verify > /verify\n\
        RUN apt-cache policy curl > /policy && nginx -t\n";
    let installed = bench
        .bake_on("installed:1", dockerfile, &bases)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    bench.look(&installed, |view| {
        let read = |name: &str| fs::read_to_string(view.join(name)).unwrap();
        let (policy, mirror) = (read("policy"), mirror_here.trim_end_matches('/'));
        assert!(policy.contains(mirror), "{policy}");
        assert_eq!(
            (read("audit"), read("verify")),
            (String::new(), String::new())
        );
        assert!(view.join("usr/bin/curl").exists());
        // What was fetched is not in the layer as well.
        let cache = view.join("var/cache/apt");
        assert!(!cache.join("pkgcache.bin").exists());
        let archives = fs::read_dir(cache.join("archives")).unwrap();
        let mut names = archives.map(|entry| entry.unwrap().path());
        assert!(names.all(|path| path.extension().is_none_or(|end| end != "deb")));
    });

    // An archive that others sign.
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::copy(keys, world.context.join("own.gpg")).unwrap();
    debian(&mut wanted).keyring = Some("own.gpg".into());
    let baked = bake(&wanted);
    let bases = BTreeMap::from([("debian:bookworm".to_owned(), baked.tag.clone())]);
    let dockerfile = "FROM debian:bookworm\n\
        RUN rm /usr/share/keyrings/* && apt-get -o APT::Update::Error-Mode=any update\n";
    let updated = bench.bake_on("updated:1", dockerfile, &bases);
    let updated = updated.unwrap_or_else(|error| panic!("{}", told(&error)));
    bench.look(&updated, |view| {
        let text = fs::read_to_string(view.join(FILE)).unwrap();
        assert!(
            text.contains("Signed-By: /etc/apt/keyrings/archive.gpg\n"),
            "{text}"
        );
    });
}
