//! RUN of Dockerfiles: its mounts, its network, its rights.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;

use kiln_model::Digest;

use crate::dockerfile::Bench;
use crate::world::told;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("run_binds_are_of_the_context_a_stage_or_an_image", binds),
    ("run_binds_are_of_just_the_name_that_they_have", literal),
    ("run_caches_outlive_their_step_and_are_in_no_layer", caches),
    (
        "run_secrets_and_agents_are_given_and_leave_nothing",
        secrets,
    ),
    ("run_mounts_leave_no_mount_point", leftovers),
    ("run_mounts_that_are_wrong_are_told_at_their_place", wrong),
    ("run_stages_are_carried_out_at_the_same_time", parallel),
    ("run_leaks_end_the_bake_unless_they_are_excused", leaks),
    ("run_images_say_where_they_came_from", origin),
    ("run_that_fails_leaves_a_shell_where_it_was", shell),
    ("run_layers_have_nothing_that_is_as_it_was", unchanged),
    (
        "run_without_a_network_is_told_where_it_is_missed",
        unreachable,
    ),
    ("run_reaches_out_and_nothing_of_the_host", network),
    ("run_has_more_rights_where_the_caller_allows_it", rights),
];

fn binds() {
    let bench = Bench::new();
    bench.write("src/a", "a");
    bench.write("src/no", "ignored");
    bench.write(".dockerignore", "src/no\n");
    let file = bench.context.join("src/a");
    chown(&file, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let text = "FROM busybox AS base\nRUN mkdir /d; echo s > /d/s\nFROM busybox\nARG T=/m\nWORKDIR /w\n\
        RUN --mount=target=$T,source=src ls -ln /m | tail -n +2 | while read m l u g s r; do echo $m $u:$g ${r##* }; done > /listed; \
            (echo x > /m/x) 2>/dev/null || echo sealed >> /listed\n\
        RUN --mount=type=bind,source=src/a,dst=one cat /w/one > /one\n\
        RUN --mount=from=base,source=/d,target=/m,rw echo x > /m/x && cat /m/s /m/x > /both\n\
        RUN --mount=from=base,source=/d,target=/m ls /m > /again\n\
        RUN --mount=from=base:1,target=/m test -x /m/bin/busybox\n\
        RUN --mount=target=.,rw echo y > src/y && ls src > /mine; ls /m /w > /none 2>&1; true\n";
    let baked = bench
        .bake("binds:1", text)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    let file = |name: &str| {
        bench.look(&baked, |view| {
            fs::read_to_string(view.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
        })
    };
    assert_eq!(file("listed"), "-rw-r----- 0:0 a\nsealed\n");
    assert_eq!(file("one"), "a");
    assert_eq!(file("both"), "s\nx\n");
    assert_eq!(file("again"), "s\n", "what one step wrote is lost");
    assert_eq!(file("mine"), "a\ny\n");
    assert!(!bench.context.join("src/y").exists());
    bench.look(&baked, |view| {
        assert!(!view.join("m").exists() && !view.join("w/one").exists());
    });
    // What is mounted is an input, and what is ignored is none.
    let hits = |tag: &str| {
        let baked = bench.bake(tag, text).unwrap();
        let hits = baked.steps.iter().map(|step| step.cached);
        hits.collect::<Vec<_>>()
    };
    bench.write("src/no", "changed");
    assert!(hits("binds:2").iter().all(|hit| *hit));
    bench.write("src/a", "b");
    let now = hits("binds:3");
    assert!(now[0] && now[1] && !now[2], "{now:?}");
}

/// A pattern would put several folders into one, and the files of the one through the links of the other.
fn literal() {
    let bench = Bench::new();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(bench.context.join("d1")).unwrap();
    std::os::unix::fs::symlink(outside.path(), bench.context.join("d1/x")).unwrap();
    bench.write("d2/x/evil", "e");
    let error = bench
        .bake(
            "literal:1",
            "FROM busybox\nRUN --mount=source=d*,target=/m true\n",
        )
        .err()
        .unwrap();
    assert!(told(&error).contains("d*`"), "{}", told(&error));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    bench.write("d*/own", "o");
    let baked = bench.baked(
        "literal:2",
        "FROM busybox\nRUN --mount=source=d*,target=/m cat /m/* > /all\n",
    );
    bench.look(&baked, |view| {
        assert_eq!(fs::read_to_string(view.join("all")).unwrap(), "o");
    });
}

fn caches() {
    let bench = Bench::new();
    let text = |step: &str| {
        format!(
            "FROM busybox AS seed\nRUN mkdir /s; echo seeded > /s/file\nFROM busybox\n\
             RUN --mount=type=cache,target=/c,id=mine echo {step} >> /c/log; cat /c/log > /log\n\
             RUN --mount=type=cache,target=/c,from=seed,source=/s echo {step} >> /c/file; cat /c/file > /seeded\n\
             RUN --mount=type=cache,target=/p,mode=0710,uid=3,gid=4 ls -ldn /p | while read m l u g r; do echo $m $u:$g; done > /owned\n\
             RUN --mount=type=cache,target=/c,id=mine,ro (echo x > /c/log) 2>/dev/null || echo sealed > /sealed\n"
        )
    };
    let read = |tag: &str, step: &str| {
        let baked = bench.baked(tag, &text(step));
        let names = ["log", "seeded", "owned", "sealed"];
        bench.look(&baked, |view| {
            assert!(!view.join("c").exists() && !view.join("p").exists());
            names.map(|name| fs::read_to_string(view.join(name)).unwrap())
        })
    };
    let [log, seeded, owned, sealed] = read("caches:1", "one");
    assert_eq!(
        (
            log.as_str(),
            seeded.as_str(),
            owned.as_str(),
            sealed.as_str()
        ),
        ("one\n", "seeded\none\n", "drwx--x--- 3:4\n", "sealed\n")
    );
    let [log, seeded, ..] = read("caches:2", "two");
    assert_eq!(
        (log.as_str(), seeded.as_str()),
        ("one\ntwo\n", "seeded\none\ntwo\n")
    );
    // Two that lock one cache come one after the other, two that want it for themselves get one each.
    let text = |sharing: &str| {
        let stage = |name: &str| {
            format!(
                "FROM busybox AS {name}\n\
                 RUN --mount=type=cache,target=/c,id={sharing},sharing={sharing} \
                 test ! -e /c/busy && touch /c/busy && sleep 1 && rm /c/busy && echo {name} >> /c/log && cp /c/log /{name}\n"
            )
        };
        let (a, b) = (stage("a"), stage("b"));
        format!("{a}{b}FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n")
    };
    let lines = |sharing: &str| {
        let baked = bench.baked(&format!("caches:{sharing}"), &text(sharing));
        let count = |text: String| text.lines().count();
        bench.look(&baked, |view| {
            ["a", "b"]
                .map(|name| count(fs::read_to_string(view.join(name)).unwrap()))
                .iter()
                .sum::<usize>()
        })
    };
    assert_eq!(lines("locked"), 3, "the second saw what the first wrote");
    assert_eq!(lines("private"), 2);
}

fn secrets() {
    let mut bench = Bench::new();
    const HIDDEN: &str = "correct-horse-battery";
    let text = "FROM busybox\n\
        RUN --mount=type=secret,id=key ls -ln /run/secrets/key | while read m l u g r; do echo $m $u:$g; done > /mode; \
            wc -c < /run/secrets/key > /size\n\
        RUN --mount=type=secret,id=key,env=KEY,target=/k,mode=0444,uid=5 test \"$KEY\" = \"$(cat /k)\" && ls -ln /k | while read m l u g r; do echo $m $u:$g; done > /both\n\
        RUN --mount=type=secret,id=none test ! -e /run/secrets/none\n\
        RUN --mount=type=secret,id=key,env=KEY echo said: $KEY\n";
    bench.granted.secrets.insert("key".into(), HIDDEN.into());
    let baked = bench.baked("secrets:1", text);
    bench.look(&baked, |view| {
        let read = |name: &str| fs::read_to_string(view.join(name)).unwrap();
        assert_eq!(read("mode"), "-r-------- 0:0\n");
        assert_eq!(read("size").trim(), HIDDEN.len().to_string());
        assert_eq!(read("both"), "-r--r--r-- 5:0\n");
        assert!(!view.join("run/secrets").exists() && !view.join("k").exists());
    });
    // Another value is no other input.
    bench.granted.secrets.insert("key".into(), "another".into());
    let again = bench.baked("secrets:2", text);
    assert!(again.steps.iter().all(|step| step.cached));
    assert_eq!(again.digest, baked.digest);
    bench.granted.secrets.insert("key".into(), HIDDEN.into());
    let error = bench
        .refused("FROM busybox\nRUN --mount=type=secret,id=key cat /run/secrets/key && exit 3\n");
    assert!(error.contains("****") && !error.contains(HIDDEN), "{error}");
    let error = bench.refused("FROM busybox\nRUN --mount=type=secret,id=other,required true\n");
    assert!(
        error.contains("Dockerfile:2:13") && error.contains("--secret id=other"),
        "{error}"
    );
    // Nothing on the disk of the store or the bake has it.
    let found = holders(bench.store.dir().parent().unwrap(), HIDDEN);
    assert_eq!(found, Vec::<std::path::PathBuf>::new());

    // What a stage or a cache kept of it is found where it ends.
    for text in [
        "FROM busybox AS b\nRUN --mount=type=secret,id=key cp /run/secrets/key /kept\n\
            FROM busybox\nCOPY --from=b /kept /kept\n",
        "FROM busybox\nRUN --mount=type=secret,id=key --mount=type=cache,target=/c cp /run/secrets/key /c/kept\n\
            RUN --mount=type=cache,target=/c cp /c/kept /kept\n",
    ] {
        let error = bench.refused(text);
        assert!(
            error.contains("/kept") && error.contains("secret"),
            "{error}"
        );
    }

    // What is said through it: see the agent's own test.
    let socket = bench.root.path().join("agent");
    let _listener = UnixListener::bind(&socket).unwrap();
    let agent = kiln_bake::SshAgent::Socket(socket);
    bench.granted.ssh.insert("default".into(), agent);
    let text = "FROM busybox\nRUN mkdir -m 1777 /tmp\nUSER app\n\
        RUN --mount=type=ssh,uid=1000,required test $SSH_AUTH_SOCK = /run/buildkit/ssh_agent.0 && \
            test -S $SSH_AUTH_SOCK && test -w $SSH_AUTH_SOCK && ls -ln $SSH_AUTH_SOCK > /tmp/socket\n\
        RUN --mount=type=ssh,id=other test -z \"$SSH_AUTH_SOCK\"\n";
    let baked = bench.baked("ssh:1", text);
    bench.look(&baked, |view| {
        let socket = fs::read_to_string(view.join("tmp/socket")).unwrap();
        assert!(
            socket.starts_with("srw-------") && socket.contains(" 1000 "),
            "{socket}"
        );
        assert!(!view.join("run/buildkit").exists());
    });
}

pub(crate) fn holders(folder: &std::path::Path, text: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    // Other tests bake on the same store: what has gone meanwhile holds nothing.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(there) = fs::symlink_metadata(&path) else {
            continue;
        };
        if there.is_dir() {
            found.extend(holders(&path, text));
        } else if there.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
            {
                found.push(path);
            }
        }
    }
    found
}

