//! The images that the cases stand on, made here: the same bytes for kiln and for the peer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_model::Digest;
use kiln_oci::{Entry, History, ImageConfig, Kind, Output, RunConfig, Store, Tree};

/// Each name that a FROM may have. The last two are what other people's Dockerfiles stand on.
pub(crate) const NAMES: [&str; 6] = ["base", "bare", "started", "onbuild", "busybox", "alpine"];

const APPLETS: &str = "ash awk basename cat chgrp chmod chown cp cut date dd dirname echo env expr false find grep head \
                       hostname id ln ls mkdir mkfifo mknod mktemp mv nproc od printf pwd readlink realpath rm rmdir sed \
                       seq sh sha256sum sleep sort stat su sync tail tar tee test touch tr true truncate uname umask \
                       uniq wc which whoami xargs";

fn file(text: &str, mode: u32) -> Entry {
    Entry::bytes(text.as_bytes(), mode)
}

fn busybox(tree: &mut Tree) {
    let bytes = fs::read("/bin/busybox").expect("the cases stand on busybox-static");
    add(tree, "bin/busybox", Entry::bytes(bytes, 0o755));
    for applet in APPLETS.split_whitespace() {
        add(tree, &format!("bin/{applet}"), Entry::symlink("busybox"));
    }
}

fn add(tree: &mut Tree, path: &str, entry: Entry) {
    tree.insert(path, entry).unwrap();
}

/// Users, folders of several owners, links of every kind, special bits, attributes.
fn base() -> Tree {
    let mut tree = Tree::new();
    busybox(&mut tree);
    for (path, mode, uid, gid) in [
        ("dev", 0o755, 0, 0),
        ("proc", 0o755, 0, 0),
        ("sys", 0o755, 0, 0),
        ("etc", 0o755, 0, 0),
        ("root", 0o700, 0, 0),
        ("tmp", 0o1777, 0, 0),
        ("run", 0o755, 0, 0),
        ("home", 0o755, 0, 0),
        ("home/app", 0o750, 1000, 1001),
        ("opt", 0o755, 0, 0),
        ("opt/tool", 0o755, 0, 0),
        ("opt/shared", 0o2775, 0, 50),
        ("var", 0o755, 0, 0),
        ("var/data", 0o755, 33, 33),
        ("var/data/sub", 0o755, 33, 33),
    ] {
        add(&mut tree, path, Entry::dir(mode).owner(uid, gid));
    }
    add(
        &mut tree,
        "etc/passwd",
        file(
            "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\n\
             app:x:1000:1001:An app:/home/app:/bin/sh\nnohome:x:1500:1500:::/bin/sh\n",
            0o644,
        ),
    );
    add(
        &mut tree,
        "etc/group",
        file(
            "root:x:0:\nwww-data:x:33:\nstaff:x:50:app,www-data\nappgroup:x:1001:\nextra:x:2000:app\n",
            0o644,
        ),
    );
    add(&mut tree, "opt/tool/x", file("x\n", 0o755));
    add(
        &mut tree,
        "opt/tool/y",
        file("y\n", 0o640).owner(1000, 1001),
    );
    add(&mut tree, "opt/hard1", file("hard\n", 0o644));
    let target = PathBuf::from("opt/hard1");
    add(
        &mut tree,
        "opt/hard2",
        Entry::new(Kind::Hardlink { target }, 0o644),
    );
    add(&mut tree, "opt/setuid", file("s\n", 0o4755));
    let mut marked = file("marked\n", 0o644);
    marked
        .xattrs
        .insert(b"user.kind".to_vec(), b"marked".to_vec());
    add(&mut tree, "opt/marked", marked);
    add(&mut tree, "opt/link-file", Entry::symlink("tool/x"));
    add(&mut tree, "opt/link-dir", Entry::symlink("tool"));
    add(&mut tree, "opt/link-abs", Entry::symlink("/var/data"));
    add(
        &mut tree,
        "opt/link-out",
        Entry::symlink("../../../../../var"),
    );
    add(&mut tree, "opt/dangling", Entry::symlink("nowhere/at/all"));
    for (path, text) in [
        ("var/data/a", "a\n"),
        ("var/data/b", "b\n"),
        ("var/data/sub/c", "c\n"),
    ] {
        add(&mut tree, path, file(text, 0o644).owner(33, 33));
    }
    tree.set_mtime(1_600_000_000);
    tree
}

/// A shell and nothing else, not even the folders that a container's file systems are mounted on.
fn bare() -> Tree {
    let mut tree = Tree::new();
    busybox(&mut tree);
    tree.set_mtime(1_600_000_000);
    tree
}

/// `base` with all that busybox can.
fn whole() -> Tree {
    let mut tree = base();
    let listed = Command::new("/bin/busybox").arg("--list").output();
    let listed = listed.expect("the cases stand on busybox-static").stdout;
    let listed = String::from_utf8_lossy(&listed);
    for applet in listed.lines().filter(|applet| *applet != "busybox") {
        add(
            &mut tree,
            &format!("bin/{applet}"),
            Entry::symlink("busybox"),
        );
    }
    tree
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn config(name: &str) -> RunConfig {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut config = RunConfig {
        env: words(&[path]),
        cmd: words(&["sh"]),
        ..RunConfig::default()
    };
    match name {
        "started" => {
            config.env.push("KIND=of base".to_owned());
            config.entrypoint = words(&["/bin/echo", "from base"]);
            config.user = "app".to_owned();
            config.working_dir = "/home/app".to_owned();
            config.labels = BTreeMap::from([
                ("kept".to_owned(), "yes".to_owned()),
                ("changed".to_owned(), "no".to_owned()),
            ]);
            config.exposed_ports.insert("80/tcp".to_owned(), empty());
            config.volumes.insert("/var/data".to_owned(), empty());
            config.stop_signal = Some("SIGINT".to_owned());
        }
        "onbuild" => {
            config.on_build = words(&[
                "ARG WHO=nobody",
                "COPY app.txt /srv/",
                "RUN echo \"$WHO\" > /srv/who && cat /srv/app.txt",
            ]);
        }
        _ => {}
    }
    config
}

fn empty() -> kiln_oci::image::Empty {
    kiln_oci::image::Empty {}
}

/// The bases in a store, and as layouts.
pub(crate) struct Bases {
    /// One folder for each, `NAME`.
    pub(crate) layouts: PathBuf,
    pub(crate) digests: BTreeMap<String, Digest>,
}

impl Bases {
    pub(crate) fn make(root: &Path, layouts: &Path) -> Self {
        let store = Store::open(root).unwrap();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut digests = BTreeMap::new();
        for name in NAMES {
            let tree = match name {
                "bare" => bare(),
                "busybox" | "alpine" => whole(),
                _ => base(),
            };
            let layer = store.add_layer(&tree).unwrap();
            let image = ImageConfig {
                architecture: architecture.to_owned(),
                os: "linux".to_owned(),
                created: Some("2020-09-13T12:26:40Z".to_owned()),
                config: config(name),
                // Without it the peer makes an entry of its own.
                history: vec![History {
                    created_by: Some("BASE".to_owned()),
                    ..History::default()
                }],
                ..ImageConfig::default()
            };
            let digest = store.put_image(&image, &[layer]).unwrap();
            let tag = format!("{name}:latest");
            store.tag(&tag, &digest).unwrap();
            let output = Output::OciLayout(layouts.join(name));
            store.export(&digest, &tag, &output).unwrap();
            digests.insert(name.to_owned(), digest);
        }
        Self {
            layouts: layouts.to_owned(),
            digests,
        }
    }
}
