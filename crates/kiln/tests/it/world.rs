//! A definition in a Git repository and a data root of a test's own. The image is baked once for all tests.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A web server of static files: `app/index.html` is its answer, `app/ready` its probe's.
pub(crate) const DEFINITION: &str = r#"
project = "shop"
variable "port" { type = number }
image "web" {
  version = "1.0.0"
  debian {
    suite    = "bookworm"
    packages = ["busybox-static"]
  }
  user "app" { uid = 1000 }
  copy {
    from = "app/"
    to   = "/srv"
  }
  run_as = "app"
  cmd    = ["busybox", "httpd", "-f", "-vv", "-p", "3000", "-h", "/srv"]
}
service "web" {
  image    = image.web
  replicas = 2
  port     = 3000
  listen   = "127.0.0.1:${var.port}"
  probe "ready" {
    http   = "/ready"
    period = "100ms"
  }
}
"#;

pub(crate) struct World {
    folder: PathBuf,
    pub(crate) port: u16,
}

fn folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("kiln-e2e-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// The folder with the first bake's store and its lock.
fn base() -> &'static World {
    static BASE: OnceLock<World> = OnceLock::new();
    BASE.get_or_init(|| {
        sweep();
        let world = World::files();
        world.succeed(&["bake"]);
        world
    })
}

/// Bases of earlier runs: nothing is dropped when a test program ends.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix("kiln-e2e-")
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

impl World {
    /// The files, on a root where nothing is.
    pub(crate) fn files() -> Self {
        let folder = folder();
        for name in ["root", "shop/app", "empty"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        let world = Self { folder, port };
        world.write("kiln.hcl", DEFINITION);
        world.write("app/index.html", "one\n");
        world.write("app/ready", "");
        world
    }

    /// With the image in the store, and everything committed.
    pub(crate) fn new() -> Self {
        let world = Self::files();
        world.take_store(false);
        world.commit();
        world
    }

    /// On a root of so many bytes, which does not hold the store.
    pub(crate) fn small(size: &str) -> Self {
        let world = Self::files();
        world.mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "kiln-test"]);
        world.take_store(true);
        world.commit();
        world
    }

    fn take_store(&self, apart: bool) {
        let base = base();
        let store = if apart {
            self.folder.join("store")
        } else {
            self.root().join("store")
        };
        link(&base.root().join("store"), &store);
        if apart {
            std::os::unix::fs::symlink(&store, self.root().join("store")).unwrap();
        }
        std::fs::copy(
            base.folder.join("shop/kiln.lock"),
            self.folder.join("shop/kiln.lock"),
        )
        .unwrap();
    }

    pub(crate) fn mount(&self, arguments: &[&str]) {
        let status = Command::new("mount")
            .args(arguments)
            .arg(self.root())
            .status()
            .unwrap();
        assert!(status.success(), "mount {arguments:?}");
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Of a file of the definition's folder, whose own folder is there.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let path = self.folder.join("shop").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn commit(&self) -> String {
        let git = |arguments: &[&str]| {
            let output = Command::new("git")
                .args(["-c", "user.name=t", "-c", "user.email=t@localhost"])
                .args(arguments)
                .current_dir(self.folder.join("shop"))
                .output()
                .unwrap();
            assert!(output.status.success(), "git {arguments:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        git(&["init", "--quiet"]);
        git(&["add", "."]);
        git(&["commit", "--quiet", "--allow-empty", "--message=change"]);
        git(&["rev-parse", "HEAD"])
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .args(arguments)
            .current_dir(self.folder.join("shop"))
            // Nothing of the host is executed.
            .env_clear()
            .env("PATH", self.folder.join("empty"))
            .env("KILN_ROOT", self.root())
            .env("KILN_VAR_port", self.port.to_string())
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    pub(crate) fn kiln(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it says on standard output.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.kiln(arguments);
        assert_eq!(
            output.status.code(),
            Some(0),
            "kiln {arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.succeed(arguments)).unwrap()
    }

    /// What it says on standard error.
    pub(crate) fn fail(&self, arguments: &[&str], code: i32) -> String {
        let output = self.kiln(arguments);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {out}{err}"
        );
        err
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The body of `/`, or nothing where nobody answers.
    pub(crate) fn answer(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    /// Processes, mounts, interfaces and control groups of this root, and scratch folders in it.
    pub(crate) fn left(&self) -> BTreeSet<String> {
        let root = self.root();
        let mut left: BTreeSet<String> = processes(&root)
            .into_iter()
            .map(|(_, arguments)| arguments)
            .collect();
        let inside = format!("{}/", root.display());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&inside))
                .map(str::to_owned),
        );
        let hash = &kiln_model::Digest::of(root.as_os_str().as_encoded_bytes()).hex()[..8];
        for name in names("/sys/class/net") {
            if name == format!("kiln{hash}") || name.starts_with(&format!("k{}", &hash[..4])) {
                left.insert(name);
            }
        }
        for controller in ["memory", "pids", "cpu", ""] {
            let group = Path::new("/sys/fs/cgroup")
                .join(controller)
                .join(format!("kiln-{hash}"));
            if group.exists() {
                left.insert(group.display().to_string());
            }
        }
        for folder in ["instances", "work", "store/tmp"] {
            left.extend(names(root.join(folder)));
        }
        left
    }

    pub(crate) fn down(&self) {
        self.succeed(&["down"]);
        assert_eq!(self.left(), BTreeSet::new());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let root = self.root();
        if root.join("run").exists() {
            let _ = self.kiln(&["down"]);
        }
        for (pid, _) in processes(&root) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = unmount(&root);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn unmount(root: &Path) -> std::io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    for point in mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(1))
    {
        if Path::new(point).starts_with(root) {
            Command::new("umount").arg("--lazy").arg(point).status()?;
        }
    }
    Ok(())
}

fn names(folder: impl AsRef<Path>) -> Vec<String> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

pub(crate) fn processes(root: &Path) -> Vec<(Pid, String)> {
    names("/proc")
        .iter()
        .filter_map(|name| Pid::from_raw(name.parse().ok()?))
        .filter_map(|pid| {
            let text = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
            let text = String::from_utf8_lossy(&text).replace('\0', " ");
            text.split(' ')
                .any(|argument| Path::new(argument).starts_with(root))
                .then_some((pid, text))
        })
        .collect()
}

/// The same files under other names: nothing in a store is written twice.
fn link(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            link(&entry.path(), &target);
        } else {
            std::fs::hard_link(entry.path(), target).unwrap();
        }
    }
}

pub(crate) fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what} within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