fn leftovers() {
    let bench = Bench::new();
    bench.write("f", "f");
    let text = "FROM busybox AS etc\nRUN chmod 711 /etc\nFROM etc\n\
        RUN --mount=target=/deep/er/f,source=f --mount=type=tmpfs,target=/etc/t/u touch /new && touch /etc/t/u/x\n\
        RUN --mount=type=tmpfs,target=/kept touch /kept/x\nRUN mkdir -p /kept/y\n\
        RUN --mount=type=tmpfs,target=/kept touch /kept/z\n";
    let baked = bench.baked("leftovers:1", text);
    let image = bench.store.image(&baked.digest).unwrap();
    let layers: Vec<Vec<String>> = image
        .layers
        .iter()
        .rev()
        .take(4)
        .map(|layer| {
            let tree = bench.store.layer_tree(layer).unwrap();
            tree.iter()
                .map(|(path, _)| path.display().to_string())
                .filter(|path| !path.is_empty() && !["proc", "sys", "dev"].contains(&path.as_str()))
                .collect()
        })
        .collect();
    assert_eq!(
        layers,
        [
            vec![],
            vec!["kept".to_owned(), "kept/y".to_owned()],
            vec![],
            vec!["new".to_owned()]
        ]
    );
}

fn wrong() {
    let bench = Bench::new();
    for (text, place, expected) in [
        (
            "RUN --mount=type=bnd,target=/a true",
            "2:18",
            "did you mean `bind`?",
        ),
        (
            "ARG T=bnd\nRUN --mount=type=$T,target=/a true",
            "3:18",
            "no mount of the type `bnd`",
        ),
        (
            "RUN --mount=source=none,target=/a true",
            "2:13",
            "there is no",
        ),
        (
            "RUN --mount=from=busybox,source=/none,target=/a true",
            "2:13",
            "no `/none` in `busybox`",
        ),
        ("RUN --mount=from=nobody,target=/a true", "2:18", "nobody"),
        (
            "RUN --mount=type=tmpfs,target=/ true",
            "2:13",
            "on the root",
        ),
        (
            "RUN --mount=type=ssh,required true",
            "2:13",
            "--ssh default",
        ),
        ("RUN --network=host true", "2:15", "--allow network.host"),
        ("RUN --network=bridge true", "2:15", "default, none or host"),
        (
            "RUN --security=insecure true",
            "2:16",
            "--allow security.insecure",
        ),
        ("RUN --device=x true", "2:14", "not supported"),
    ] {
        let error = bench.refused(&format!("FROM busybox\n{text}\n"));
        assert!(
            error.contains(&format!("Dockerfile:{place}")) && error.contains(expected),
            "{text}: {error}"
        );
    }
}

