//! What is exported, read by what did not write it: GNU tar, and the rules of the formats themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use kiln_model::Digest;
use kiln_oci::{Entry, ExportError, ImageConfig, Kind, Output, Store, Tree};
use serde_json::Value;

const TAG: &str = "shop:1.0-0123456789ab";

/// Two layers, of which the upper one deletes and replaces files of the lower.
fn image(store: &Store) -> Digest {
    let mut lower = Tree::new();
    for (path, text) in [("etc/a", "lower a"), ("etc/b", "lower b")] {
        lower
            .insert(path, Entry::bytes(text.as_bytes(), 0o640).owner(5, 6))
            .unwrap();
    }
    let big = Entry::bytes(vec![b'b'; 300_000], 0o755);
    lower.insert("bin/big", big).unwrap();
    let mut upper = Tree::new();
    let whiteout = Entry::new(Kind::Whiteout, 0);
    upper.insert("etc/a", whiteout).unwrap();
    upper
        .insert("etc/b", Entry::bytes(*b"upper b", 0o600))
        .unwrap();
    let layers = [lower, upper].map(|tree| store.add_layer(&tree).unwrap());
    let config = ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        ..ImageConfig::default()
    };
    let digest = store.put_image(&config, &layers).unwrap();
    store.tag(TAG, &digest).unwrap();
    digest
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap();
                found.insert(name.to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn unpack(archive: &Path, to: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::create_dir_all(to).unwrap();
    let status = Command::new("tar")
        .args(["--extract", "--preserve-permissions", "--file"])
        .args([archive, Path::new("--directory"), to])
        .status()
        .unwrap();
    assert!(status.success());
    files(to)
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// A layout by the image specification: every blob is what its name says, every descriptor has its blob and its size.
fn check_layout(files: &BTreeMap<String, Vec<u8>>) -> Value {
    assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    for (name, bytes) in files {
        if let Some(hex) = name.strip_prefix("blobs/sha256/") {
            assert_eq!(Digest::of(bytes).hex(), hex);
        }
    }
    let blob = |descriptor: &Value| {
        let hex = descriptor["digest"]
            .as_str()
            .unwrap()
            .strip_prefix("sha256:");
        let bytes = &files[&format!("blobs/sha256/{}", hex.unwrap())];
        assert_eq!(descriptor["size"], bytes.len());
        bytes.clone()
    };
    let index = json(&files["index.json"]);
    for entry in index["manifests"].as_array().unwrap() {
        let manifest = json(&blob(entry));
        assert_eq!(entry["mediaType"], manifest["mediaType"]);
        let config = json(&blob(&manifest["config"]));
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), diff_ids.len());
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let tar = zstd::decode_all(blob(layer).as_slice()).unwrap();
            assert_eq!(&Digest::of(&tar).to_string(), diff_id);
        }
    }
    index
}

#[test]
fn a_layout_and_its_archive_are_whole_and_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for name in ["one", "two"] {
        let store = Store::open(&dir.path().join(name)).unwrap();
        let digest = image(&store);
        let folder = dir.path().join(format!("{name}.layout"));
        let archive = dir.path().join(format!("{name}.tar"));
        store
            .export(&digest, TAG, &Output::OciLayout(folder.clone()))
            .unwrap();
        store
            .export(&digest, TAG, &Output::OciArchive(archive.clone()))
            .unwrap();
        let layout = files(&folder);
        let index = check_layout(&layout);
        let entry = &index["manifests"][0];
        assert_eq!(entry["digest"], digest.to_string());
        assert_eq!(
            entry["annotations"]["org.opencontainers.image.ref.name"],
            TAG
        );
        assert_eq!(
            unpack(&archive, &dir.path().join(format!("{name}.files"))),
            layout
        );
        seen.push((layout, fs::read(archive).unwrap()));
    }
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn an_image_is_added_to_a_layout_and_nothing_else_is_written_into() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let first = image(&store);
    let config = ImageConfig::default();
    let layers = store.image(&first).unwrap().layers;
    let second = store.put_image(&config, &layers[..1]).unwrap();
    let folder = dir.path().join("layout");
    let output = Output::OciLayout(folder.clone());
    store.export(&first, "a:1", &output).unwrap();
    store.export(&first, "b:1", &output).unwrap();
    store.export(&second, "a:1", &output).unwrap();
    let index = check_layout(&files(&folder));
    let named: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let name = &entry["annotations"]["org.opencontainers.image.ref.name"];
            (name.as_str().unwrap(), entry["digest"].as_str().unwrap())
        })
        .collect();
    let (first, second) = (first.to_string(), second.to_string());
    assert_eq!(named, [("b:1", first.as_str()), ("a:1", second.as_str())]);

    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("mine"), "mine").unwrap();
    let refused = store.export(
        &first.parse().unwrap(),
        "a:1",
        &Output::OciLayout(other.clone()),
    );
    assert!(matches!(refused, Err(ExportError::NotLayout { .. })));
    assert_eq!(fs::read_dir(other).unwrap().count(), 1);
}

