//! A data root of a test's own, with one image of busybox.

use std::path::PathBuf;
use std::sync::OnceLock;

use kiln_engine::{Engine, EngineOptions, InstanceSpec, LayerFile};
use kiln_model::InstanceId;
use kiln_oci::{Content, Entry, Kind, Store, Tree};
use tempfile::TempDir;

pub(crate) struct World {
    pub(crate) root: TempDir,
    pub(crate) engine: Engine,
    pub(crate) layer: LayerFile,
}

const BUSYBOX: &str = "/bin/busybox";

pub(crate) fn tree() -> Tree {
    let busybox = std::fs::metadata(BUSYBOX)
        .expect("Debian's busybox-static is needed: scripts/install-test-deps installs it");
    let mut tree = Tree::new();
    let content = Content::Path(PathBuf::from(BUSYBOX));
    let kind = Kind::File {
        content,
        size: busybox.len(),
    };
    for folder in ["bin", "etc", "data", "var", "var/cache", "var/cache/app"] {
        tree.insert(folder, Entry::dir(0o755)).unwrap();
    }
    tree.insert("bin/busybox", Entry::new(kind, 0o755)).unwrap();
    let applets = [
        "sh",
        "sleep",
        "cat",
        "id",
        "mount",
        "echo",
        "ls",
        "mkdir",
        "kill",
        "dd",
        "touch",
        "ip",
        "chown",
        "sethostname",
        "hostname",
        "nc",
        "tail",
    ];
    for applet in applets {
        tree.insert(format!("bin/{applet}"), Entry::symlink("busybox"))
            .unwrap();
    }
    let passwd = "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/data:/bin/sh\n";
    tree.insert("etc/passwd", Entry::bytes(passwd.as_bytes(), 0o644))
        .unwrap();
    tree.insert(
        "etc/group",
        Entry::bytes(&b"root:x:0:\napp:x:1000:\n"[..], 0o644),
    )
    .unwrap();
    tree.insert(
        "var/cache/app/seed",
        Entry::bytes(&b"seeded"[..], 0o640).owner(1000, 1000),
    )
    .unwrap();
    tree.insert("to-proc", Entry::symlink("proc/fs")).unwrap();
    tree.insert("bin/notexec", Entry::bytes(&b"text"[..], 0o644))
        .unwrap();
    tree
}

impl World {
    pub(crate) fn new() -> Self {
        // One layer's file serves every test: its mounts are below each root.
        static STORE: OnceLock<(TempDir, PathBuf, kiln_model::Digest)> = OnceLock::new();
        let (_, path, digest) = STORE.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let layer = store.add_layer(&tree()).unwrap();
            let (_, path) = store.erofs_files(&layer).unwrap().remove(0);
            (folder, path, layer.erofs.unwrap())
        });
        let root = tempfile::tempdir().unwrap();
        let engine = Engine::open(EngineOptions {
            root: root.path().to_owned(),
        })
        .unwrap();
        let layer = LayerFile {
            path: path.clone(),
            digest: *digest,
        };
        Self {
            root,
            engine,
            layer,
        }
    }

    pub(crate) fn spec(&self, id: &str, script: &str) -> InstanceSpec {
        InstanceSpec {
            id: InstanceId::new(id),
            generation: 1,
            layers: vec![self.layer.clone()],
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("GREETING".to_owned(), "hello".to_owned())],
            cwd: String::new(),
            user: "app".to_owned(),
            stop_signal: String::new(),
            tmpfs: Vec::new(),
            memory: Some(64 << 20),
            cpu_millis: None,
            pids: Some(64),
            hostname: id.to_owned(),
            network: true,
            egress: true,
            search: None,
            log_max_bytes: 1 << 20,
        }
    }

    /// Runs a script to its end; gives how it ended and what it said.
    pub(crate) fn run(&self, id: &str, script: &str) -> (kiln_model::ExitRecord, Vec<String>) {
        let spec = self.spec(id, script);
        self.engine.start(&spec).unwrap();
        let record = self
            .engine
            .wait(&spec.id, Some(std::time::Duration::from_secs(20)))
            .unwrap()
            .expect("it ends");
        let lines = record.last_lines.clone();
        self.engine.remove(&spec.id).unwrap();
        (record, lines)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let left = self.engine.sweep(&Default::default()).unwrap();
        assert!(left.is_empty(), "{left:?}");
        self.engine.close();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = self.root.path().to_str().unwrap();
        assert!(!mounts.contains(root), "a mount is left below {root}");
    }
}