fn parallel() {
    let bench = Bench::new();
    // Each waits for the other's word.
    let stage = |own: &str, other: &str| {
        format!(
            "FROM busybox AS {own}\nRUN --mount=type=cache,target=/c,id=meeting touch /c/{own}; \
             for i in $(seq 600); do test -e /c/{other} && exit 0; sleep 0.1; done; exit 1\n"
        )
    };
    let (a, b) = (stage("a", "b"), stage("b", "a"));
    bench.baked(
        "parallel:1",
        &format!("{a}{b}FROM a\nCOPY --from=b /etc /b\n"),
    );
}

fn network() {
    let bench = Bench::new();
    let host = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = host.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in host.incoming() {
            let _ = stream.and_then(|mut stream| writeln!(stream, "the host"));
        }
    });
    // By which address this machine is known to the world.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = match probe.connect("192.0.2.1:9") {
        Ok(()) => probe.local_addr().unwrap().ip().to_string(),
        Err(_) => "127.0.0.1".to_owned(),
    };
    let text = format!(
        "FROM busybox\nRUN ip route > /route; cat /etc/resolv.conf > /resolver; cat /etc/hosts > /hosts; \
         for at in {own} 127.0.0.1; do timeout 3 nc -w 2 $at {port} < /dev/null >> /host; done; true\n\
         RUN ls /sys/class/net > /quiet\nRUN --network=none ip route > /none\n"
    );
    let baked = bench.baked("network:1", &text);
    assert_eq!(baked.networked.len(), 1, "{:?}", baked.networked);
    bench.look(&baked, |view| {
        let read = |name: &str| fs::read_to_string(view.join(name)).unwrap();
        assert!(read("route").contains("default via"), "{}", read("route"));
        assert!(
            read("resolver").contains("nameserver"),
            "{}",
            read("resolver")
        );
        assert!(read("hosts").contains("localhost"));
        assert_eq!(read("host"), "", "and nothing of the host");
        assert_eq!(
            (read("quiet").as_str(), read("none").as_str()),
            ("eth0\nlo\n", "")
        );
    });
    // A cached step is told as well.
    assert_eq!(bench.baked("network:2", &text).networked, baked.networked);
}

