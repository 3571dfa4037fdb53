//! Repositories of the network, by Git's own servers.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_bake::{BakedDockerfile, ContextFolder, Granted, MEDIA_IN_TOTO};
use kiln_model::Digest;

use crate::dockerfile::Bench;
use crate::server::{Answer, Asked, Server};
use crate::world::told;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("repositories_are_checked_out", repositories),
    ("repositories_keep_what_git_itself_takes", kept),
    ("repositories_bring_their_submodules", submodules),
    ("repositories_are_reached_by_plain_tcp", plain_tcp),
];

pub(crate) fn git(folder: &Path, arguments: &[&str]) -> String {
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

/// A repository of two branches and a tag, packed with deltas. The commit of `main`.
fn branches_and_a_tag(work: &Path) -> String {
    fs::create_dir_all(work.join("sub/deep")).unwrap();
    git(work, &["init", "-q"]);
    fs::write(work.join("file"), "one").unwrap();
    fs::write(work.join("sub/deep/big"), "line of a file\n".repeat(10_000)).unwrap();
    symlink("../file", work.join("sub/link")).unwrap();
    fs::write(work.join("run"), "#!/bin/sh").unwrap();
    fs::set_permissions(
        work.join("run"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    git(work, &["add", "."]);
    git(work, &["commit", "-qm", "one"]);
    git(work, &["tag", "-a", "v1", "-m", "v1"]);
    let first = git(work, &["rev-parse", "HEAD"]);
    git(work, &["checkout", "-qb", "next"]);
    fs::write(work.join("file"), "two").unwrap();
    fs::write(work.join("sub/deep/big"), "line of a file\n".repeat(10_001)).unwrap();
    git(work, &["commit", "-qam", "two"]);
    git(work, &["checkout", "-q", "main"]);
    // Packed, with deltas.
    git(work, &["gc", "-q"]);
    first
}

/// Everything below `root`; once more below `/private` for who has the password, and below `/moved` at another place.
fn serve_with_a_private_one(root: &Path) -> Server {
    let served = root.to_owned();
    // `x-access-token:sesame`
    let right = "Basic eC1hY2Nlc3MtdG9rZW46c2VzYW1l";
    Server::start(move |asked| {
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
    })
}

fn repositories() {
    let bench = Bench::new();
    let root = bench.root.path().join("repositories");
    let first = branches_and_a_tag(&root.join("a.git"));
    let server = serve_with_a_private_one(&root);
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
        (format!("ADD {url}?x=1 /"), "2:5", "can't have `x`"),
        (
            format!("ADD {url}?checksum=0000000 /"),
            "2:5",
            "wants 0000000",
        ),
        (
            format!("ADD --keep-git-dir {url}?keep-git-dir=0 /"),
            "2:20",
            "take one of them out",
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

/// A server of everything below `root`.
fn serve(root: &Path) -> Server {
    let root = root.to_owned();
    Server::start(move |asked| backend(&root, asked))
}

/// A repository `name` below `root` with one file, and its first commit.
pub(crate) fn made(root: &Path, name: &str) -> (PathBuf, String) {
    let work = root.join(name);
    fs::create_dir_all(&work).unwrap();
    git(&work, &["init", "-q"]);
    fs::write(work.join("file"), format!("of {name}")).unwrap();
    git(&work, &["add", "."]);
    git(&work, &["commit", "-qm", "first"]);
    let commit = git(&work, &["rev-parse", "HEAD"]);
    (work, commit)
}

/// What Git says of a work tree that is anybody's.
fn asked(work: &Path, arguments: &[&str]) -> String {
    let all = [&["-c", "safe.directory=*"], arguments].concat();
    git(work, &all)
}

/// The files of a folder.
fn listing(folder: &Path) -> BTreeMap<PathBuf, Digest> {
    let mut all = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                all.insert(name, Digest::of(&fs::read(&path).unwrap()));
            }
        }
    }
    all
}

fn kept() {
    let bench = Bench::new();
    let root = bench.root.path().join("repositories");
    let (work, _) = made(&root, "a.git");
    fs::create_dir(work.join("sub")).unwrap();
    fs::write(work.join("sub/run"), "#!/bin/sh").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(work.join("sub/run"), mode).unwrap();
    symlink("file", work.join("link")).unwrap();
    fs::write(work.join("big"), "line of a file\n".repeat(10_000)).unwrap();
    git(&work, &["add", "."]);
    git(&work, &["commit", "-qm", "second"]);
    git(&work, &["tag", "-a", "v1", "-m", "v1"]);
    let commit = git(&work, &["rev-parse", "HEAD"]);
    let server = serve(&root);
    let url = format!("http://{}/a.git", server.host);
    let text = format!(
        "FROM busybox\nADD --keep-git-dir {url} /o\nADD --keep-git-dir {url}#v1 /t\n\
         ADD {url}?keep-git-dir=1&ref={commit} /c\nADD --keep-git-dir {url}#:sub /s\nADD {url} /p\n"
    );
    let baked = bench.baked("git:kept", &text);
    let mut first = BTreeMap::new();
    bench.look(&baked, |view| {
        for (name, reference) in [
            ("o", "refs/heads/main"),
            ("t", "refs/tags/v1^{commit}"),
            ("c", "HEAD"),
        ] {
            let work = view.join(name);
            for head in ["HEAD", reference] {
                assert_eq!(asked(&work, &["rev-parse", head]), commit, "{name}");
            }
            assert_eq!(asked(&work, &["status", "--porcelain"]), "", "{name}");
            assert_eq!(asked(&work, &["log", "-1", "--format=%s %an"]), "second a");
            assert_eq!(asked(&work, &["rev-list", "--count", "HEAD"]), "1");
            asked(&work, &["fsck", "--full", "--strict"]);
            let origin = asked(&work, &["remote", "get-url", "origin"]);
            assert_eq!(origin, format!("http://{}/a.git", server.host));
        }
        assert_eq!(
            asked(&view.join("t"), &["tag", "-l", "-n1"]),
            "v1              v1"
        );
        assert!(!view.join("s/.git").exists() && !view.join("p/.git").exists());
        assert!(view.join("s/run").exists());
        first = listing(&view.join("o/.git"));
    });
    // However the server has packed it.
    git(&work, &["gc", "-q", "--aggressive"]);
    let again = format!("FROM busybox\nADD --keep-git-dir {url} /again\n");
    let baked = bench.baked("git:again", &again);
    bench.look(&baked, |view| {
        assert_eq!(listing(&view.join("again/.git")), first);
    });
    let scratch = bench.root.path().join("work");
    fs::create_dir(&scratch).unwrap();
    let private = url.replace("://", "://user:sesame@");
    let context = ContextFolder::check_out(&scratch, &private, true, &Granted::default()).unwrap();
    // Before Git itself writes to it.
    assert_eq!(listing(&context.path().join(".git")), first);
    assert_eq!(asked(context.path(), &["status", "--porcelain"]), "");
    assert_eq!(context.repository().unwrap().commit, commit);
    assert!(!context.repository().unwrap().url.contains("sesame"));
}

fn submodules() {
    let bench = Bench::new();
    let root = bench.root.path().join("repositories");
    let (_, deep) = made(&root, "g/deep.git");
    let (sub, _) = made(&root, "g/sub.git");
    let server = serve(&root);
    let add = |work: &Path, url: &str, path: &str, name: &str| {
        let file = "protocol.file.allow=always";
        let place = root.join("g").join(path.rsplit('/').next().unwrap());
        let place = format!("{}.git", place.display());
        git(
            work,
            &[
                "-c",
                file,
                "submodule",
                "--quiet",
                "add",
                "--name",
                name,
                &place,
                path,
            ],
        );
        git(
            work,
            &[
                "config",
                "-f",
                ".gitmodules",
                &format!("submodule.{name}.url"),
                url,
            ],
        );
        git(work, &["commit", "-qam", "submodule"]);
    };
    add(&sub, "./../deep.git", "in/deep", "deep");
    let (work, _) = made(&root, "a.git");
    let absolute = format!("http://{}/g/sub.git", server.host);
    add(&work, "../g/sub.git", "lib/sub", "a b");
    add(&work, &absolute, "other/sub", "absolute");
    let url = format!("http://{}/a.git", server.host);
    let text = format!(
        "FROM busybox\nADD {url} /o\nADD {url}?submodules=false /n\nADD {url}#:lib/sub/in /f\nADD --keep-git-dir {url} /k\n"
    );
    let baked = bench.baked("git:submodules", &text);
    bench.look(&baked, |view| {
        let read = |path: &str| fs::read_to_string(view.join(path)).unwrap();
        for place in ["o/lib/sub", "o/other/sub", "k/lib/sub"] {
            assert_eq!(read(&format!("{place}/file")), "of g/sub.git");
            assert_eq!(read(&format!("{place}/in/deep/file")), "of g/deep.git");
        }
        assert_eq!(read("f/deep/file"), "of g/deep.git");
        assert!(!view.join("o/lib/sub/.git").exists());
        assert_eq!(fs::read_dir(view.join("n/lib/sub")).unwrap().count(), 0);
        let work = view.join("k");
        assert_eq!(asked(&work, &["status", "--porcelain"]), "");
        let inner = work.join("lib/sub/in/deep");
        assert_eq!(asked(&inner, &["rev-parse", "HEAD"]), deep);
        assert_eq!(asked(&inner, &["status", "--porcelain"]), "");
        let told = asked(&work, &["submodule", "status", "--recursive"]);
        // Neither missing nor another commit: those are marked.
        assert!(
            told.lines().all(|line| !line.starts_with(['-', '+'])),
            "{told}"
        );
        assert_eq!(told.lines().count(), 4, "{told}");
    });
    // What leads nowhere, or to what kiln does not speak.
    for (url_of_it, said) in [
        ("../../../../x.git", "leads nowhere"),
        ("git@example.org:x.git", "nobody signs in"),
        ("ssh://-oProxyCommand=x/x.git", "no name of a server"),
        ("/etc/x.git", "reached by nothing that kiln speaks"),
        ("../none.git", "its server answers 404"),
    ] {
        let name = "submodule.a b.url";
        git(&work, &["config", "-f", ".gitmodules", name, url_of_it]);
        git(&work, &["commit", "-qam", "wrong"]);
        let text = bench.refused(&format!("FROM busybox\nADD {url} /\n"));
        assert!(
            text.contains("its submodule `lib/sub` can't be had") && text.contains(said),
            "{url_of_it}: {text}"
        );
    }
    git(&work, &["rm", "-q", "--cached", ".gitmodules"]);
    git(&work, &["commit", "-qm", "none"]);
    let text = bench.refused(&format!("FROM busybox\nADD {url} /\n"));
    assert!(text.contains("it has no .gitmodules"), "{text}");
}

/// A server, for as long as this lives.
pub(crate) struct Daemon(pub(crate) Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn plain_tcp() {
    let bench = Bench::new();
    let root = bench.root.path().join("repositories");
    let (work, commit) = made(&root, "a.git");
    git(&work, &["branch", "other"]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let programs = git(&work, &["--exec-path"]);
    let _daemon = Daemon(
        Command::new(Path::new(&programs).join("git-daemon"))
            .args(["--export-all", "--reuseaddr", "--listen=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", root.display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    let url = format!("git://127.0.0.1:{port}/a.git");
    for source in [
        url.clone(),
        format!("{url}#other"),
        format!("{url}#{commit}"),
    ] {
        let tag = format!("tcp:{}", source.len());
        let baked = bench.baked(&tag, &format!("FROM busybox\nADD {source} /o\n"));
        assert_eq!(bench.tree(&baked, "o"), ["file \"of a.git\" 0:0 644"]);
    }
    for (source, said) in [
        (format!("{url}#none"), "no branch and no tag `none`"),
        (url.replace("a.git", "none.git"), "its server says"),
        ("git://127.0.0.1:1/a.git".to_owned(), "refused"),
        ("git://127.0.0.1:x/a.git".to_owned(), "is no port"),
    ] {
        let text = bench.refused(&format!("FROM busybox\nADD {source} /\n"));
        assert!(
            text.contains("Dockerfile:2:5") && text.contains(said),
            "{source}: {text}"
        );
    }
}
