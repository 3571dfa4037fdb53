//! Repositories by ssh: OpenSSH's own server and Git's own programs on the other side.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_bake::{ContextFolder, SshAgent, SshKeys};

use crate::dockerfile::Bench;
use crate::repositories::{Daemon, git, made};
use crate::world::told;

pub(crate) const TESTS: &[(&str, fn())] = &[("repositories_are_reached_by_ssh", by_ssh)];

const SERVER: &str = "/usr/sbin/sshd";

fn key(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    path
}

fn public(key: &Path) -> String {
    fs::read_to_string(key.with_extension("pub")).unwrap()
}

struct Server {
    _daemon: Daemon,
    port: u16,
}

/// A server for `user`'s key, with an address of its own. `settings` are lines of its configuration.
fn serve(folder: &Path, name: &str, user: &Path, settings: &str) -> Server {
    let host = key(folder, &format!("host-{name}"));
    let keys = folder.join("authorized");
    fs::write(&keys, public(user)).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let config = folder.join(format!("sshd-{name}"));
    let text = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
         PasswordAuthentication no\nPermitRootLogin prohibit-password\n{settings}\n",
        host.display(),
        keys.display()
    );
    fs::write(&config, text).unwrap();
    // Of Debian's server: its processes without rights are shut in there.
    fs::create_dir_all("/run/sshd").unwrap();
    let daemon = Daemon(
        Command::new(SERVER)
            .args(["-D", "-e", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(File::create(folder.join(format!("log-{name}"))).unwrap())
            .spawn()
            .expect("the test of ssh needs openssh-server"),
    );
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    Server {
        _daemon: daemon,
        port,
    }
}

/// An agent of the user's that has the key, and its socket.
fn agent(folder: &Path, key: &Path) -> (Daemon, PathBuf) {
    let socket = folder.join("agent");
    let agent = Daemon(
        Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let began = Instant::now();
    while !socket.exists() {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    let added = Command::new("ssh-add")
        .arg("-q")
        .arg(key)
        .env("SSH_AUTH_SOCK", &socket)
        .status();
    assert!(added.unwrap().success());
    (agent, socket)
}

fn by_ssh() {
    let mut bench = Bench::new();
    let root = bench.root.path().join("repositories");
    let (_, _) = made(&root, "sub.git");
    let (work, commit) = made(&root, "it's a.git");
    let add = [
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
    ];
    git(&work, &[&add[..], &["../sub.git", "sub"]].concat());
    git(&work, &["commit", "-qm", "submodule"]);
    git(&work, &["branch", "other"]);
    let folder = bench.root.path().join("ssh");
    fs::create_dir(&folder).unwrap();
    let (own, stranger) = (key(&folder, "own"), key(&folder, "stranger"));
    let env = "AcceptEnv GIT_PROTOCOL";
    let server = serve(&folder, "new", &own, env);
    let old = serve(&folder, "old", &own, "");
    let unknown = serve(&folder, "unknown", &own, env);
    let known = folder.join("known_hosts");
    let hosts: String = [("new", server.port), ("old", old.port)]
        .iter()
        .map(|(name, port)| {
            let host = public(&folder.join(format!("host-{name}")));
            format!("[127.0.0.1]:{port} {host}")
        })
        .collect();
    fs::write(&known, hosts).unwrap();
    // As a user has it, with a name of theirs for a server; what would sign in besides the agent is not used.
    let config = folder.join("config");
    let text = format!(
        "Host forge\n  HostName 127.0.0.1\n  Port {}\nHost *\n  UserKnownHostsFile {}\n  GlobalKnownHostsFile none\n  IdentityAgent none\n",
        server.port,
        known.display()
    );
    fs::write(&config, text).unwrap();
    bench.granted.ssh_config = Some(config);

    let path = root.join("it's a.git").display().to_string();
    let encoded = path.replace(' ', "%20");
    let url = format!("ssh://root@127.0.0.1:{}{encoded}", server.port);
    let add = |source: &str| {
        let source = source.replace('\'', r"\\'");
        format!("FROM busybox\nADD [\"{source}\", \"/o\"]\n")
    };
    let said = bench.refused(&add(&url));
    assert!(
        said.contains("Dockerfile:2:") && said.contains("--ssh default"),
        "{said}"
    );
    let keys = |path: &Path| {
        let mut keys = SshKeys::default();
        keys.add(path).unwrap();
        SshAgent::Keys(Arc::new(keys))
    };
    let give = |bench: &mut Bench, agent| bench.granted.ssh.insert("default".into(), agent);
    give(&mut bench, keys(&own));
    let by_env = format!("ssh://root@127.0.0.1:{}{encoded}", old.port);
    let whole = [
        "file \"of it's a.git\" 0:0 644",
        "sub/ 0:0 755",
        "sub/file \"of sub.git\" 0:0 644",
    ];
    for (number, source) in [
        url.clone(),
        format!("{url}#other"),
        format!("root@forge:{path}"),
        by_env.clone(),
    ]
    .iter()
    .enumerate()
    {
        let baked = bench.baked(&format!("by-ssh:{number}"), &add(source));
        let tree = bench.tree(&baked, "o");
        for line in whole {
            assert!(tree.contains(&line.to_owned()), "{source}: {tree:?}");
        }
        // Which way it came is nothing of the layer.
        let is_cached = baked.steps.iter().all(|step| step.cached);
        assert_eq!(is_cached, number > 0, "{source}");
    }
    let first = bench.baked("by-ssh:first", &add(&format!("{url}#{commit}")));
    assert_eq!(bench.tree(&first, "o"), ["file \"of it's a.git\" 0:0 644"]);

    // By an agent of the user's, and as a context.
    let (_agent, socket) = agent(&folder, &own);
    give(&mut bench, SshAgent::Socket(socket));
    let scratch = bench.root.path().join("work");
    fs::create_dir(&scratch).unwrap();
    let context = ContextFolder::check_out(&scratch, &url, false, &bench.granted)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    assert!(context.path().join("sub/file").exists());
    assert_eq!(
        context.repository().unwrap().url,
        url.replace("root@", ""),
        "without a user"
    );

    let port = server.port;
    for (source, said) in [
        (format!("{url}#none"), "no branch and no tag `none`"),
        (
            url.replace("a.git", "none.git"),
            "does not appear to be a git repository",
        ),
        (
            format!("ssh://root@127.0.0.1:{}{encoded}", unknown.port),
            &*format!("ssh-keyscan -p {} 127.0.0.1 >>", unknown.port),
        ),
        (
            "ssh://root@127.0.0.1:1/a.git".to_owned(),
            "Connection refused",
        ),
        (
            format!("ssh://-oProxyCommand=x:{port}/a.git"),
            "no name of a server",
        ),
    ] {
        let text = bench.refused(&add(&source));
        assert!(
            text.contains("Dockerfile:2:") && text.contains(said),
            "{source}: {text}"
        );
    }
    give(&mut bench, keys(&stranger));
    let text = bench.refused(&add(&url));
    assert!(
        text.contains("ssh ended with 255") && text.contains("none of the keys of --ssh default"),
        "{text}"
    );
}
