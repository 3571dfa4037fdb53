//! What is said about an image, and what keeps one from becoming one.

use std::collections::BTreeSet;

use kiln_bake::{BakeError, Baked, MEDIA_IN_TOTO, MEDIA_SPDX};
use serde_json::Value;

use crate::world::{World, copy, image, told};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "an_images_sbom_has_every_package_with_licence_and_source",
        sbom,
    ),
    (
        "an_images_provenance_says_the_commit_and_leaves_the_image_as_it_is",
        provenance,
    ),
    ("an_images_leaks_end_the_bake_unless_they_are_named", leaks),
];

/// The documents of a kind that are attached to the image.
pub(crate) fn attached(world: &World, baked: &Baked, kind: &str) -> Vec<Value> {
    let referrers = world.store.referrers(&baked.digest).unwrap();
    referrers
        .iter()
        .filter(|referrer| referrer.artifact_type == kind)
        .map(|referrer| {
            let bytes = world.store.referrer_document(&referrer.digest).unwrap();
            serde_json::from_slice(&bytes).unwrap()
        })
        .collect()
}

fn texts<'a>(list: &'a Value, field: &str) -> BTreeSet<&'a str> {
    let list = list.as_array().unwrap().iter();
    list.map(|one| one[field].as_str().unwrap()).collect()
}

