//! ADD: archives that are unpacked, and files of the network.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_bake::{BakedDockerfile, MEDIA_IN_TOTO};
use kiln_model::Digest;

use crate::dockerfile::Bench;
use crate::server::{Answer, Asked, Server};
use crate::world::told;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("added_archives_are_unpacked", archives),
    ("added_archives_that_are_hostile_are_refused", hostile),
    ("added_repositories_are_checked_out", repositories),
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

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example.org",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Git's own server, by CGI.
fn backend(root: &Path, asked: &Asked) -> Answer {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let mut child = Command::new("git")
        .arg("http-backend")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", &asked.method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env(
            "CONTENT_TYPE",
            asked.header("content-type").unwrap_or_default(),
        )
        .env(
            "GIT_PROTOCOL",
            asked.header("git-protocol").unwrap_or_default(),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&asked.body).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    let end = output
        .windows(4)
        .position(|part| part == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = head.lines().find_map(|line| line.strip_prefix("Status: "));
    let status = status.map_or(200, |status| status[..3].parse().unwrap());
    Answer::new(status, &output[end + 4..])
}

/// All that is attached to the image about where it came from.
fn provenance(bench: &Bench, baked: &BakedDockerfile) -> String {
    let all = bench.store.referrers(&baked.digest).unwrap();
    all.iter()
        .filter(|referrer| referrer.artifact_type == MEDIA_IN_TOTO)
        .map(|referrer| bench.store.referrer_document(&referrer.digest).unwrap())
        .map(|document| String::from_utf8(document).unwrap())
        .collect()
}

fn private_repository(host: &str) {
    let mut bench = Bench::new();
    let text = format!("FROM busybox\nADD http://{host}/private/a.git#v1 /o\n");
    let said = bench.refused(&text);
    assert!(said.contains("--secret id=GIT_AUTH_TOKEN"), "{said}");
    let mut give = |name: &str, token: &str| {
        bench.granted.secrets = BTreeMap::from([(name.to_owned(), token.as_bytes().to_vec())]);
        bench.bake("git:private", &text).map(|baked| {
            let statement = provenance(&bench, &baked);
            assert!(!statement.contains("sesame"), "{statement}");
        })
    };
    let wrong = give("GIT_AUTH_TOKEN", "wrong").unwrap_err();
    assert!(told(&wrong).contains("has this token"), "{}", told(&wrong));
    give("GIT_AUTH_TOKEN", "sesame").unwrap();
    // That of the server goes before that of all.
    give(&format!("GIT_AUTH_TOKEN.{host}"), "sesame\n").unwrap();
    let other = give("GIT_AUTH_TOKEN.example.org", "sesame").unwrap_err();
    assert!(told(&other).contains("401"), "{}", told(&other));
}