fn leaks() {
    let mut bench = Bench::new();
    let token = format!("ghp_{}", "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0hL3nR6");
    // Deleted by a later step, it is still in its layer.
    let text = format!(
        "FROM busybox\nENV API_PASSWORD=really-hidden\nRUN echo {} | tr _ X | sed s/X/_/ > /t\nRUN rm /t\n",
        token.replace('_', "X")
    );
    let text = text.replace("tr _ X | ", "");
    let error = bench.refused(&text);
    for expected in [
        "github-token in /t, of the step `RUN echo",
        "password in env.API_PASSWORD",
        "--allow-leak \"github-token:/t\"",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    bench.allow_leaks = [
        "github-token:/t",
        "password:env.API_PASSWORD",
        "password:history.5",
    ]
    .map(str::to_owned)
    .to_vec();
    let excused = bench.bake("leaks:1", &text);
    if let Err(error) = &excused {
        panic!("{}", told(error));
    }
    // What is a base's is not this image's to tell.
    bench.allow_leaks = Vec::new();
    let bases = [("below".to_owned(), "leaks:1".to_owned())].into();
    bench
        .bake_on("leaks:2", "FROM below\nRUN echo 1 > /x\n", &bases)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    bench.allow_leaks = vec!["no-rule:/t".to_owned()];
    assert!(bench.refused("FROM busybox\n").contains("no-rule"));
    // What the bake itself was given.
    bench.allow_leaks = Vec::new();
    bench
        .granted
        .secrets
        .insert("key".into(), b"just some words\n".to_vec());
    let keeps = "FROM busybox AS a\nRUN --mount=type=secret,id=key cp /run/secrets/key /kept\n";
    let error = bench.refused(keeps);
    assert!(error.contains("given-secret in /kept"), "{error}");
    // Also when the step is cached; and a stage that is not in the image gives nothing away.
    assert!(bench.refused(keeps).contains("given-secret in /kept"));
    bench.baked(
        "leaks:3",
        &format!("{keeps}FROM busybox\nCOPY --from=a /bin/busybox /b\n"),
    );
}

fn origin() {
    let bench = Bench::new();
    let text = "FROM busybox\nARG A\nARG B_PASSWORD\nRUN --network=none echo $A > /a\n";
    let args = [("A", "open"), ("B_PASSWORD", "not to be told")];
    let baked = bench
        .bake_with("origin:1", text, &args, None)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    let attached = bench.store.referrers(&baked.digest).unwrap();
    let read = |kind: &str| {
        let one = attached
            .iter()
            .find(|one| one.artifact_type == kind)
            .unwrap_or_else(|| panic!("no {kind}"));
        String::from_utf8(bench.store.referrer_document(&one.digest).unwrap()).unwrap()
    };
    let statement = read("application/vnd.in-toto+json");
    for expected in [
        "\"A\":\"open\"",
        "\"B_PASSWORD\":null",
        "RUN --network=none",
        "busybox",
    ] {
        assert!(statement.contains(expected), "{expected}: {statement}");
    }
    assert!(!statement.contains("not to be told"));
    assert!(read("application/spdx+json").contains("SPDX-2.3"));
}

fn shell() {
    let mut bench = Bench::new();
    bench.granted.shell_on_error = true;
    // The shell reads what this process does.
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::stdio::dup2_stdin(&read).unwrap();
    let commands = b"cp /made /c/seen\necho $WHO $(pwd) $(id -u) >> /c/seen\nexit 0\n";
    rustix::io::write(&write, commands).unwrap();
    drop(write);
    let error = bench.refused(
        "FROM busybox\nRUN mkdir -m 777 /w\nWORKDIR /w\nENV WHO=me\n\
         RUN --mount=type=cache,target=/c,id=shell echo made > /made; exit 9\n",
    );
    assert!(
        error.contains("Dockerfile:5:1") && error.contains("exited with code 9"),
        "{error}"
    );
    bench.granted.shell_on_error = false;
    let baked = bench.baked(
        "shell:1",
        "FROM busybox\nRUN --mount=type=cache,target=/c,id=shell cp /c/seen /seen\n",
    );
    bench.look(&baked, |view| {
        let seen = fs::read_to_string(view.join("seen")).unwrap();
        assert_eq!(seen, "made\nme /w 0\n");
    });
}

fn rights() {
    let mut bench = Bench::new();
    bench.granted.network_host = true;
    bench.granted.security_insecure = true;
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in host.incoming() {
            let _ = stream.and_then(|mut stream| writeln!(stream, "the host"));
        }
    });
    let text = format!(
        "FROM busybox\nRUN --network=host nc -w 2 127.0.0.1 {port} < /dev/null > /host\n\
         RUN --security=insecure mkdir /m && mount -t tmpfs none /m && touch /m/x && ls /m > /listed\n\
         RUN mount -t tmpfs none /m 2> /refused || true\n"
    );
    let baked = bench.baked("rights:1", &text);
    bench.look(&baked, |view| {
        let read = |name: &str| fs::read_to_string(view.join(name)).unwrap();
        assert_eq!(
            (read("host").as_str(), read("listed").as_str()),
            ("the host\n", "x\n")
        );
        assert!(read("refused").contains("denied") || read("refused").contains("not permitted"));
    });
    assert_eq!(baked.networked.len(), 1);
}

