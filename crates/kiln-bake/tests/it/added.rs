//! ADD: archives that are unpacked, and files of the network.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_model::Digest;

use crate::dockerfile::Bench;
use crate::server::{Answer, Server};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("added_archives_are_unpacked", archives),
    ("added_archives_that_are_hostile_are_refused", hostile),
    ("added_names_that_are_no_text_are_kept", bytes),
    ("added_files_of_the_network_are_fetched_once", network),
];

/// GNU tar's own archives, of a folder with one of everything.
fn tars(bench: &Bench) {
    let folder = bench.root.path().join("packed");
    fs::create_dir_all(folder.join("d/sub")).unwrap();
    fs::write(folder.join("d/file"), "text").unwrap();
    fs::write(folder.join("d/sub").join("n".repeat(200)), "long").unwrap();
    fs::hard_link(folder.join("d/file"), folder.join("d/same")).unwrap();
    symlink("file", folder.join("d/link")).unwrap();
    std::os::unix::fs::chown(folder.join("d/file"), Some(70_000), Some(3)).unwrap();
    for (name, arguments) in [
        ("a.tar", &["--format=gnu"][..]),
        ("a.tar.gz", &["--format=pax", "-z"]),
        ("a.tgz.txt", &["--format=ustar", "-z", "--exclude=n*"]),
        ("a.tar.bz2", &["-j"]),
        ("a.tar.xz", &["-J"]),
        ("a.tar.zst", &["--zstd"]),
    ] {
        let status = Command::new("tar")
            .args(arguments)
            .arg("-cf")
            .arg(bench.context.join(name))
            .arg("-C")
            .arg(&folder)
            .arg("d")
            .status()
            .unwrap();
        assert!(status.success(), "{name}");
    }
}

fn archives() {
    let bench = Bench::new();
    tars(&bench);
    let whole = [
        "d/ 0:0 755".to_owned(),
        "d/file \"text\" 70000:3 644".to_owned(),
        "d/link -> file".to_owned(),
        "d/same \"text\" 70000:3 644".to_owned(),
        "d/sub/ 0:0 755".to_owned(),
        format!("d/sub/{} \"long\" 0:0 644", "n".repeat(200)),
    ];
    for name in [
        "a.tar",
        "a.tar.gz",
        "a.tgz.txt",
        "a.tar.bz2",
        "a.tar.xz",
        "a.tar.zst",
    ] {
        let text = format!("FROM busybox\nADD {name} /o\n");
        let baked = bench.baked(&format!("add-{}:1", name.replace('.', "-")), &text);
        let expected = &whole[..whole.len() - usize::from(name == "a.tgz.txt")];
        assert_eq!(bench.tree(&baked, "o"), expected, "{name}");
        bench.look(&baked, |view| {
            let inode = |path: &str| fs::metadata(view.join(path)).unwrap().ino();
            assert_eq!(inode("o/d/file"), inode("o/d/same"), "{name}");
        });
    }
    // COPY, --unpack=false, what only looks like one, and a folder in which one lies: as they are.
    fs::write(bench.context.join("b.tar"), "no tar").unwrap();
    fs::create_dir(bench.context.join("in")).unwrap();
    fs::copy(bench.context.join("a.tar"), bench.context.join("in/a.tar")).unwrap();
    let text = "FROM busybox\nCOPY a.tar /o/1\nADD --unpack=false a.tar /o/2\nADD b.tar /o/3\nADD in /o/4\n";
    let baked = bench.baked("add-as-is:1", text);
    bench.look(&baked, |view| {
        for name in ["1", "2", "3", "4/a.tar"] {
            assert!(view.join("o").join(name).is_file(), "{name}");
        }
    });
    // Into what the image has: its link is followed, its folder stays joined, its file is replaced.
    let text = "FROM busybox\nRUN mkdir -p /o/d /r && echo old > /o/d/file && echo other > /o/d/other && ln -s /r /o/l\n\
                ADD a.tar /o/\nADD a.tar b.tar /o/l/\n";
    let baked = bench.baked("add-into:1", text);
    let tree = bench.tree(&baked, "");
    for expected in [
        "o/d/file \"text\" 70000:3 644",
        "o/d/other \"other\" 0:0 644",
        "o/l -> /r",
        "r/d/file \"text\" 70000:3 644",
        "r/b.tar \"no tar\" 0:0 644",
    ] {
        assert!(tree.contains(&expected.to_owned()), "{expected}: {tree:?}");
    }
    let again = bench.baked("add-into:1", text);
    assert!(again.steps.iter().all(|step| step.cached));
}

/// Names and targets of links that are no UTF-8, hard links, holes, and what is neither file, folder nor link.
fn bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new();
    let name = |bytes: &'static [u8]| OsStr::from_bytes(bytes);
    let folder = bench.context.join("d");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(name(b"n\xff")), "odd").unwrap();
    symlink(name(b"t\xfe"), folder.join("link")).unwrap();
    fs::hard_link(folder.join(name(b"n\xff")), folder.join(name(b"n\xfe"))).unwrap();
    let holes = fs::File::create(folder.join("holes")).unwrap();
    holes.set_len(64 << 20).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
    let baked = bench.baked("bytes:1", "FROM busybox\nCOPY d /o\n");
    bench.look(&baked, |view| {
        let at = |bytes: &'static [u8]| view.join("o").join(name(bytes));
        assert_eq!(fs::read_to_string(at(b"n\xff")).unwrap(), "odd");
        let target = fs::read_link(at(b"link")).unwrap();
        assert_eq!(target.as_os_str(), name(b"t\xfe"));
        assert_eq!(fs::metadata(at(b"holes")).unwrap().len(), 64 << 20);
        assert!(!at(b"socket").exists());
    });
    // Another name that is the same to whoever takes it for text is another input.
    fs::rename(folder.join(name(b"n\xff")), folder.join(name(b"n\xfd"))).unwrap();
    let baked = bench.baked("bytes:2", "FROM busybox\nCOPY d /o\n");
    assert!(!baked.steps[0].cached);
}

