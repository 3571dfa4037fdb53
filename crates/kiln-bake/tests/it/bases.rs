//! Bases that are not in the store: of archives and of registries.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln_bake::Registries;
use kiln_model::Digest;
use kiln_oci::{Output, Store};
use serde_json::json;

use crate::dockerfile::Bench;
use crate::server::{Answer, Asked, Server};
use crate::world::told;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("bases_of_archives_are_baked_on", archives),
    ("bases_of_a_registry_are_pulled_once", registry),
    ("bases_of_a_registry_need_its_token", token),
    ("bases_that_can_not_be_had_say_how_to_map_them", missing),
];

/// Another store, where nothing is.
fn elsewhere() -> (tempfile::TempDir, Bench) {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::on(root.path());
    (root, bench)
}

/// The digests of the blobs of an image's layers.
fn blobs(store: &Store, digest: &Digest) -> Vec<Digest> {
    let layers = store.image(digest).unwrap().layers;
    layers.iter().map(|layer| layer.blob.digest).collect()
}

fn archives() {
    let origin = Bench::new();
    let base = origin.store.resolve("base:1").unwrap();
    let there = origin.root.path();
    let (_root, bench) = elsewhere();
    let mut seen = Vec::new();
    for (output, reference) in [
        (Output::OciLayout(there.join("l")), "oci:l"),
        (Output::OciArchive(there.join("o")), "oci-archive:o:base:1"),
        (Output::DockerArchive(there.join("d")), "docker-archive:d"),
    ] {
        origin.store.export(&base, "base:1", &output).unwrap();
        let (kind, rest) = reference.split_once(':').unwrap();
        let reference = format!("{kind}:{}/{rest}", there.display());
        let bases = BTreeMap::from([("busybox".to_owned(), reference)]);
        let text =
            "FROM docker.io/library/busybox\nRUN cat /etc/passwd > /copy && rm /etc/passwd\n";
        let baked = bench
            .bake_on(&format!("on-{kind}:1"), text, &bases)
            .unwrap_or_else(|error| panic!("{}", told(&error)));
        bench.look(&baked, |view| {
            let copy = fs::read_to_string(view.join("copy")).unwrap();
            assert!(copy.contains("app:x:1000"), "{copy}");
            assert!(!view.join("etc/passwd").exists());
        });
        assert_eq!(baked.config.config.cmd, ["base"]);
        assert_eq!(baked.bases.len(), 1);
        let own = blobs(&bench.store, &baked.digest);
        if kind != "docker-archive" {
            let below = blobs(&origin.store, &base);
            assert_eq!(own[..below.len()], below, "{kind}: as they came");
            assert_eq!(baked.bases[0].digest, base);
        }
        seen.push(own.last().copied());
    }
    assert!(
        seen.iter().all(|top| *top == seen[0]),
        "the step is one for all"
    );
}

/// A registry with the image `digest` of `store` as `a/base:1`.
fn serve(store: Store, digest: Digest, asked: &Asked) -> Answer {
    let Some(rest) = asked.path.strip_prefix("/v2/a/base/") else {
        let body = json!({"errors": [{"code": "NAME_UNKNOWN", "message": "no\u{7} such name"}]});
        return Answer::new(404, body.to_string());
    };
    let image = store.image(&digest).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
         "size": image.manifest.len(), "platform": {"os": "linux", "architecture": image.config.architecture}},
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(b"other"),
         "size": 5, "platform": {"os": "linux", "architecture": "mips"}}]});
    match rest {
        "manifests/1" => {
            assert!(asked.header("accept").unwrap().contains("image.index"));
            Answer::new(200, index.to_string())
        }
        rest => {
            let wanted: Digest = rest.rsplit('/').next().unwrap().parse().unwrap();
            match fs::read(store.blob_path(&wanted)) {
                Ok(bytes) => Answer::new(200, bytes),
                Err(_) => Answer::new(404, "no blob"),
            }
        }
    }
}