fn repositories() {
    let bench = Bench::new();
    let root = bench.root.path().join("repositories");
    let work = root.join("a.git");
    fs::create_dir_all(work.join("sub/deep")).unwrap();
    git(&work, &["init", "-q"]);
    fs::write(work.join("file"), "one").unwrap();
    fs::write(work.join("sub/deep/big"), "line of a file\n".repeat(10_000)).unwrap();
    symlink("../file", work.join("sub/link")).unwrap();
    fs::write(work.join("run"), "#!/bin/sh").unwrap();
    fs::set_permissions(
        work.join("run"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    git(&work, &["add", "."]);
    git(&work, &["commit", "-qm", "one"]);
    git(&work, &["tag", "-a", "v1", "-m", "v1"]);
    let first = git(&work, &["rev-parse", "HEAD"]);
    git(&work, &["checkout", "-qb", "next"]);
    fs::write(work.join("file"), "two").unwrap();
    fs::write(work.join("sub/deep/big"), "line of a file\n".repeat(10_001)).unwrap();
    git(&work, &["commit", "-qam", "two"]);
    git(&work, &["checkout", "-q", "main"]);
    // Packed, with deltas.
    git(&work, &["gc", "-q"]);
    let served = root.clone();
    // `x-access-token:sesame`
    let right = "Basic eC1hY2Nlc3MtdG9rZW46c2VzYW1l";
    let server = Server::start(move |asked| {
        if let Some(rest) = asked.path.strip_prefix("/moved") {
            let place = format!("http://{}{rest}", asked.header("host").unwrap());
            return Answer::new(301, "").with("Location", place);
        }
        let Some(rest) = asked.path.strip_prefix("/private") else {
            return backend(&served, asked);
        };
        if asked.header("authorization") != Some(right) {
            return Answer::new(401, "");
        }
        let path = rest.to_owned();
        backend(
            &served,
            &Asked {
                path,
                method: asked.method.clone(),
                headers: asked.headers.clone(),
                body: asked.body.clone(),
            },
        )
    });
    let url = format!("http://{}/a.git", server.host);
    let moved = format!("http://{}/moved/a.git", server.host);
    let run = "run \"#!/bin/sh\" 0:0 755";
    for (number, (source, text, whole)) in [
        (url.clone(), "one", true),
        (format!("{url}#main"), "one", true),
        (format!("{url}#v1"), "one", true),
        (format!("{moved}#refs/tags/v1"), "one", true),
        (format!("{url}#next"), "two", true),
        (format!("{url}#{first}"), "one", true),
        (format!("{url}#next:sub"), "two", false),
    ]
    .into_iter()
    .enumerate()
    {
        let baked = bench.baked(
            &format!("git:{number}"),
            &format!("FROM busybox\nADD {source} /o\n"),
        );
        let tree = bench.tree(&baked, "o");
        if whole {
            assert_eq!(tree[0], format!("file {text:?} 0:0 644"), "{source}");
            assert!(
                tree.contains(&run.to_owned()) && tree.contains(&"sub/link -> ../file".to_owned()),
                "{tree:?}"
            );
            assert!(!tree.iter().any(|line| line.starts_with(".git")));
        } else {
            assert_eq!(tree[0], "deep/ 0:0 755", "{source}");
        }
    }
    // A whole name of a commit is asked for once, and not at all when its step is there.
    server.asked();
    let text = format!("FROM busybox\nADD --chown=7:8 {url}#{first} /o\n");
    let baked = bench.baked("git:own", &text);
    assert!(
        bench
            .tree(&baked, "o")
            .contains(&"file \"one\" 7:8 644".to_owned())
    );
    assert_eq!(server.asked().len(), 2);
    assert!(baked.warnings.is_empty());
    bench.baked("git:own", &text);
    assert!(server.asked().is_empty());
    let statement = provenance(&bench, &baked);
    assert!(
        statement.contains(&format!(
            "{{\"digest\":{{\"gitCommit\":\"{first}\"}},\"uri\":\"{url}\"}}"
        )),
        "{statement}"
    );
    private_repository(&server.host);
    let none = format!("http://{}/none.git", server.host);
    for (instruction, place, said) in [
        (
            format!("ADD {url}#none /"),
            "2:5",
            "no branch and no tag `none`",
        ),
        (
            format!("ADD {url}#main:none /"),
            "2:1",
            "has no folder `none`",
        ),
        (format!("ADD {none} /"), "2:5", "its server answers 404"),
        (
            format!("ADD {url}#{} /", "0".repeat(40)),
            "2:1",
            "can't be had",
        ),
        (
            "ADD git@example.org:a.git /".to_owned(),
            "2:5",
            "https:// address",
        ),
        (
            format!("ADD --keep-git-dir {url} /"),
            "2:",
            "--keep-git-dir is not supported",
        ),
        (
            format!("ADD --checksum=0000000 {url} /"),
            "2:16",
            &*format!("is the commit {first} now"),
        ),
    ] {
        let text = bench.refused(&format!("FROM busybox\n{instruction}\n"));
        assert!(
            text.contains(&format!("Dockerfile:{place}")) && text.contains(said),
            "{instruction}: {text}"
        );
    }
}