#[test]
fn dockers_archive_has_its_layers_uncompressed_and_by_their_digests() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = image(&store);
    let archive = dir.path().join("docker.tar");
    let output = Output::DockerArchive(archive.clone());
    store.export(&digest, TAG, &output).unwrap();
    let before = fs::read(&archive).unwrap();
    store.export(&digest, TAG, &output).unwrap();
    assert!(before == fs::read(&archive).unwrap(), "the same each time");

    let files = unpack(&archive, &dir.path().join("files"));
    let manifest = &json(&files["manifest.json"])[0];
    assert_eq!(manifest["RepoTags"], serde_json::json!([TAG]));
    let name = manifest["Config"].as_str().unwrap();
    assert_eq!(format!("{}.json", Digest::of(&files[name]).hex()), name);
    let config = json(&files[name]);
    let layers: Vec<_> = manifest["Layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| Digest::of(&files[layer.as_str().unwrap()]).to_string())
        .collect();
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(layers));
}

#[test]
fn a_tar_has_the_files_as_they_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let archive = dir.path().join("root.tar");
    let digest = image(&store);
    store
        .export(&digest, TAG, &Output::Tar(archive.clone()))
        .unwrap();
    let files = unpack(&archive, &dir.path().join("files"));
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["bin/big", "etc/b"]);
    assert_eq!(files["etc/b"], b"upper b");
    let meta = fs::metadata(dir.path().join("files/bin/big")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o7777,
        0o755
    );
}

#[test]
fn a_damaged_blob_is_told_and_leaves_no_output() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = image(&store);
    let layer = store.image(&digest).unwrap().layers[0].blob.digest;
    let path = store.blob_path(&layer);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    for kind in ["oci-archive", "docker-archive", "tar"] {
        let output: Output = format!("{kind}:{}/file", out.display()).parse().unwrap();
        assert!(store.export(&digest, TAG, &output).is_err(), "{kind}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{kind}");
    }
    let layout = Output::OciLayout(out.join("layout"));
    assert!(store.export(&digest, TAG, &layout).is_err());
    assert!(!out.join("layout/index.json").exists());
}

#[test]
fn an_output_is_a_kind_and_a_path() {
    for right in ["oci:d", "oci-archive:/a b", "docker-archive:x:y", "tar:./t"] {
        assert!(right.parse::<Output>().is_ok(), "{right}");
    }
    for wrong in ["", "oci", "oci:", "zip:x", "disk:x", "/tmp/x"] {
        assert!(wrong.parse::<Output>().is_err(), "{wrong}");
    }
}

#[test]
fn layers_are_exported_in_gzip_on_request_the_same_each_time() {
    let archives = [0, 1].map(|_| {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = image(&store);
        let folder = dir.path().join("layout");
        let output: Output = format!("oci:{},compression=gzip", folder.display())
            .parse()
            .unwrap();
        assert_eq!(output.path(), folder);
        store.export(&digest, TAG, &output).unwrap();
        let index = fs::read(folder.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let blob = |digest: &serde_json::Value| {
            let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
            fs::read(folder.join("blobs/sha256").join(hex)).unwrap()
        };
        let manifest = blob(&index["manifests"][0]["digest"]);
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let layers = store.image(&digest).unwrap().layers;
        for (layer, known) in manifest["layers"].as_array().unwrap().iter().zip(layers) {
            assert_eq!(
                layer["mediaType"],
                "application/vnd.oci.image.layer.v1.tar+gzip"
            );
            let bytes = blob(&layer["digest"]);
            assert_eq!(layer["size"], bytes.len());
            let mut stream = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(bytes.as_slice());
            std::io::Read::read_to_end(&mut decoder, &mut stream).unwrap();
            assert_eq!(kiln_model::Digest::of(&stream), known.diff_id);
        }
        manifest
    });
    assert_eq!(archives[0], archives[1]);
    for wrong in [
        "tar:x,compression=gzip",
        "tar:x,compression=zstd",
        "docker-archive:x,compression=zstd",
        "docker-archive:x,compression=gzip",
        "oci:x,compression=xz",
    ] {
        assert!(wrong.parse::<Output>().is_err(), "{wrong}");
    }
}
