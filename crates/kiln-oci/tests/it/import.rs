//! Images that others made: what is taken, and what is refused with its reason.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use kiln_model::Digest;
use kiln_oci::{
    ArchiveReference, Entry, ImageConfig, ImportError, Kind, Output, RunConfig, Store, Tree,
};
use serde_json::{Value, json};

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("root")).unwrap();
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn import(&self, reference: &str) -> Result<Digest, ImportError> {
        let (kind, rest) = reference.split_once(':').unwrap();
        let text = format!("{kind}:{}/{rest}", self.dir.path().display());
        let reference: ArchiveReference = text.parse().unwrap();
        self.store.import_archive(&reference, "amd64")
    }

    fn refused(&self, reference: &str) -> String {
        let error = match self.import(reference) {
            Ok(digest) => panic!("{reference} is taken as {digest}"),
            Err(error) => error,
        };
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }

    fn put(&self, layout: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        let folder = self.path(layout).join("blobs/sha256");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(digest.hex()), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    }

    /// A layout with one image of these tar streams, and its manifest's descriptor.
    fn image(&self, layout: &str, layers: &[(&str, Vec<u8>, &[u8])]) -> Value {
        let diff_ids: Vec<Digest> = layers.iter().map(|(_, _, tar)| Digest::of(tar)).collect();
        self.image_as(layout, layers, &diff_ids, "amd64")
    }

    fn image_as(
        &self,
        layout: &str,
        layers: &[(&str, Vec<u8>, &[u8])],
        diff_ids: &[Digest],
        arch: &str,
    ) -> Value {
        let config = json!({"architecture": arch, "os": "linux", "config": null,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let mut config = self.put(layout, config.to_string().as_bytes());
        config["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
        let layers: Vec<Value> = layers
            .iter()
            .map(|(media_type, bytes, _)| {
                let mut layer = self.put(layout, bytes);
                layer["mediaType"] = (*media_type).into();
                layer
            })
            .collect();
        let manifest = json!({"schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": config, "layers": layers});
        let mut manifest = self.put(layout, manifest.to_string().as_bytes());
        manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json".into();
        manifest
    }

    fn index(&self, layout: &str, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.path(layout).join("index.json"), index.to_string()).unwrap();
        fs::write(
            self.path(layout).join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
    }

    /// Why a layer with this tar stream is refused.
    fn evil(&self, name: &str, tar: &[u8]) -> String {
        let manifest = self.image(name, &[(TAR, tar.to_vec(), tar)]);
        self.index(name, &[manifest]);
        self.refused(&format!("oci:{name}"))
    }
}

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn tar(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    kiln_oci::tar::write(tree, &mut bytes).unwrap();
    bytes
}

fn one(path: &str, text: &str) -> Vec<u8> {
    let mut tree = Tree::new();
    let entry = Entry::bytes(text.as_bytes().to_vec(), 0o644);
    tree.insert(path, entry).unwrap();
    tar(&tree)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// One header of a tar stream, by hand.
fn header(name: &str, kind: u8, link: &str, size: u64) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn text(store: &Store, digest: &Digest, path: &str) -> Option<String> {
    let image = store.image(digest).unwrap();
    let trees = store.layer_trees(&image).unwrap();
    let merged = Tree::merge(&trees).unwrap();
    let entry = merged.get(path)?;
    let Kind::File { content, size } = &entry.kind else {
        panic!("{path} is {entry:?}");
    };
    let mut bytes = vec![0; usize::try_from(*size).unwrap()];
    let reader = content.open().unwrap();
    assert_eq!(
        reader.read_within(*size, &mut bytes, 0).unwrap() as u64,
        *size
    );
    Some(String::from_utf8(bytes).unwrap())
}

#[test]
fn what_is_exported_comes_back_byte_for_byte() {
    let (from, to) = (Bench::new(), Bench::new());
    let mut tree = Tree::new();
    tree.insert("etc/file", Entry::bytes(*b"text", 0o640).owner(5, 6))
        .unwrap();
    let first = from.store.add_layer(&tree).unwrap();
    tree.insert("etc/file", Entry::new(Kind::Whiteout, 0))
        .unwrap();
    let second = from.store.add_layer(&tree).unwrap();
    let config = ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        config: RunConfig {
            user: "app".to_owned(),
            ..RunConfig::default()
        },
        ..ImageConfig::default()
    };
    let digest = from.store.put_image(&config, &[first, second]).unwrap();
    let layers = |store: &Store, digest: &Digest| -> Vec<(Digest, Digest)> {
        let image = store.image(digest).unwrap();
        image
            .layers
            .iter()
            .map(|layer| (layer.diff_id, layer.blob.digest))
            .collect()
    };
    for (output, reference) in [
        (Output::OciLayout(to.path("layout")), "oci:layout:a/b:1"),
        (
            Output::OciArchive(to.path("o.tar")),
            "oci-archive:o.tar:a/b:1",
        ),
        (
            Output::DockerArchive(to.path("d.tar")),
            "docker-archive:d.tar",
        ),
    ] {
        from.store.export(&digest, "a/b:1", &output).unwrap();
        let found = to.import(reference).unwrap();
        // Again, where nothing is to be done.
        assert_eq!(to.import(reference).unwrap(), found);
        let (there, here) = (layers(&from.store, &digest), layers(&to.store, &found));
        if matches!(output, Output::DockerArchive(_)) {
            // That form has layers uncompressed, and no manifest.
            let diff_ids = |all: Vec<(Digest, Digest)>| all.into_iter().map(|(id, _)| id);
            assert!(diff_ids(there).eq(diff_ids(here)));
        } else {
            assert_eq!((found, here), (digest, there), "{reference}");
        }
        let image = to.store.image(&found).unwrap();
        assert_eq!(image.config.config.user, "app");
        assert_eq!(text(&to.store, &found, "etc/file"), None, "{reference}");
    }
    for (reference, said) in [
        ("oci:layout:c", "no image `c`: it has a/b:1"),
        ("oci-archive:o.tar:c", "no image `c`: it has a/b:1"),
        ("docker-archive:d.tar:c", "no image `c`: it has a/b:1"),
        ("docker-archive:o.tar", "it has no manifest.json"),
        ("oci-archive:d.tar", "it has no index.json"),
        ("oci:none", "can't be read"),
        ("oci-archive:none", "can't be read"),
        ("oci:root", "it has no index.json"),
        ("docker-archive:root", "it is no file"),
    ] {
        let text = to.refused(reference);
        assert!(text.contains(said), "{reference}: {text}");
    }
}

#[test]
fn layers_are_taken_in_every_form_and_stay_as_they_came() {
    let bench = Bench::new();
    let (a, b, c) = (one("a", "1"), one("b", "2"), one("c", "3"));
    let zstd = zstd::encode_all(c.as_slice(), 19).unwrap();
    let image = bench.image(
        "all",
        &[(TAR, a.clone(), &a), (GZIP, gzip(&b), &b), (ZSTD, zstd, &c)],
    );
    bench.index("all", &[image]);
    let digest = bench.import("oci:all").unwrap();
    for (path, expected) in [("a", "1"), ("b", "2"), ("c", "3")] {
        let found = text(&bench.store, &digest, path);
        assert_eq!(found.as_deref(), Some(expected));
    }
    let image = bench.store.image(&digest).unwrap();
    let config = ImageConfig {
        config: RunConfig::default(),
        ..image.config.clone()
    };
    // What stands on it has the same blobs, by OCI's names.
    let child = bench.store.put_image(&config, &image.layers).unwrap();
    let manifest = bench.store.image(&child).unwrap().manifest;
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let of = |at: usize, member: &str| manifest["layers"][at][member].as_str().unwrap();
    assert_eq!(of(1, "digest"), Digest::of(&gzip(&b)).to_string());
    assert_eq!(of(0, "digest"), Digest::of(&a).to_string());
    assert_eq!(
        of(1, "mediaType"),
        "application/vnd.oci.image.layer.v1.tar+gzip"
    );
    // docker's archive, itself compressed.
    let saved = bench.path("saved.tar");
    let output = Output::DockerArchive(saved.clone());
    bench.store.export(&child, "x:1", &output).unwrap();
    fs::write(&saved, gzip(&fs::read(&saved).unwrap())).unwrap();
    let found = bench.import("docker-archive:saved.tar:x:1").unwrap();
    assert_eq!(text(&bench.store, &found, "b").as_deref(), Some("2"));
}

#[test]
fn an_index_gives_the_image_of_this_machine() {
    let bench = Bench::new();
    let (here, there) = (one("a", "here"), one("a", "there"));
    let entry = |arch: &str, tar: &[u8]| {
        let diff_ids = [Digest::of(tar)];
        let mut image = bench.image_as("multi", &[(GZIP, gzip(tar), tar)], &diff_ids, arch);
        image["platform"] = json!({"os": "linux", "architecture": arch});
        image
    };
    let mut attestation = bench.put("multi", b"{}");
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let mut index = bench.put(
        "multi",
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [attestation, entry("arm64", &there), entry("amd64", &here)]})
        .to_string()
        .as_bytes(),
    );
    index["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    index["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    bench.index("multi", std::slice::from_ref(&index));
    let root = index["digest"].as_str().unwrap();
    for reference in [
        "oci:multi",
        "oci:multi:latest",
        &format!("oci:multi@{root}"),
    ] {
        let digest = bench.import(reference).unwrap();
        assert_eq!(text(&bench.store, &digest, "a").as_deref(), Some("here"));
    }
    bench.index("multi", &[entry("arm64", &there), entry("s390x", &there)]);
    let said = bench.refused("oci:multi");
    assert!(
        said.contains("no image for linux/amd64: it has linux/arm64, linux/s390x"),
        "{said}"
    );
    // Named by itself, an image still says what it is for.
    let other = entry("arm64", &there)["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let said = bench.refused(&format!("oci:multi@{other}"));
    assert!(said.contains("it has linux/arm64"), "{said}");
    let mut first = entry("amd64", &here);
    first["annotations"] = json!({"org.opencontainers.image.ref.name": "one"});
    bench.index("multi", &[first, index]);
    let said = bench.refused("oci:multi");
    assert!(
        said.contains("several images") && said.contains("latest, one"),
        "{said}"
    );
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_not_what_it_says_is_refused() {
    let bench = Bench::new();
    let layer = one("a", "1");
    let blob = |layout: &str, digest: &str| {
        let hex = digest.strip_prefix("sha256:").unwrap();
        bench.path(layout).join("blobs/sha256").join(hex)
    };
    // Each of the three kinds of blobs, one bit changed.
    for kind in ["manifest", "config", "layer"] {
        let image = bench.image(kind, &[(TAR, layer.clone(), &layer)]);
        bench.index(kind, std::slice::from_ref(&image));
        let manifest = blob(kind, image["digest"].as_str().unwrap());
        let described: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        damage(&match kind {
            "manifest" => manifest,
            "config" => blob(kind, described["config"]["digest"].as_str().unwrap()),
            _ => blob(kind, described["layers"][0]["digest"].as_str().unwrap()),
        });
        let said = bench.refused(&format!("oci:{kind}"));
        assert!(
            said.contains(&format!("/{kind}: what is called sha256:")),
            "{said}"
        );
    }
    let wrong = [Digest::of(b"another")];
    let image = bench.image_as("diff", &[(TAR, layer.clone(), &layer)], &wrong, "amd64");
    bench.index("diff", &[image]);
    let said = bench.refused("oci:diff");
    assert!(
        said.contains("layer 1 of 1") && said.contains("unpacks to"),
        "{said}"
    );
    // Also where the store has a layer of that name from somewhere else.
    let good = bench.image("good", &[(TAR, layer.clone(), &layer)]);
    bench.index("good", &[good]);
    bench.import("oci:good").unwrap();
    let other = one("a", "2");
    let known = [Digest::of(&layer)];
    let image = bench.image_as("known", &[(TAR, other.clone(), &other)], &known, "amd64");
    bench.index("known", &[image]);
    assert!(bench.refused("oci:known").contains("unpacks to"));
    let image = bench.image_as("less", &[(TAR, layer.clone(), &layer)], &[], "amd64");
    bench.index("less", &[image]);
    assert!(bench.refused("oci:less").contains("number of layers"));
    let image = bench.image("kind", &[("application/x-cpio", layer.clone(), &layer)]);
    bench.index("kind", &[image]);
    assert!(
        bench
            .refused("oci:kind")
            .contains("its layer 1 of 1 is `application/x-cpio`")
    );
    let cut = gzip(&layer);
    let image = bench.image("cut", &[(GZIP, cut[..cut.len() - 9].to_vec(), &layer)]);
    bench.index("cut", &[image]);
    assert!(bench.refused("oci:cut").contains("layer 1 of 1"));
    let old = bench.put("old", br#"{"schemaVersion": 1, "fsLayers": []}"#);
    bench.index("old", &[old]);
    assert!(bench.refused("oci:old").contains("first schema"));
    let mut gone = bench.put("gone", b"{}");
    gone["digest"] = json!(Digest::of(b"gone"));
    bench.index("gone", &[gone]);
    assert!(bench.refused("oci:gone").contains("it lacks sha256:"));
    fs::write(bench.path("gone/index.json"), "{").unwrap();
    assert!(
        bench
            .refused("oci:gone")
            .contains("index.json can't be understood")
    );
    let mut image = bench.image("size", &[(TAR, layer.clone(), &layer)]);
    let size = image["size"].as_u64().unwrap();
    image["size"] = (size + 1).into();
    bench.index("size", &[image]);
    let said = bench.refused("oci:size");
    assert!(said.contains(&format!("{} bytes that", size + 1)), "{said}");
    assert_eq!(
        fs::read_dir(bench.store.dir().join("tmp")).unwrap().count(),
        0
    );
}

#[test]
fn a_document_that_is_too_large_is_told_as_that() {
    let bench = Bench::new();
    let long = " ".repeat(4 << 20) + "{}";
    fs::create_dir(bench.path("folder")).unwrap();
    fs::write(bench.path("folder/index.json"), &long).unwrap();
    for (archive, file) in [("oci.tar", "index.json"), ("docker.tar", "manifest.json")] {
        fs::write(bench.path(archive), one(file, &long)).unwrap();
    }
    for (reference, file) in [
        ("oci:folder", "index.json"),
        ("oci-archive:oci.tar", "index.json"),
        ("docker-archive:docker.tar", "manifest.json"),
    ] {
        let said = bench.refused(reference);
        assert!(
            said.contains(&format!("{file} has 4194305 bytes or more")),
            "{said}"
        );
    }
}

#[test]
fn an_archive_that_would_fill_the_disk_is_refused_before_it_is_unpacked() {
    let bench = Bench::new();
    let archive = zstd::encode_all(&*header("index.json", b'0', "", 5 << 30), 1).unwrap();
    fs::write(bench.path("bomb.tar"), archive).unwrap();
    let said = bench.refused("oci-archive:bomb.tar");
    assert!(said.contains("4294967296 bytes of content"), "{said}");
}

#[test]
fn hostile_layers_are_refused_with_what_is_wrong() {
    let bench = Bench::new();
    let end = vec![0; 1024];
    let cases: [(&str, Vec<Vec<u8>>, &str); 8] = [
        (
            "up",
            vec![header("../../etc/x", b'0', "", 0)],
            "leaves the root",
        ),
        (
            "through",
            vec![
                header("a", b'2', "/etc", 0),
                header("a/passwd", b'0', "", 0),
            ],
            "`a/passwd` is below `a`, which is not a directory",
        ),
        (
            "hard",
            vec![header("a", b'1', "../../etc/shadow", 0)],
            "leaves the root",
        ),
        (
            "dangling",
            vec![header("a", b'1', "/etc/shadow", 0)],
            "the hard link `a` names `etc/shadow`",
        ),
        (
            "circle",
            vec![header("a", b'1', "b", 0), header("b", b'1', "a", 0)],
            "hard link",
        ),
        ("sparse", vec![header("a", b'S', "", 0)], "sparse"),
        ("short", vec![header("a", b'0', "", 5000)], "ends within"),
        (
            "opaque",
            vec![header(".wh..", b'0', "", 0)],
            "without a name",
        ),
    ];
    for (name, blocks, said) in cases {
        let tar = [blocks.concat(), end.clone()].concat();
        let text = bench.evil(name, &tar);
        assert!(
            text.contains(said) && text.contains(&format!("/{name}: layer 1 of 1")),
            "{name}: {text}"
        );
    }
    // Absolute names count from the layer's root, and devices are kept as they are: nothing of either is of the host.
    let tar = [
        header("/abs/file", b'0', "", 0),
        header("dev/sda", b'4', "", 0),
        end,
    ]
    .concat();
    let image = bench.image("abs", &[(TAR, tar.clone(), &tar)]);
    bench.index("abs", &[image]);
    let digest = bench.import("oci:abs").unwrap();
    assert_eq!(text(&bench.store, &digest, "abs/file").as_deref(), Some(""));
}

#[test]
fn a_layer_that_would_fill_the_disk_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    // Five gigabytes of zeros in some hundred kilobytes.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let size = 5u64 << 30;
    encoder.write_all(&header("zeros", b'0', "", size)).unwrap();
    let zeros = vec![0; 8 << 20];
    for _ in 0..size / zeros.len() as u64 {
        encoder.write_all(&zeros).unwrap();
    }
    let bytes = encoder.finish().unwrap();
    assert!(bytes.len() < 1 << 20);
    let image = bench.image_as("bomb", &[(ZSTD, bytes, &[])], &[Digest::of(b"")], "amd64");
    bench.index("bomb", &[image]);
    let said = bench.refused("oci:bomb");
    assert!(
        said.contains("layer 1 of 1") && said.contains("fill the disk"),
        "{said}"
    );
}