fn hostile() {
    let bench = Bench::new();
    let build = |name: &str, path: &str, kind: tar::EntryType, link: &str, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        let bytes = [header.as_bytes().as_slice(), &[0; 1024]].concat();
        fs::write(bench.context.join(name), bytes).unwrap();
    };
    build("up", "../../x", tar::EntryType::Regular, "", 0);
    build("link", "a", tar::EntryType::Link, "../../etc/passwd", 0);
    build("short", "a", tar::EntryType::Regular, "", 50_000);
    build("bomb", "a", tar::EntryType::Regular, "", 1 << 40);
    for (name, said) in [
        ("up", "`../../x` leads out of the archive"),
        ("link", "`a` is a hard link out of the archive"),
        ("short", "can't be read"),
        ("bomb", "fill the disk"),
    ] {
        let text = bench.refused(&format!("FROM busybox\nADD {name} /o/\n"));
        assert!(
            text.contains("Dockerfile:2:1")
                && text.contains(&format!("the archive `{name}` can't be unpacked"))
                && text.contains(said),
            "{name}: {text}"
        );
    }
}

fn network() {
    let bench = Bench::new();
    tars(&bench);
    let packed = fs::read(bench.context.join("a.tar.gz")).unwrap();
    let digest = Digest::of(&packed);
    let changed = Arc::new(AtomicBool::new(false));
    let body = (packed, changed.clone());
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/moved" => Answer::new(302, "").with("Location", "/f/a.tar.gz?x=1"),
        "/f/a.tar.gz?x=1" | "/f/a.tar.gz" => {
            let etag = format!("\"{}\"", body.1.load(Ordering::SeqCst));
            if asked.header("if-none-match") == Some(&etag) {
                return Answer::new(304, "");
            }
            Answer::new(200, body.0.clone())
                .with("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
                .with("ETag", etag)
        }
        _ => Answer::new(404, "nothing"),
    });
    let url = format!("http://{}/f/a.tar.gz", server.host);
    let text = format!("FROM busybox\nADD {url} /o/\n");
    let baked = bench.baked("fetch:1", &text);
    bench.look(&baked, |view| {
        let there = fs::metadata(view.join("o/a.tar.gz")).unwrap();
        assert_eq!((there.mode() & 0o7777, there.uid()), (0o600, 0));
        // Not younger than the base.
        assert_eq!(there.mtime(), 315_532_800);
    });
    let warned = |baked: &kiln_bake::BakedDockerfile| {
        let mut warnings = baked.warnings.iter();
        warnings.any(|warning| {
            warning.what.contains(&url) && warning.help.contains("--checksum=sha256:")
        })
    };
    assert!(warned(&baked));
    assert!(
        bench
            .baked("fetch:1", &text)
            .steps
            .iter()
            .all(|step| step.cached)
    );
    assert_eq!(
        server.asked(),
        ["GET /f/a.tar.gz", "GET /f/a.tar.gz"],
        "the second is answered by 304"
    );
    // What its checksum names is not asked for again, whatever the server has by now.
    changed.store(true, Ordering::SeqCst);
    let text = format!(
        "FROM busybox\nADD --checksum={digest} --chown=5 --chmod=644 {url} /o/x\nADD --unpack {url} /p\n"
    );
    let baked = bench.baked("fetch:2", &text);
    let tree = bench.tree(&baked, "");
    assert!(
        tree.iter()
            .any(|line| line.starts_with("o/x ") && line.ends_with(" 5:5 644")),
        "{tree:?}"
    );
    assert!(
        tree.contains(&"p/d/file \"text\" 70000:3 644".to_owned()),
        "{tree:?}"
    );
    assert_eq!(server.asked(), ["GET /f/a.tar.gz"]);
    let moved = format!("http://{}/moved", server.host);
    let baked = bench.baked("fetch:3", &format!("FROM busybox\nADD {moved} /o/\n"));
    bench.look(&baked, |view| assert!(view.join("o/moved").is_file()));
    let wrong = Digest::of(b"wrong");
    for (instruction, place, said) in [
        (
            format!("ADD http://{}/none /", server.host),
            "2:5",
            "its server answers 404",
        ),
        (
            "ADD http://127.0.0.1:1/x /".to_owned(),
            "2:5",
            "can't be fetched",
        ),
        (
            format!("ADD --checksum={wrong} {moved} /"),
            "2:",
            "its checksum says sha256:",
        ),
        (
            format!("ADD --checksum=sha256:1 {url} /"),
            "2:16",
            "is not a checksum",
        ),
        (
            format!("ADD --checksum={digest} a.tar /"),
            "2:16",
            "is for what is fetched",
        ),
        (
            format!("ADD --checksum={digest} {url} {url} /"),
            "2:16",
            "of one source",
        ),
        (format!("COPY {url} /"), "2:6", "ADD fetches"),
    ] {
        let text = bench.refused(&format!("FROM busybox\n{instruction}\n"));
        assert!(
            text.contains(&format!("Dockerfile:{place}")) && text.contains(said),
            "{instruction}: {text}"
        );
    }
}
