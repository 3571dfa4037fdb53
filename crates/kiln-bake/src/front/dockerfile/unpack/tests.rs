use kiln_oci::Tree;

use super::*;

fn unpacked(view: &Path, to: &str, blocks: &[Vec<u8>]) -> Result<Tree, UnpackError> {
    unpacked_within(view, to, blocks, 1 << 30)
}

fn unpacked_within(
    view: &Path,
    to: &str,
    blocks: &[Vec<u8>],
    limit: u64,
) -> Result<Tree, UnpackError> {
    let mut placing = Placing {
        view,
        owner: None,
        chmod: None,
        date: 1000,
        tree: Tree::new(),
        replaced: Vec::new(),
    };
    let mut bytes = blocks.concat();
    bytes.extend([0; 1024]);
    let size = bytes.len() as u64;
    let stream = Box::new(io::Cursor::new(bytes));
    let spill = tempfile::tempfile().unwrap();
    within(&mut placing, stream, size, Path::new(to), spill, limit)?;
    Ok(placing.tree)
}

fn block(name: &str, kind: EntryType, link: &str, text: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(text.len() as u64);
    header.set_mode(0o640);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(5);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn paths(tree: &Tree) -> Vec<String> {
    tree.iter()
        .skip(1)
        .map(|(path, entry)| match &entry.kind {
            Kind::Dir { .. } => format!("{}/", path.display()),
            Kind::Hardlink { target } => format!("{}={}", path.display(), target.display()),
            Kind::Symlink { .. } => format!("{}@", path.display()),
            _ => path.display().to_string(),
        })
        .collect()
}

#[test]
fn links_of_image_and_archive_lead_from_the_folder_that_is_unpacked_to() {
    let view = tempfile::tempdir().unwrap();
    let view = view.path();
    fs::create_dir_all(view.join("opt/usr/bin")).unwrap();
    fs::write(view.join("opt/usr/bin/old"), "old").unwrap();
    std::os::unix::fs::symlink("/usr/bin", view.join("opt/bin")).unwrap();
    let file = |name: &str| block(name, EntryType::Regular, "", "text");
    for (blocks, expected) in [
        // Through the image's link, whose root is the folder.
        (
            vec![file("bin/sh")],
            &["opt/", "opt/usr/", "opt/usr/bin/", "opt/usr/bin/sh"][..],
        ),
        // A folder of the archive replaces the link.
        (
            vec![block("bin/", EntryType::Directory, "", ""), file("bin/sh")],
            &["opt/", "opt/bin/", "opt/bin/sh"],
        ),
        // A link of the archive that seems to lead out.
        (
            vec![
                block("out", EntryType::Symlink, "../../../../etc", ""),
                file("out/passwd"),
            ],
            &["opt/", "opt/etc/", "opt/etc/passwd", "opt/out@"],
        ),
        (vec![file("/abs/./x")], &["opt/", "opt/abs/", "opt/abs/x"]),
        (
            vec![file("a"), block("b", EntryType::Link, "a", "")],
            &["opt/", "opt/a", "opt/b=opt/a"],
        ),
        // Of a file of the image: both are in the layer.
        (
            vec![block("b", EntryType::Link, "usr/bin/old", "")],
            &[
                "opt/",
                "opt/b=opt/usr/bin/old",
                "opt/usr/",
                "opt/usr/bin/",
                "opt/usr/bin/old",
            ],
        ),
        (
            vec![file("x/y"), block("x", EntryType::Symlink, "z", "")],
            &["opt/", "opt/x@"],
        ),
    ] {
        let tree = unpacked(view, "opt", &blocks).unwrap();
        assert_eq!(paths(&tree), expected);
    }
}

#[test]
fn what_would_leave_the_folder_is_refused() {
    let view = tempfile::tempdir().unwrap();
    let link = |name: &str, to: &str| block(name, EntryType::Link, to, "");
    for (blocks, said) in [
        (
            vec![block("../x", EntryType::Regular, "", "")],
            "`../x` leads out of the archive",
        ),
        (
            vec![block("a/../../x", EntryType::Regular, "", "")],
            "leads out of the archive",
        ),
        (
            vec![link("a", "../../etc/shadow")],
            "hard link out of the archive",
        ),
        (vec![link("a", "/etc/shadow")], "what is not there"),
        (
            vec![block(".wh.x", EntryType::Regular, "", "")],
            "begins with `.wh.`",
        ),
        (
            vec![
                block("l", EntryType::Symlink, "l", ""),
                block("l/x", EntryType::Regular, "", ""),
            ],
            "too many links",
        ),
        (vec![block("n", EntryType::Char, "", "")], "deleted files"),
    ] {
        let error = unpacked(view.path(), "opt", &blocks).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn what_is_longer_than_its_limit_is_refused_wherever_that_ends() {
    let view = tempfile::tempdir().unwrap();
    let blocks: Vec<_> = ["a", "b", "c"]
        .map(|name| block(name, EntryType::Regular, "", "text"))
        .to_vec();
    let within = |limit| unpacked_within(view.path(), "", &blocks, limit);
    assert_eq!(within(3 * 1024 + 1024).unwrap().iter().count(), 4);
    // At an entry's end, within its content, and within the header of the next.
    for limit in [
        2 * 1024,
        2 * 1024 - 1,
        2 * 1024 - 510,
        2 * 1024 + 100,
        3 * 1024,
    ] {
        let error = within(limit).unwrap_err();
        assert!(
            matches!(error, UnpackError::Bomb { .. }),
            "{limit}: {error}"
        );
    }
}

#[test]
fn records_of_an_entry_have_a_length() {
    let view = tempfile::tempdir().unwrap();
    let long = |kind, length: usize| {
        let mut name = block("././@LongLink", kind, "", &"x".repeat(length));
        name.extend(block("a", EntryType::Regular, "", "text"));
        name
    };
    // A folder's content is nobody's, and takes nothing of what the next entry may have.
    let folder = block(
        "d/",
        EntryType::Directory,
        "",
        &"y".repeat(RECORDS_MAX as usize),
    );
    let tree = unpacked(view.path(), "", &[folder, long(EntryType::GNULongName, 5)]).unwrap();
    assert_eq!(paths(&tree), ["d/", "xxxxx"]);
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
    ] {
        let error = unpacked(view.path(), "", &[long(kind, RECORDS_MAX as usize)]).unwrap_err();
        assert!(error.to_string().contains("records"), "{kind:?}: {error}");
    }
}

#[test]
fn what_takes_too_much_memory_to_unpack_is_no_plain_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.xz");
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&[0; 4096]).unwrap();
    let mut bytes = xz.finish().unwrap();
    // The block's header, whose filter is LZMA2 with a dictionary of 4 GiB (the xz file format, 3.1 and 5.3.1).
    let end = 12 + (usize::from(bytes[12]) + 1) * 4;
    let filter = bytes[12..end]
        .windows(2)
        .position(|two| two == [0x21, 1])
        .unwrap();
    bytes[12 + filter + 2] = 40;
    let mut sum = flate2::Crc::new();
    sum.update(&bytes[12..end - 4]);
    bytes[end - 4..end].copy_from_slice(&sum.sum().to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = tar_stream(&path).err().unwrap();
    assert!(wants_memory(&error), "{error}");
}

#[test]
fn an_archive_is_known_by_its_first_header() {
    let folder = tempfile::tempdir().unwrap();
    let tar = [block("a", EntryType::Regular, "", "text"), vec![0; 1024]].concat();
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&tar).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&tar).unwrap();
    for (name, bytes, is_archive) in [
        ("tar", tar.clone(), true),
        ("gzip", gzip(&tar), true),
        ("bzip2", bzip2.finish().unwrap(), true),
        ("xz", xz.finish().unwrap(), true),
        ("zstd", zstd::encode_all(tar.as_slice(), 1).unwrap(), true),
        ("gzip of a text", gzip(&[b'x'; 2000]), false),
        ("text", vec![b'x'; 2000], false),
        ("cut", gzip(&tar)[..30].to_vec(), false),
        ("empty", Vec::new(), false),
        ("zeros", vec![0; 1024], false),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let stream = tar_stream(&path).unwrap();
        assert_eq!(stream.is_some(), is_archive, "{name}");
        if let Some(mut stream) = stream {
            let mut whole = Vec::new();
            stream.read_to_end(&mut whole).unwrap();
            assert_eq!(whole, tar, "{name}");
        }
    }
}
