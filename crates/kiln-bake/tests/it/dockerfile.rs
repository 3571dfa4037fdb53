//! Dockerfiles baked on a base of their own: nothing but a static busybox.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kiln_bake::{
    BakeError, BakedDockerfile, Deferred, DockerfileRequest, Granted, Listings, Registries,
    Tagging, bake_dockerfile,
};
use kiln_config::Source;
use kiln_config::dockerfile::{Dockerfile, Ignore};
use kiln_engine::Overlay;
use kiln_oci::Store;
use tempfile::TempDir;

use crate::world::told;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("dockerfile_stages_are_baked_where_they_are_needed", stages),
    ("dockerfile_steps_are_cached_by_their_inputs", cache),
    ("dockerfile_copies_as_the_reference_says", copies),
    ("dockerfile_heredocs_are_files_and_scripts", heredocs),
    (
        "dockerfile_configuration_is_that_of_the_instructions",
        configuration,
    ),
    ("dockerfile_errors_have_their_place", errors),
    ("dockerfile_nothing_of_the_host_is_reached", host),
];

const BASE: &str = r#"FROM scratch
COPY --chmod=755 busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir /etc; printf 'root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n' > /etc/passwd; ln -s bin /sbin2
CMD ["base"]
"#;

pub(crate) struct Bench {
    pub(crate) root: TempDir,
    pub(crate) store: Store,
    pub(crate) context: PathBuf,
    pub(crate) registries: Registries,
    pub(crate) granted: Granted,
    pub(crate) allow_leaks: Vec<String>,
}

fn base() -> &'static TempDir {
    static BASE_STORE: OnceLock<TempDir> = OnceLock::new();
    BASE_STORE.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let bench = Bench::on(root.path());
        fs::copy("/bin/busybox", bench.context.join("busybox"))
            .expect("the tests of Dockerfiles need busybox-static");
        bench
            .bake("base:1", BASE)
            .unwrap_or_else(|error| panic!("{}", told(&error)));
        drop(bench);
        root
    })
}

impl Bench {
    pub(crate) fn on(store: &Path) -> Self {
        let root = tempfile::tempdir().unwrap();
        let context = root.path().join("context");
        fs::create_dir(&context).unwrap();
        Self {
            root,
            store: Store::open(store).unwrap(),
            context,
            registries: Registries::default(),
            granted: Granted::default(),
            allow_leaks: Vec::new(),
        }
    }

