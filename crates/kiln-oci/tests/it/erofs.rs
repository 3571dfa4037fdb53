//! The EROFS writer against the kernel's reading of it and against fsck.erofs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_model::Digest;
use kiln_oci::{Entry, Kind, Tree, erofs};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::mounts::{Mounted, SeenKind, read};
use crate::tree::{assert_same, expected};

fn image(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = erofs::write(tree, &mut bytes).unwrap();
    assert_eq!(length, bytes.len() as u64);
    assert_eq!(length % 4096, 0);
    bytes
}

pub(crate) fn fsck(file: &Path, donors: &[PathBuf]) {
    // fsck.erofs 1.5 reads a header of attributes behind every inode, also behind one that has none and ends the file: a
    // block more lets it. The kernel, which has read the file as it is, does not.
    let padded = file.with_extension("padded");
    let mut bytes = fs::read(file).unwrap();
    bytes.resize(bytes.len() + 4096, 0);
    fs::write(&padded, bytes).unwrap();
    let output = Command::new("fsck.erofs")
        .arg("-d1")
        .args(
            donors
                .iter()
                .map(|donor| format!("--device={}", donor.display())),
        )
        .arg(&padded)
        .output()
        .expect("fsck.erofs, of Debian's erofs-utils, is needed for this test");
    fs::remove_file(&padded).unwrap();
    if output.status.success() {
        return;
    }
    // A random tree is not seen a second time. One name: of those that a shrinking test tries, the smallest stays.
    let kept = std::env::temp_dir().join(format!("kiln-fsck-{}.erofs", std::process::id()));
    fs::copy(file, &kept).unwrap();
    panic!(
        "{}: {}{}",
        kept.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn check(tree: &Tree) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layer.erofs");
    let bytes = image(tree);
    assert!(bytes == image(tree), "a second write differs");
    fs::write(&file, bytes).unwrap();
    let mounted = Mounted::erofs(&file, &dir.path().join("mnt"));
    assert_same(&read(&mounted.path), &expected(tree));
    fsck(&file, &[]);
}

#[test]
fn the_kernel_reads_random_trees_as_they_were_written() {
    let config = Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    };
    // KILN_SEED=<64 hex digits> does a failed run again.
    let seed = match std::env::var("KILN_SEED") {
        Ok(hex) => *Digest::from_hex(&hex).unwrap().as_bytes(),
        Err(_) => {
            let mut seed = [0; 32];
            let mut random = fs::File::open("/dev/urandom").unwrap();
            random.read_exact(&mut seed).unwrap();
            seed
        }
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    TestRunner::new_with_rng(config, rng)
        .run(&crate::random::tree(), |tree| {
            check(&tree);
            Ok(())
        })
        .unwrap_or_else(|error| {
            panic!("KILN_SEED={}: {error}", Digest::from_sha256(seed).hex());
        });
}

#[test]
fn an_empty_layer_mounts() {
    check(&Tree::new());
}

#[test]
fn every_tail_around_a_block_is_read_back() {
    let mut tree = Tree::new();
    for size in (3900..4300).chain(8100..8300) {
        let bytes: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
        let entry = Entry::bytes(bytes, 0o644).mtime(i64::from(size % 3 == 0));
        tree.insert(format!("{size}"), entry).unwrap();
    }
    check(&tree);
}

#[test]
fn names_of_every_block_of_a_large_directory_are_found() {
    let mut tree = Tree::new();
    for number in 0..20_000 {
        tree.insert(format!("dir/{number}"), Entry::symlink("x"))
            .unwrap();
    }
    check(&tree);
}

#[test]
fn small_files_take_no_block_of_their_own() {
    let mut tree = Tree::new();
    for number in 0..1000 {
        tree.insert(format!("f{number}"), Entry::bytes(vec![b'x'; 200], 0o644))
            .unwrap();
    }
    let bytes = image(&tree).len();
    assert!(bytes < 1000 * 300, "1000 files of 200 bytes took {bytes}");
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_is_below() {
    let file = |text: &str| Entry::bytes(text.as_bytes().to_vec(), 0o644);
    let mut lower = Tree::new();
    for path in [
        "kept",
        "deleted",
        "gone/inside",
        "dir/old",
        "dir/sub/old",
        "merged/a",
    ] {
        lower.insert(path, file("lower")).unwrap();
    }
    let mut upper = Tree::new();
    upper
        .insert("deleted", Entry::new(Kind::Whiteout, 0))
        .unwrap();
    upper.insert("gone", Entry::new(Kind::Whiteout, 0)).unwrap();
    upper
        .insert("dir", Entry::new(Kind::Dir { opaque: true }, 0o755))
        .unwrap();
    upper.insert("dir/new", file("upper")).unwrap();
    upper.insert("merged/b", file("upper")).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("l.erofs"), image(&lower)).unwrap();
    fs::write(at("u.erofs"), image(&upper)).unwrap();
    let lower = Mounted::erofs(&at("l.erofs"), &at("l"));
    let upper = Mounted::erofs(&at("u.erofs"), &at("u"));
    let merged = Mounted::overlay(&[&lower.path, &upper.path], &at("m"));
    let files: BTreeMap<String, String> = read(&merged.path)
        .into_iter()
        .filter_map(|(path, seen)| match seen.kind {
            SeenKind::File(bytes) => Some((
                String::from_utf8(path).unwrap(),
                String::from_utf8(bytes).unwrap(),
            )),
            _ => None,
        })
        .collect();
    let wanted = [
        ("dir/new", "upper"),
        ("kept", "lower"),
        ("merged/a", "lower"),
        ("merged/b", "upper"),
    ];
    let wanted = wanted.map(|(path, text)| (path.to_owned(), text.to_owned()));
    assert_eq!(files, BTreeMap::from(wanted));
}

/// A step of a bake: an overlay is written to, its upper directory becomes a layer, and that layer over the
/// first shows what the step saw.
#[test]
fn a_layer_of_an_upper_directory_shows_what_was_done_in_the_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let file = |text: &str| Entry::bytes(text.as_bytes().to_vec(), 0o644).mtime(1_600_000_000);
    let mut base = Tree::new();
    for path in [
        "etc/a",
        "etc/b",
        "var/cache/x",
        "var/cache/y",
        "bin/tool",
        "bin/link",
    ] {
        base.insert(path, file(path)).unwrap();
    }
    fs::write(at("base.erofs"), image(&base)).unwrap();
    let lower = Mounted::erofs(&at("base.erofs"), &at("base"));

    let (upper, merged) = (at("upper"), at("merged"));
    let overlay = Mounted::writable(&lower.path, &upper, &at("work"), &merged);
    fs::remove_file(merged.join("etc/a")).unwrap();
    fs::write(merged.join("etc/b"), "changed").unwrap();
    fs::remove_dir_all(merged.join("var/cache")).unwrap();
    fs::create_dir(merged.join("var/cache")).unwrap();
    fs::write(merged.join("var/cache/new"), "new").unwrap();
    fs::write(merged.join("first"), "one inode").unwrap();
    fs::hard_link(merged.join("first"), merged.join("etc/second")).unwrap();
    symlink("/etc/b", merged.join("sym")).unwrap();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    rustix::fs::setxattr(
        merged.join("bin/tool"),
        "security.capability",
        capability,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(merged.join("socket")).unwrap();
    drop(overlay);

    let mut tree = Tree::from_upper(&upper).unwrap();
    tree.set_mtime(1_700_000_000);
    assert!(matches!(tree.get("etc/a").unwrap().kind, Kind::Whiteout));
    assert!(matches!(
        tree.get("var/cache").unwrap().kind,
        Kind::Dir { opaque: true }
    ));
    assert!(tree.get("socket").is_none());
    for (path, entry) in tree.iter() {
        assert!(
            !entry
                .xattrs
                .keys()
                .any(|name| name.starts_with(b"trusted.overlay.")),
            "{}",
            path.display()
        );
    }
    fs::write(at("step.erofs"), image(&tree)).unwrap();
    fsck(&at("step.erofs"), &[]);
    let step = Mounted::erofs(&at("step.erofs"), &at("step"));
    let both = Mounted::overlay(&[&lower.path, &step.path], &at("both"));
    let seen = read(&both.path);
    let paths: Vec<_> = seen
        .keys()
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect();
    assert_eq!(
        paths,
        [
            "",
            "bin",
            "bin/link",
            "bin/tool",
            "etc",
            "etc/b",
            "etc/second",
            "first",
            "sym",
            "var",
            "var/cache",
            "var/cache/new"
        ]
    );
    assert_eq!(
        seen[b"etc/b".as_slice()].kind,
        SeenKind::File(b"changed".to_vec())
    );
    assert_eq!(
        seen[b"bin/tool".as_slice()].xattrs[b"security.capability".as_slice()],
        capability
    );
    let inode = |name: &str| fs::metadata(step.path.join(name)).unwrap().ino();
    assert_eq!(inode("first"), inode("etc/second"));
    assert_eq!(step.path.join("first").metadata().unwrap().nlink(), 2);
}

#[test]
fn a_layer_that_erofs_cannot_hold_is_refused_by_name() {
    let mut tree = Tree::new();
    let mut entry = Entry::bytes(Vec::new(), 0o644);
    entry.xattrs.insert(b"system.nfs4_acl".to_vec(), vec![1]);
    tree.insert("etc/x", entry).unwrap();
    let error = erofs::write(&tree, Vec::new()).unwrap_err().to_string();
    assert!(
        error.contains("etc/x") && error.contains("system.nfs4_acl"),
        "{error}"
    );
}

#[test]
fn a_file_that_shrinks_while_it_is_written_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shrinks");
    fs::write(&path, vec![7; 10_000]).unwrap();
    let tree = Tree::from_upper(dir.path()).unwrap();
    fs::write(&path, vec![7; 9_000]).unwrap();
    let error = erofs::write(&tree, Vec::new()).unwrap_err().to_string();
    assert!(error.contains("`shrinks` changed"), "{error}");
}

#[test]
fn a_symbolic_link_put_in_place_of_a_file_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/file"), vec![7; 100]).unwrap();
    let tree = Tree::from_upper(dir.path()).unwrap();
    fs::remove_dir_all(dir.path().join("d")).unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), vec![8; 100]).unwrap();
    symlink(outside.path(), dir.path().join("d")).unwrap();
    let error = erofs::write(&tree, Vec::new()).unwrap_err();
    assert!(error.to_string().contains("cannot open d/file"), "{error}");
}

#[test]
fn names_of_bytes_that_are_not_text_are_kept() {
    let mut tree = Tree::new();
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe\x01");
    tree.insert(Path::new(name), Entry::bytes(b"x".to_vec(), 0o600))
        .unwrap();
    check(&tree);
}