fn sbom() {
    let world = World::new();
    let baked = world.bake(&image()).unwrap();
    world.bake(&image()).unwrap();
    let documents = attached(&world, &baked, MEDIA_SPDX);
    let [document] = documents.as_slice() else {
        panic!("{} of them", documents.len());
    };
    // As SPDX writes times: to the second.
    let created = document["creationInfo"]["created"].as_str().unwrap();
    assert!(created.len() == 20 && created.ends_with('Z'), "{created}");
    // dpkg's own database says what there is.
    let (status, ..) = world.file(&baked, "var/lib/dpkg/status").unwrap();
    let status = String::from_utf8(status).unwrap();
    let field = |paragraph: &str, name: &str| {
        let mut lines = paragraph.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let expected: BTreeSet<(String, String)> = status
        .split("\n\n")
        .filter_map(|one| Some((field(one, "Package:")?, field(one, "Version:")?)))
        .collect();
    let packages = document["packages"].as_array().unwrap();
    let installed = packages
        .iter()
        .filter(|package| package["primaryPackagePurpose"] == "LIBRARY");
    let found: BTreeSet<(String, String)> = installed
        .clone()
        .map(|package| {
            let text = |name: &str| package[name].as_str().unwrap().to_owned();
            (text("name"), text("versionInfo"))
        })
        .collect();
    assert!(expected.len() > 50);
    assert_eq!(found, expected);
    let dash = installed.clone().find(|one| one["name"] == "dash").unwrap();
    let licence = dash["licenseDeclared"].as_str().unwrap();
    assert!(licence.contains("BSD-3-Clause AND "), "{licence}");

    // The document speaks of nothing that is not in it.
    let mut ids = texts(&document["packages"], "SPDXID");
    assert_eq!(ids.len(), packages.len(), "each has its own");
    ids.insert("SPDXRef-DOCUMENT");
    for end in ["spdxElementId", "relatedSpdxElement"] {
        assert!(texts(&document["relationships"], end).is_subset(&ids));
    }
    let known = texts(&document["hasExtractedLicensingInfos"], "licenseId");
    let named: BTreeSet<&str> = installed
        .flat_map(|one| {
            one["licenseDeclared"]
                .as_str()
                .unwrap()
                .split([' ', '(', ')'])
        })
        .filter(|word| word.starts_with("LicenseRef-"))
        .collect();
    assert_eq!(named, known);
    let dpkg = document["relationships"].as_array().unwrap().iter();
    let sources: Vec<_> = dpkg
        .filter(|one| one["relationshipType"] == "GENERATED_FROM")
        .filter(|one| {
            one["spdxElementId"]
                .as_str()
                .unwrap()
                .contains("-libc-bin-")
        })
        .map(|one| one["relatedSpdxElement"].as_str().unwrap())
        .collect();
    assert!(sources.len() == 1 && sources[0].starts_with("SPDXRef-Source-glibc-"));
}

fn provenance() {
    let world = World::new();
    world.write("app/file", "provenance");
    let mut wanted = image();
    wanted.version = "3".into();
    wanted.copies = vec![copy("app/", "/opt/app", None)];
    let first = world
        .bake(&wanted)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    let again = world.bake(&wanted).unwrap();
    let other = world.bake_commit(&wanted, "fedcba9876543210fedc").unwrap();
    assert_eq!([again.digest, other.digest], [first.digest; 2]);
    let statements = attached(&world, &first, MEDIA_IN_TOTO);
    let commits: BTreeSet<_> = statements
        .iter()
        .map(|one| one["predicate"]["buildDefinition"]["externalParameters"]["commit"].as_str())
        .collect();
    assert_eq!(statements.len(), 2, "the same bake is said once");
    let expected = ["0123456789abcdef0123", "fedcba9876543210fedc"].map(Some);
    assert_eq!(commits, expected.into());
    let statement = &statements[0];
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(
        statement["subject"][0]["digest"]["sha256"],
        first.digest.hex()
    );
    let definition = &statement["predicate"]["buildDefinition"];
    // Every layer has its step, and every package that the lock names is told.
    let layers = world.store.image(&first.digest).unwrap().layers;
    let steps = definition["internalParameters"]["steps"]
        .as_array()
        .unwrap();
    let said: Vec<_> = steps
        .iter()
        .map(|step| step["layer"].as_str().unwrap())
        .collect();
    let there: Vec<_> = layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    assert_eq!(said, there);
    let lock = first.lock.to_string();
    let fetched = definition["resolvedDependencies"].as_array().unwrap();
    let packages = fetched.iter().filter(|one| one["uri"].is_string());
    assert!(packages.clone().count() > 50);
    for package in packages {
        assert!(lock.contains(package["digest"]["sha256"].as_str().unwrap()));
    }
}

fn leaks() {
    let world = World::new();
    // Put together here, so that no tool that searches this repository finds a key in it.
    let key = format!(
        "-----BEGIN {} KEY-----\n{}\n",
        "RSA PRIVATE",
        "aB3/dE7+".repeat(8)
    );
    world.write("app/id_rsa", &key);
    let mut wanted = image();
    wanted.version = "leaks".into();
    wanted.copies = vec![copy("app/", "/opt/app", None)];
    // Gone from the image as it is seen, and still in a layer of it.
    wanted.run = vec!["rm /opt/app/id_rsa".into()];
    wanted.env.insert("DB_PASSWORD".into(), "hunter2".into());
    let error = world.bake(&wanted).err().expect("it has a key in it");
    let text = told(&error);
    assert!(matches!(error, BakeError::Leaks { .. }), "{text}");
    let parts = [
        "private-key in /opt/app/id_rsa, of the step `copy app/ /opt/app`",
        "password in env.DB_PASSWORD",
    ];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    assert!(
        !text.contains("hunter2") && !text.contains("aB3/"),
        "{text}"
    );
    let tags = world.store.tags().unwrap();
    assert!(tags.iter().all(|entry| !entry.tag.contains("leaks")));

    wanted.allow_leak = vec![
        "private-key:/opt/app/id_rsa".into(),
        "password:env.DB_PASSWORD".into(),
    ];
    let baked = world
        .bake(&wanted)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    assert!(baked.steps.iter().all(|step| step.cached));
    // The base, with the documents and examples of Debian, has none, so that nothing more had to be named.
    wanted.allow_leak.push("privatekey:/opt".into());
    let text = told(&world.bake(&wanted).err().expect("there is no such rule"));
    assert!(
        text.contains("`privatekey`") && text.contains("private-key"),
        "{text}"
    );
}
