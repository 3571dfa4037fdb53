//! The tar writer against GNU tar, and the reader against the writer and against hostile streams.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_oci::tar::Limits;
use kiln_oci::{Entry, Kind, LayerError, Tree, erofs, tar};
use proptest::test_runner::{Config, TestRunner};

use crate::mounts::read;

fn stream(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    tar::write(tree, &mut bytes).unwrap();
    bytes
}

fn parse(bytes: &[u8]) -> Result<Tree, LayerError> {
    Tree::from_tar(bytes, tempfile::tempfile().unwrap(), Limits::default())
}

fn image(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    erofs::write(tree, &mut bytes).unwrap();
    bytes
}

#[test]
fn both_forms_come_back_bit_for_bit_from_the_tar_stream() {
    let mut runner = TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&crate::random::tree(), |tree| {
            let bytes = stream(&tree);
            let back = parse(&bytes).unwrap();
            assert!(stream(&back) == bytes, "the tar stream differs");
            assert!(image(&back) == image(&tree), "the EROFS file differs");
            Ok(())
        })
        .unwrap();
}

#[test]
fn gnu_tar_extracts_what_the_tree_says() {
    let long = "long-".repeat(40);
    let mut tree = Tree::new();
    tree.insert("", Entry::dir(0o750).mtime(1_700_000_000))
        .unwrap();
    let file = |size: usize| {
        Entry::bytes(vec![b'x'; size], 0o4755)
            .owner(3_000_000, 1000)
            .mtime(1_600_000_000)
    };
    tree.insert("a", file(513)).unwrap();
    tree.insert("b", Entry::new(Kind::Hardlink { target: "a".into() }, 0))
        .unwrap();
    tree.insert(&long, file(0)).unwrap();
    tree.insert("sym", Entry::symlink(&long).mtime(1)).unwrap();
    tree.insert("fifo", Entry::new(Kind::Fifo, 0o600).mtime(1))
        .unwrap();
    tree.insert(
        "null",
        Entry::new(Kind::CharDev { major: 1, minor: 3 }, 0o666).mtime(1),
    )
    .unwrap();
    let mut capable = file(3);
    // With a newline among its bytes, at which careless readers stop.
    capable
        .xattrs
        .insert(b"trusted.some".to_vec(), b"\x01\n\0\n 12 x=y\n".to_vec());
    tree.insert("capable", capable).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("tar")
        .args([
            "--extract",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "--same-owner",
        ])
        .args(["--preserve-permissions", "--file=-", "-C"])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .spawn()
        .expect("GNU tar is needed for this test");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&stream(&tree))
        .unwrap();
    assert!(child.wait().unwrap().success());
    // The kernel's counts of subdirectories may differ between file systems; none are made here.
    let mut seen = read(dir.path());
    let mut wanted = crate::tree::expected(&tree);
    for map in [&mut seen, &mut wanted] {
        map.get_mut(b"".as_slice()).unwrap().nlink = 2;
    }
    crate::tree::assert_same(&seen, &wanted);
}

#[test]
fn whiteouts_are_marked_as_the_image_specification_says() {
    let mut tree = Tree::new();
    tree.insert("etc/gone", Entry::new(Kind::Whiteout, 0))
        .unwrap();
    tree.insert("var", Entry::new(Kind::Dir { opaque: true }, 0o755))
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t");
    fs::write(&file, stream(&tree)).unwrap();
    let output = Command::new("tar")
        .arg("-tf")
        .arg(&file)
        .output()
        .expect("GNU tar is needed");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "./\netc/\netc/.wh.gone\nvar/\nvar/.wh..wh..opq\n"
    );
}

#[test]
fn a_stream_of_gnu_tar_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let long = "d/".to_owned() + &"n".repeat(200);
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/f"), "hello").unwrap();
    fs::write(dir.path().join(&long), "long").unwrap();
    std::os::unix::fs::symlink(&long, dir.path().join("d/s")).unwrap();
    for format in ["gnu", "posix", "ustar"] {
        let names: &[&str] = if format == "ustar" { &["d/f"] } else { &["d"] };
        let output = Command::new("tar")
            .args([
                "--create",
                "--file=-",
                &format!("--format={format}"),
                "--mtime=@77",
                "-C",
            ])
            .arg(dir.path())
            .args(names)
            .output()
            .expect("GNU tar is needed for this test");
        assert!(output.status.success());
        let tree = parse(&output.stdout).unwrap();
        let file = tree.get("d/f").unwrap();
        assert!(matches!(file.kind, Kind::File { size: 5, .. }), "{format}");
        assert_eq!(file.mtime, 77, "{format}");
        if format != "ustar" {
            assert!(
                matches!(tree.get(&long).unwrap().kind, Kind::File { size: 4, .. }),
                "{format}"
            );
            let Kind::Symlink { target } = &tree.get("d/s").unwrap().kind else {
                panic!("{format}: d/s is no link");
            };
            assert_eq!(target, long.as_bytes(), "{format}");
        }
    }
}