fn unchanged() {
    let bench = Bench::new();
    bench.write("d/e/f", "file");
    let text = "FROM busybox\nCOPY d /d\nRUN ln -s f /d/e/l && ln /d/e/f /d/e/second\n";
    let layer = |run: &str| {
        let baked = bench.baked(
            &format!("unchanged:{}", Digest::of(run.as_bytes()).hex()),
            &format!("{text}RUN {run}\n"),
        );
        let layers = bench.store.image(&baked.digest).unwrap().layers;
        layers.last().unwrap().diff_id
    };
    let nothing = layer("true");
    for run in [
        "chown -R 0:0 /d && chmod -R u+r /d",
        "cp -a /d/e/f /n && cat /n > /d/e/f && touch -r /n /d/e/f && rm /n && touch -r /d/e/second /d/e/f",
        // A hard link is copied with its file alone.
        "chown 0:0 /d/e/second",
    ] {
        assert_eq!(layer(run), nothing, "{run}");
    }
    for run in [
        "chmod 600 /d/e/f",
        "chown -hR 0:5 /d/e/l",
        "rm -rf /d && mkdir -p /d/e",
        "echo FILE > /n; cat /n > /d/e/f",
    ] {
        assert_ne!(layer(run), nothing, "{run}");
    }
    // What was emptied and filled anew hides the one below all the same.
    let baked = bench.baked(
        "unchanged:1",
        &format!("{text}RUN cp -a /d/e/f /n && rm -rf /d && mkdir -p /d/e && mv /n /d/e/f\n"),
    );
    assert_eq!(
        bench.tree(&baked, "d"),
        ["e/ 0:0 755", "e/f \"file\" 0:0 644"]
    );
}

fn unreachable() {
    let mut bench = Bench::new();
    let refused = |bench: &Bench, run: &str| bench.refused(&format!("FROM busybox\nRUN {run}\n"));
    let help = "--network default gives the steps one";
    bench.granted.no_network = true;
    for run in ["wget -O- http://example.org/", "nc 192.0.2.1 80"] {
        let said = refused(&bench, run);
        assert!(said.contains(help), "{run}: {said}");
    }
    for run in [
        "echo of its own; exit 3",
        "echo network is unreachable; kill -9 $$",
    ] {
        let said = refused(&bench, run);
        assert!(!said.contains("network default"), "{run}: {said}");
    }
    bench.granted.no_network = false;
    let said = refused(&bench, "--network=none wget -O- http://example.org/");
    assert!(!said.contains("network default"), "{said}");
}