fn registry() {
    let origin = Bench::new();
    let base = origin.store.resolve("base:1").unwrap();
    let store = origin.store.clone();
    let server = Server::start(move |asked| serve(store.clone(), base, asked));
    let (_root, mut bench) = elsewhere();
    let text = format!("FROM {}/a/base:1\nRUN echo hi > /hi\n", server.host);
    let bases = BTreeMap::new();
    let baked = bench
        .bake_on("pulled:1", &text, &bases)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!(baked.bases[0].digest, base);
    let below = blobs(&origin.store, &base);
    assert_eq!(blobs(&bench.store, &baked.digest)[..below.len()], below);
    let layers: std::collections::BTreeSet<_> = below.iter().collect();
    assert_eq!(
        server.asked().len(),
        3 + layers.len(),
        "index, manifest, configuration, layers"
    );
    // What a tag meant is known from then on, unless it is asked for again.
    bench.bake_on("pulled:1", &text, &bases).unwrap();
    assert!(server.asked().is_empty());
    bench.registries.pull = true;
    bench.bake_on("pulled:1", &text, &bases).unwrap();
    assert_eq!(server.asked(), ["GET /v2/a/base/manifests/1"]);
    // Another name for it.
    let bases = BTreeMap::from([(
        "debian:12".to_owned(),
        format!("{}/a/base@{base}", server.host),
    )]);
    let baked = bench
        .bake_on("pulled:2", "FROM debian:12\n", &bases)
        .unwrap();
    assert_eq!(baked.bases[0].digest, base);
    // Not what was asked for.
    let wrong = Digest::of(b"wrong");
    let liar = Server::start(|_| Answer::new(200, "{}"));
    let text = format!("FROM {}/a/base@{wrong}\n", liar.host);
    let said = told(
        &bench
            .bake_on("wrong:1", &text, &BTreeMap::new())
            .err()
            .unwrap(),
    );
    assert!(
        said.contains("Dockerfile:1:6") && said.contains(&format!("what is called {wrong}")),
        "{said}"
    );
}

fn token() {
    let origin = Bench::new();
    let base = origin.store.resolve("base:1").unwrap();
    let store = origin.store.clone();
    let server = Server::start(move |asked| {
        let host = asked.header("host").unwrap().to_owned();
        if let Some(query) = asked.path.strip_prefix("/token?") {
            // user:secret
            let known = asked.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=");
            let scope = query.contains("repository%3Aa%2Fbase%3Apull")
                || query.contains("repository:a/base:pull");
            return if known && scope {
                Answer::new(200, json!({"token": "T"}).to_string())
            } else {
                Answer::new(401, "")
            };
        }
        if asked.header("authorization") != Some("Bearer T") {
            let challenge = format!(
                "Bearer realm=\"http://{host}/token\",service=\"r\",scope=\"repository:a/base:pull\""
            );
            return Answer::new(401, "").with("WWW-Authenticate", challenge);
        }
        serve(store.clone(), base, asked)
    });
    let (_root, mut bench) = elsewhere();
    let text = format!("FROM {}/a/base:1\n", server.host);
    let bases = BTreeMap::new();
    let said = told(&bench.bake_on("token:1", &text, &bases).err().unwrap());
    assert!(said.contains("gives no token (401"), "{said}");
    let path = bench.root.path().join("config.json");
    let host = &server.host;
    let config = json!({"auths": {host: {"auth": "dXNlcjpzZWNyZXQ="}}});
    fs::write(&path, config.to_string()).unwrap();
    bench.registries = Registries {
        auth_files: vec![path],
        ..Registries::default()
    };
    bench
        .bake_on("token:1", &text, &bases)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    let kept = fs::read_dir(Path::new(bench.store.dir()).join("cache")).unwrap();
    for entry in kept {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|part| part == b"secret"));
    }
}

fn missing() {
    let server = Server::start(|_| {
        Answer::new(
            404,
            json!({"errors": [{"message": "not\u{1b} here"}]}).to_string(),
        )
    });
    let (_root, bench) = elsewhere();
    let gone = format!("{}/x/y:1", server.host);
    let file = bench.root.path().join("none.tar");
    let archive = format!("docker-archive:{}", file.display());
    for (from, reference, said) in [
        (gone.as_str(), None, "has no such image (not here)"),
        ("127.0.0.1:1/x", None, "127.0.0.1:1 can't be asked"),
        ("Upper", None, "in lower case"),
        ("a", Some("127.0.0.1:1/x"), "no image `127.0.0.1:1/x` here"),
        ("a", Some("Not A Name"), "no image `Not A Name` here"),
        ("a", Some(archive.as_str()), "none.tar can't be read"),
        ("a", Some("oci:"), "names no archive"),
    ] {
        let bases = reference
            .map(|reference| ("a".to_owned(), reference.to_owned()))
            .into_iter()
            .collect();
        let error = bench.bake_on("missing:1", &format!("FROM {from}\n"), &bases);
        let text = told(&error.err().unwrap());
        assert!(
            text.contains("Dockerfile:1:6") && text.contains(said),
            "{text}"
        );
        if reference.is_none() {
            assert!(text.contains(&format!("--base {from}=REF")), "{text}");
        }
    }
}