    /// With the base in its store.
    pub(crate) fn new() -> Self {
        Self::on(base().path())
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.context.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn bake(&self, tag: &str, text: &str) -> Result<BakedDockerfile, BakeError> {
        self.bake_with(tag, text, &[], None)
    }

    pub(crate) fn bake_with(
        &self,
        tag: &str,
        text: &str,
        args: &[(&str, &str)],
        target: Option<&str>,
    ) -> Result<BakedDockerfile, BakeError> {
        let bases = BTreeMap::from([("busybox".to_owned(), "base:1".to_owned())]);
        self.bake_all(tag, text, args, target, &bases)
    }

    /// Where other names of images mean something.
    pub(crate) fn bake_on(
        &self,
        tag: &str,
        text: &str,
        bases: &BTreeMap<String, String>,
    ) -> Result<BakedDockerfile, BakeError> {
        self.bake_all(tag, text, &[], None, bases)
    }

    fn bake_all(
        &self,
        tag: &str,
        text: &str,
        args: &[(&str, &str)],
        target: Option<&str>,
        bases: &BTreeMap<String, String>,
    ) -> Result<BakedDockerfile, BakeError> {
        let dockerfile = Dockerfile::parse(Source {
            name: "Dockerfile".to_owned(),
            text: text.to_owned(),
        })?;
        let rules = fs::read_to_string(self.context.join(".dockerignore")).unwrap_or_default();
        let build_args = args
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        // On the store's file system, as the command line has it.
        let work = self.store.dir().join("../work");
        fs::create_dir_all(&work).unwrap();
        let request = DockerfileRequest {
            named_images: &BTreeSet::new(),
            dockerfile: &dockerfile,
            context: &self.context,
            ignore: &Ignore::parse(&rules).unwrap(),
            tag: Tagging::As(tag),
            tests: &[],
            build_args: &build_args,
            target,
            bases,
            registries: &self.registries,
            repositories: &BTreeMap::new(),
            granted: &self.granted,
            allow_leaks: &self.allow_leaks,
            contexts: &BTreeMap::new(),
            platform: None,
            no_cache: false,
            checkout: Deferred::none(),
            listings: &Listings::default(),
            move_clock: None,
            work: &work,
        };
        bake_dockerfile(&self.store, &request, &mut |_| {})
    }

    pub(crate) fn baked(&self, tag: &str, text: &str) -> BakedDockerfile {
        self.bake(tag, text)
            .unwrap_or_else(|error| panic!("{}", told(&error)))
    }

    pub(crate) fn refused(&self, text: &str) -> String {
        match self.bake("refused:1", text) {
            Ok(_) => panic!("it is baked: {text}"),
            Err(error) => told(&error),
        }
    }

    /// Looks into an image.
    pub(crate) fn look<T>(&self, baked: &BakedDockerfile, look: impl FnOnce(&Path) -> T) -> T {
        let image = self.store.image(&baked.digest).unwrap();
        let scratch = tempfile::tempdir_in(self.root.path()).unwrap();
        let view =
            Overlay::mount(&image.erofs_paths(&self.store).unwrap(), scratch.path()).unwrap();
        look(view.path())
    }

    /// `name -> text uid:gid mode` of every file below `folder`, folders with `/`.
    pub(crate) fn tree(&self, baked: &BakedDockerfile, folder: &str) -> Vec<String> {
        fn walk(root: &Path, path: &Path, out: &mut Vec<String>) {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            names.sort();
            for path in names {
                let there = fs::symlink_metadata(&path).unwrap();
                let name = path.strip_prefix(root).unwrap().display().to_string();
                let owner = format!(
                    "{}:{} {:o}",
                    there.uid(),
                    there.gid(),
                    there.mode() & 0o7777
                );
                if there.is_dir() {
                    out.push(format!("{name}/ {owner}"));
                    walk(root, &path, out);
                } else if there.is_symlink() {
                    out.push(format!(
                        "{name} -> {}",
                        fs::read_link(&path).unwrap().display()
                    ));
                } else {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    out.push(format!("{name} {:?} {owner}", text.trim_end()));
                }
            }
        }
        self.look(baked, |view| {
            let mut out = Vec::new();
            walk(&view.join(folder), &view.join(folder), &mut out);
            out
        })
    }
}

fn stages() {
    let bench = Bench::new();
    let text = "ARG FROM=busybox\nFROM ${FROM} AS build\nARG WHO=world\nENV HI=\"hello $WHO\"\n\
                RUN echo \"$HI\" $WHO > /out\nFROM busybox AS broken\nRUN exit 3\n\
                FROM scratch AS last\nCOPY --from=build /out /a\nCOPY --from=0 out /b/\n";
    let baked = bench
        .bake_with("stages:1", text, &[("WHO", "you")], None)
        .unwrap();
    assert_eq!(
        bench.tree(&baked, ""),
        [
            "a \"hello you you\" 0:0 644",
            "b/ 0:0 755",
            "b/out \"hello you you\" 0:0 644"
        ]
    );
    let error = bench
        .bake_with("stages:2", text, &[], Some("broken"))
        .err()
        .unwrap();
    let error = told(&error);
    assert!(
        error.contains("Dockerfile:7:1") && error.contains("exited with code 3"),
        "{error}"
    );
    // The others are not waited for.
    let error = bench.refused(
        "FROM busybox AS slow\nRUN sleep 10000\nFROM busybox AS wrong\nRUN exit 7\n\
         FROM slow\nCOPY --from=wrong / /\n",
    );
    assert!(
        error.contains("Dockerfile:4:1") && error.contains("exited with code 7"),
        "{error}"
    );
    // What the base asks for comes first.
    bench.baked(
        "asks:1",
        "FROM busybox\nONBUILD RUN echo 1 > /asked\nONBUILD COPY x /x\n",
    );
    bench.write("x", "2");
    let baked = bench.baked(
        "asked:1",
        "FROM asks:1 AS a\nRUN cat /asked /x > /both\nFROM scratch\nCOPY --from=a /both /\n",
    );
    assert_eq!(bench.tree(&baked, ""), ["both \"1\\n2\" 0:0 644"]);
}

fn cache() {
    let bench = Bench::new();
    bench.write("a", "1");
    bench.write("ignored/b", "1");
    bench.write(".dockerignore", "ignored\n");
    let text = "FROM busybox\nARG X=1\nCOPY . /src\nRUN cat /src/a > /cached-$X\n";
    let hits = |tag: &str, args: &[(&str, &str)]| {
        let baked = bench.bake_with(tag, text, args, None).unwrap();
        let hits: Vec<_> = baked.steps.iter().map(|step| step.cached).collect();
        (hits, baked.digest)
    };
    let (first, digest) = hits("cache:1", &[]);
    assert_eq!(first, [false, false]);
    assert_eq!(hits("cache:1", &[]), (vec![true, true], digest));
    bench.write("ignored/b", "2");
    assert_eq!(hits("cache:1", &[]), (vec![true, true], digest));
    assert_eq!(hits("cache:2", &[("X", "2")]).0, [true, false]);
    bench.write("a", "2");
    let (changed, other) = hits("cache:3", &[]);
    assert_eq!(changed, [false, false]);
    assert_ne!(other, digest);
    // A tag is given once.
    let error = bench.bake_with("cache:1", text, &[], None).err().unwrap();
    assert!(told(&error).contains("never moved"), "{}", told(&error));
}

fn copies() {
    let bench = Bench::new();
    for (name, text) in [
        ("d/a.txt", "a"),
        ("d/b.md", "b"),
        ("d/e/c.txt", "c"),
        ("f", "f"),
        ("no/x", "x"),
    ] {
        bench.write(name, text);
    }
    symlink("a.txt", bench.context.join("d/link")).unwrap();
    bench.write(".dockerignore", "no/*\n!no/x\n");
    for (instruction, expected) in [
        (
            "COPY d /o/",
            &[
                "a.txt \"a\" 0:0 644",
                "b.md \"b\" 0:0 644",
                "e/ 0:0 755",
                "e/c.txt \"c\" 0:0 644",
                "link -> a.txt",
            ][..],
        ),
        ("COPY d/link /o/", &["link \"a\" 0:0 644"]),
        (
            "COPY d/*.txt f /o/",
            &["a.txt \"a\" 0:0 644", "f \"f\" 0:0 644"],
        ),
        (
            "COPY --chown=app --chmod=600 f /o/g",
            &["g \"f\" 1000:1001 600"],
        ),
        (
            "COPY --chown=7:8 d/e /o/n/",
            &["n/ 7:8 755", "n/c.txt \"c\" 7:8 644"],
        ),
        (
            "COPY --exclude=**/*.txt --exclude=link d /o/",
            &["b.md \"b\" 0:0 644", "e/ 0:0 755"],
        ),
        (
            "COPY --parents d/e/*.txt f /o/",
            &[
                "d/ 0:0 755",
                "d/e/ 0:0 755",
                "d/e/c.txt \"c\" 0:0 644",
                "f \"f\" 0:0 644",
            ],
        ),
        (
            "COPY --parents d/./e/c.txt /o",
            &["e/ 0:0 755", "e/c.txt \"c\" 0:0 644"],
        ),
        (
            "COPY [\"no/x\", \"/o/with space\"]",
            &["with space \"x\" 0:0 644"],
        ),
        ("COPY --link f /o/", &["f \"f\" 0:0 644"]),
        ("ENV T=o\nWORKDIR /o\nCOPY f ./$T", &["o \"f\" 0:0 644"]),
        ("WORKDIR /o\nCOPY nothing* f .", &["f \"f\" 0:0 644"]),
    ] {
        let tag = format!(
            "copy:{}",
            kiln_model::Digest::of(instruction.as_bytes()).short()
        );
        let baked = bench.baked(&tag, &format!("FROM busybox\n{instruction}\n"));
        assert_eq!(bench.tree(&baked, "o"), expected, "{instruction}");
    }
    // Through the image's own link, which stays one.
    let baked = bench.baked("copy:link", "FROM busybox\nCOPY f /sbin2/\n");
    assert!(
        bench
            .tree(&baked, "bin")
            .contains(&"f \"f\" 0:0 644".to_owned())
    );
    // An owner of a stage's file stays, and a folder whose contents are copied gives no mode.
    let text = "FROM busybox AS a\nRUN mkdir -m 700 /o && echo 1 > /o/x && chown 5:6 /o/x\n\
                FROM scratch\nCOPY --from=a --chown=9:9 /o /new/\nCOPY --from=a /o /new/\n";
    let baked = bench.baked("copy:owner", text);
    assert_eq!(
        bench.tree(&baked, ""),
        ["new/ 9:9 755", "new/x \"1\" 5:6 644"]
    );
}

fn heredocs() {
    let bench = Bench::new();
    let text = "FROM busybox AS a\nARG X=1\nCOPY <<one <<'two' /o/\n$X \"\\$X\"\none\n$X\ntwo\n\
                RUN <<EOF\ncd /o\necho in $X > three\nEOF\n\
                RUN <<EOF\n#!/bin/busybox sh\necho script > /o/four\nEOF\n\
                RUN cat > /o/five <<EOF && echo after > /o/six\nfive $X\nEOF\nRUN ls -d /run > /o/run; true\n";
    let baked = bench.baked("heredoc:1", text);
    assert_eq!(
        bench.tree(&baked, "o"),
        [
            "five \"five 1\" 0:0 644",
            "four \"script\" 0:0 644",
            "one \"1 \\\"$X\\\"\" 0:0 644",
            "run \"\" 0:0 644",
            "six \"after\" 0:0 644",
            "three \"in 1\" 0:0 644",
            "two \"$X\" 0:0 644",
        ],
        "and what the script was mounted on is no part of the image"
    );
}

fn configuration() {
    let bench = Bench::new();
    let config = |tag: &str, text: &str| bench.baked(tag, text).config.config;
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    for (tag, text, entrypoint, cmd) in [
        ("1", "FROM busybox", &[][..], &["base"][..]),
        ("2", "FROM busybox\nENTRYPOINT [\"e\"]", &["e"], &[]),
        (
            "3",
            "FROM busybox\nCMD [\"c\"]\nENTRYPOINT [\"e\"]",
            &["e"],
            &["c"],
        ),
        (
            "4",
            "FROM busybox\nENTRYPOINT e $X",
            &["/bin/sh", "-c", "e $X"],
            &[],
        ),
        (
            "5",
            "FROM busybox\nSHELL [\"a\", \"b\"]\nCMD x  y",
            &[],
            &["a", "b", "x  y"],
        ),
        (
            "6",
            "FROM busybox AS a\nCMD [\"c\"]\nFROM a\nENTRYPOINT [\"e\"]",
            &["e"],
            &[],
        ),
    ] {
        let found = config(&format!("config:{tag}"), text);
        assert_eq!(
            (found.entrypoint, found.cmd),
            (words(entrypoint), words(cmd)),
            "{text}"
        );
    }
    let found = config(
        "config:all",
        "FROM busybox\nENV A=1 B=$A\nENV B=${A:-2}x\nLABEL a=b \"c d\"=\"$A\"\nEXPOSE 80 81/udp\nVOLUME [\"/v\"]\n\
         USER app\nWORKDIR /w\nWORKDIR d\nSTOPSIGNAL 9\nHEALTHCHECK --retries=2 CMD true\nONBUILD USER root\n",
    );
    assert_eq!(found.env[1..], ["A=1", "B=1x"]);
    assert_eq!(found.labels["c d"], "1");
    let ports: Vec<_> = found.exposed_ports.keys().collect();
    assert_eq!(ports, ["80/tcp", "81/udp"]);
    assert!(found.volumes.contains_key("/v"));
    assert_eq!(
        (found.user.as_str(), found.working_dir.as_str()),
        ("app", "/w/d")
    );
    assert_eq!(found.stop_signal.as_deref(), Some("9"));
    let check = found.healthcheck.unwrap();
    assert_eq!(
        (check.test, check.retries),
        (words(&["CMD-SHELL", "true"]), 2)
    );
    assert_eq!(found.on_build, ["USER root"]);
    // The folder is its user's.
    let baked = bench.baked(
        "config:w",
        "FROM busybox\nUSER app\nWORKDIR /w/d\nRUN echo $HOME $(pwd) > x\n",
    );
    assert_eq!(
        bench.tree(&baked, "w"),
        ["d/ 1000:1001 755", "d/x \"/ /w/d\" 1000:1001 644"]
    );
}

fn errors() {
    let bench = Bench::new();
    let dated = |date: &str| {
        let args = [("SOURCE_DATE_EPOCH", date)];
        bench.bake_with("dated:1", "FROM scratch\nCOPY a /\n", &args, None)
    };
    bench.write("hidden", "");
    bench.write("a", "");
    bench.write("b", "");
    bench.write(".dockerignore", "hidden\n");
    let created = dated("1000000000").unwrap().config.created;
    assert_eq!(created.as_deref(), Some("2001-09-09T01:46:40.000Z"));
    let error = dated("yesterday").err().unwrap().to_string();
    assert!(
        error.contains("`yesterday`, and no number of seconds"),
        "{error}"
    );
    for (text, place, said) in [
        ("FROM none:1", "1:6", "--base none:1=REF"),
        ("FROM ${X:-}", "1:6", "is empty"),
        ("FROM --platform=linux/s390x busybox", "1:17", "platform"),
        (
            "FROM busybox\nCOPY missing /",
            "2:6",
            "there is no `missing`",
        ),
        ("FROM busybox\nCOPY hidden /", "2:6", ".dockerignore"),
        (
            "FROM busybox AS x\nCOPY --from=later a /\nFROM x AS later",
            "2:13",
            "not before",
        ),
        (
            "FROM busybox\nCOPY --from=none a /",
            "2:13",
            "no image `none`",
        ),
        ("FROM busybox\nCOPY --chmod=9 a /", "2:14", "not a mode"),
        (
            "FROM busybox\nCOPY --chown=nobody a /",
            "2:1",
            "no user `nobody`",
        ),
        ("FROM busybox\nCOPY a /etc/passwd/x", "2:1", "no folder"),
        ("FROM busybox\nCOPY a /bin/busybox/", "2:1", "no folder"),
        (
            "FROM busybox\nADD git@example.org:x.git /",
            "2:5",
            "Git repository",
        ),
        ("FROM busybox\nRUN --network=host true", "2:15", "host"),
        ("FROM busybox\nRUN echo why >&2; false", "2:1", "why"),
        (
            "FROM busybox\nENV a=\"${b:?must be there}\"",
            "2:7",
            "must be there",
        ),
        ("FROM busybox\nEXPOSE http", "2:8", "not a port"),
    ] {
        let error = bench.refused(text);
        assert!(
            error.contains(&format!("Dockerfile:{place}\n")),
            "{text}: {error}"
        );
        assert!(
            error.contains(said) && error.contains('^'),
            "{text}: {error}"
        );
    }
}

fn host() {
    let bench = Bench::new();
    symlink("/usr", bench.context.join("link")).unwrap();
    fs::write(bench.root.path().join("outside"), "secret").unwrap();
    for path in ["../outside", "/../outside", "link/bin", "link"] {
        let error = bench.refused(&format!("FROM busybox\nCOPY {path} /x\n"));
        assert!(error.contains("there is no"), "{path}: {error}");
    }
    // An image whose links lead out of it, as a destination, a source and a mount point.
    let marker = bench.root.path().join("marker");
    fs::create_dir(&marker).unwrap();
    bench.write("a", "a");
    let text = format!(
        "FROM busybox AS a\nRUN ln -s {marker} /out && rm -rf /run && ln -s {marker} /run\nCOPY a /out/\n\
         RUN <<EOF\n#!/bin/busybox sh\ntrue\nEOF\nFROM scratch\nCOPY --from=a /out/a /got\n",
        marker = marker.display()
    );
    let baked = bench.baked("host:1", &text);
    assert_eq!(bench.tree(&baked, ""), ["got \"a\" 0:0 644"]);
    assert_eq!(
        fs::read_dir(&marker).unwrap().count(),
        0,
        "the host's folder is untouched"
    );
}