/// A stream with one entry, whose name and link are written as they are.
fn raw(name: &str, kind: u8, link: &str) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

#[test]
fn paths_that_leave_the_layer_are_refused() {
    for name in ["../etc/passwd", "a/../../b", ".."] {
        assert!(
            matches!(
                parse(&raw(name, b'0', "")),
                Err(LayerError::PathInvalid { .. })
            ),
            "{name}"
        );
    }
    assert!(matches!(
        parse(&raw("link", b'1', "../../etc/shadow")),
        Err(LayerError::PathInvalid { .. })
    ));
    assert!(matches!(
        parse(&raw("link", b'1', "absent")),
        Err(LayerError::LinkTarget { .. })
    ));
    assert!(matches!(
        parse(&raw("link", b'1', "link")),
        Err(LayerError::LinkTarget { .. })
    ));
    let absolute = parse(&raw("/etc/passwd", b'0', "")).unwrap();
    assert!(absolute.get("etc/passwd").is_some());
    // Below a symbolic link that the same layer has: never followed.
    let below = [raw("l", b'2', "/etc"), raw("l/passwd", b'0', "")].concat();
    assert!(matches!(
        parse(&below),
        Err(LayerError::ParentNotDirectory { .. })
    ));
}

#[test]
fn damaged_streams_are_refused_and_never_panic() {
    let mut tree = Tree::new();
    let mut entry = Entry::bytes(vec![1; 700], 0o644);
    entry.xattrs.insert(b"user.x".to_vec(), b"value".to_vec());
    tree.insert("n".repeat(150), entry).unwrap();
    let good = stream(&tree);
    let whole = good.len() - 1024;
    for end in 1..whole {
        // The root's header alone is a whole stream.
        let at_boundary = end == 512;
        assert_eq!(parse(&good[..end]).is_ok(), at_boundary, "cut at {end}");
    }
    // Byte 155 ends the checksum's own field, after its NUL: nobody reads it.
    for at in (0..512).filter(|at| *at != 155) {
        let mut bad = good.clone();
        bad[at] ^= 0x11;
        assert!(
            parse(&bad).is_err(),
            "byte {at} of the first header changed"
        );
    }
    for at in 512..whole {
        let mut bad = good.clone();
        bad[at] = bad[at].wrapping_add(0x2f);
        // Content may differ; what counts is that nothing panics and no name leaves the root.
        if let Ok(tree) = parse(&bad) {
            assert!(
                tree.iter()
                    .all(|(path, _)| !path.starts_with("..") && path.is_relative())
            );
        }
    }
}

#[test]
fn a_stream_past_the_limits_is_refused() {
    let mut tree = Tree::new();
    for number in 0..10 {
        tree.insert(format!("{number}"), Entry::bytes(vec![0; 100], 0o644))
            .unwrap();
    }
    let bytes = stream(&tree);
    let read = |limits| {
        Tree::from_tar(bytes.as_slice(), tempfile::tempfile().unwrap(), limits)
            .map(|tree| tree.len())
    };
    let limits = Limits {
        entries: 11,
        content: 1000,
        metadata: 12,
    };
    assert_eq!(read(limits).unwrap(), 10);
    for (limits, what) in [
        (
            Limits {
                entries: 10,
                ..limits
            },
            "entries",
        ),
        (
            Limits {
                content: 999,
                ..limits
            },
            "content",
        ),
        (
            Limits {
                metadata: 11,
                ..limits
            },
            "names",
        ),
    ] {
        let error = read(limits).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn a_name_that_a_layer_keeps_for_itself_is_refused() {
    let mut tree = Tree::new();
    tree.insert("etc/.wh.passwd", Entry::bytes(Vec::new(), 0o644))
        .unwrap();
    let error = tar::write(&tree, Vec::new()).unwrap_err();
    assert!(
        matches!(error, LayerError::ReservedName { path } if path == Path::new("etc/.wh.passwd"))
    );
}
