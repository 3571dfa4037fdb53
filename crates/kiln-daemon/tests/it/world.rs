//! A data root of a test's own, with an image of this program, and kiln running on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_model::api::{ApiError, Outcome, Progress, Status};
use kiln_model::{
    BlueGreen, Digest, EnvironmentSpec, FromProxy, HttpProbe, ImageOrigin, Plan, Policy, Release,
    Resources, ServiceSpec, Strategy, Timestamp,
};
use kiln_oci::{Content, Entry, ImageConfig, Kind, Store, Tree};
use tempfile::TempDir;

use crate::client::{self, Answer};

pub(crate) struct World {
    folder: TempDir,
    pub(crate) listen: SocketAddr,
    pub(crate) image: Digest,
    supervisor: Option<Child>,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let store = Store::open(&root).unwrap();
        let layer = store.add_layer(&program()).unwrap();
        let image = store.put_image(&ImageConfig::default(), &[layer]).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = free.local_addr().unwrap();
        drop(free);
        let mut world = Self {
            folder,
            listen,
            image,
            supervisor: None,
        };
        world.start();
        world
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub(crate) fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("supervisor.log"))
            .unwrap();
        let empty = self.folder.path().join("empty");
        std::fs::create_dir_all(&empty).unwrap();
        let child = Command::new("/proc/self/exe")
            .arg("supervise")
            .arg("--root")
            .arg(self.root())
            // Neither the controller nor what it starts executes a program of the host.
            .env_clear()
            .env("PATH", empty)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.supervisor = Some(child);
        until("the controller answers and has a proxy", || {
            self.status().is_ok_and(|status| status.problems.is_empty())
                && std::fs::read_dir(self.root().join("run/proxy")).is_ok_and(|d| d.count() > 0)
        });
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root().join("run/kiln.sock")
    }

    pub(crate) fn status(&self) -> Result<Status, String> {
        let answer =
            client::unix(&self.socket(), "GET", "/v1/status", b"").map_err(|e| e.to_string())?;
        serde_json::from_slice(&answer.body).map_err(|e| e.to_string())
    }

    pub(crate) fn service(&self) -> kiln_model::api::ServiceStatus {
        self.status()
            .unwrap()
            .services
            .into_iter()
            .next()
            .expect("the service is there")
    }

    /// The one service, with `mark` in its environment.
    pub(crate) fn spec(&self, mark: &str) -> EnvironmentSpec {
        let env = BTreeMap::from([("MARK".to_owned(), mark.to_owned())]);
        let release = Release {
            image: self.image,
            command: vec!["/app".into(), "app".into()],
            env,
            user: "1000:1000".into(),
            workdir: String::new(),
            stop_signal: String::new(),
            port: Some(3000),
            tmpfs: BTreeMap::new(),
            resources: Resources::default(),
            egress: true,
            unknown: kiln_model::UnknownFields::default(),
        };
        let policy = Policy {
            replicas: 2,
            strategy: Strategy::BlueGreen(BlueGreen {
                keep_warm: Duration::from_secs(600),
            }),
            ready: Some(HttpProbe {
                path: "/ready".into(),
                period: Duration::from_millis(100),
                timeout: Duration::from_secs(1),
                successes: 2,
                failures: 2,
            }),
            live: None,
            progress_deadline: Duration::from_secs(20),
            soak: Duration::from_millis(200),
            drain_deadline: Duration::from_secs(5),
            stop_grace: Duration::from_secs(2),
            listen: Some(self.listen),
            unknown: kiln_model::UnknownFields::default(),
        };
        let origin = ImageOrigin {
            tag: format!("app:{mark}"),
            digest: self.image,
            commit: None,
            dirty: false,
            baked_at: Timestamp(0),
        };
        EnvironmentSpec {
            project: "test".parse().unwrap(),
            environment: "dev".parse().unwrap(),
            services: BTreeMap::from([(
                "app".parse().unwrap(),
                ServiceSpec {
                    release,
                    policy,
                    origin,
                },
            )]),
        }
    }

    pub(crate) fn plan(&self, spec: &EnvironmentSpec) -> Plan {
        let body = serde_json::to_vec(spec).unwrap();
        let answer = client::unix(&self.socket(), "POST", "/v1/plan", &body).unwrap();
        serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", text(&answer)))
    }

    pub(crate) fn apply_plan(&self, plan: &Plan) -> Result<Outcome, ApiError> {
        self.post("/v1/apply", &serde_json::to_vec(plan).unwrap())
    }

    pub(crate) fn apply(&self, spec: &EnvironmentSpec) -> Result<Outcome, ApiError> {
        self.apply_plan(&self.plan(spec))
    }

    pub(crate) fn roll_back(&self, to: Option<u64>) -> Result<Outcome, ApiError> {
        let to = to.map_or("null".to_owned(), |to| to.to_string());
        let body = format!(r#"{{"environment":"dev","service":"app","to":{to}}}"#);
        self.post("/v1/rollback", body.as_bytes())
    }

    fn post(&self, path: &str, body: &[u8]) -> Result<Outcome, ApiError> {
        let answer =
            client::unix(&self.socket(), "POST", path, body).map_err(|error| ApiError {
                code: kiln_model::api::ErrorCode::Unavailable,
                message: error.to_string(),
            })?;
        if answer.status != 200 {
            return Err(serde_json::from_slice(&answer.body).unwrap());
        }
        for line in answer
            .body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            match serde_json::from_slice(line).unwrap() {
                Progress::Outcome { outcome } => return Ok(outcome),
                Progress::Error { error } => return Err(error),
                Progress::Step { .. } => {}
            }
        }
        panic!("no outcome in {}", text(&answer));
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        client::http(self.listen, "GET", path, b"").unwrap()
    }

    /// Requests that failed, as the proxy itself counts them.
    pub(crate) fn failed(&self) -> u64 {
        use std::io::{BufRead, BufReader, Write};
        let socket = self
            .root()
            .join(format!("run/proxy/{}.sock", self.process("proxy").unwrap()));
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.write_all(b"{\"kind\":\"count\"}\n").unwrap();
        for line in BufReader::new(stream).lines() {
            if let FromProxy::Counters { counters, .. } =
                serde_json::from_str(&line.unwrap()).unwrap()
            {
                return counters.iter().map(|counter| counter.failed).sum();
            }
        }
        panic!("the proxy ended");
    }

    /// The processes that name this root, by what they are.
    pub(crate) fn process(&self, role: &str) -> Option<i32> {
        let root = self.root();
        processes(&root)
            .into_iter()
            .find(|(_, arguments)| arguments.get(1).is_some_and(|a| a == role))
            .map(|(pid, _)| pid)
    }

    pub(crate) fn kill(&self, role: &str) {
        kill(
            self.process(role)
                .unwrap_or_else(|| panic!("no {role} runs")),
        );
    }

    /// Everything gone as after a reboot: processes, mounts, control groups, the bridge, `run/`.
    pub(crate) fn reboot(&mut self) {
        let supervisor = self.supervisor.take();
        for _ in 0..3 {
            for (pid, _) in processes(&self.root()) {
                kill(pid);
            }
        }
        if let Some(mut child) = supervisor {
            child.wait().unwrap();
        }
        until("every process is gone", || {
            processes(&self.root()).is_empty()
        });
        self.unmount();
        std::fs::remove_dir_all(self.root().join("run")).unwrap();
        let engine =
            kiln_engine::Engine::open(kiln_engine::EngineOptions { root: self.root() }).unwrap();
        until("no instance is left", || {
            let left = engine.list().unwrap();
            left.iter()
                .all(|(_, state)| !matches!(state, kiln_engine::InstanceState::Running(_)))
        });
        engine.close();
        std::fs::remove_dir_all(self.root().join("run")).unwrap();
    }

    fn unmount(&self) {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(point).starts_with(self.root()) {
                let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }

    /// `kiln down`, and what is left of the root: nothing but files.
    pub(crate) fn down(mut self) -> BTreeSet<String> {
        let _ = client::unix(
            &self.socket(),
            "POST",
            "/v1/down",
            br#"{"environment":null,"project":null}"#,
        );
        let _ = client::unix(&self.socket(), "POST", "/v1/shutdown", b"");
        let supervisor = self.supervisor.take();
        if let Some(mut child) = supervisor {
            let deadline = Instant::now() + Duration::from_secs(20);
            while child.try_wait().unwrap().is_none() {
                assert!(
                    Instant::now() < deadline,
                    "the supervisor ends within twenty seconds"
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let mut left = BTreeSet::new();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(self.root().to_str().unwrap()))
                .map(str::to_owned),
        );
        left.extend(
            processes(&self.root())
                .into_iter()
                .map(|(pid, arguments)| format!("{pid} {arguments:?}")),
        );
        let hash = &Digest::of(self.root().as_os_str().as_encoded_bytes()).hex()[..8];
        left.extend(
            std::fs::read_dir("/sys/class/net")
                .unwrap()
                .filter_map(|entry| {
                    let name = entry.unwrap().file_name().into_string().unwrap();
                    (name == format!("kiln{hash}") || name.starts_with(&format!("k{}", &hash[..4])))
                        .then_some(name)
                }),
        );
        for controller in ["memory", "pids", "cpu", ""] {
            let group = Path::new("/sys/fs/cgroup")
                .join(controller)
                .join(format!("kiln-{hash}"));
            if group.exists() {
                left.insert(group.display().to_string());
            }
        }
        left.extend(
            std::fs::read_dir(self.root().join("instances"))
                .unwrap()
                .map(|e| format!("{:?}", e.unwrap().path())),
        );
        left
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            if std::thread::panicking() {
                for log in [
                    "root/log/controller.log",
                    "root/log/proxy.log",
                    "supervisor.log",
                ] {
                    eprintln!(
                        "--- {log}\n{}",
                        std::fs::read_to_string(self.folder.path().join(log)).unwrap_or_default()
                    );
                }
            }
            for _ in 0..3 {
                for (pid, _) in processes(&self.root()) {
                    kill(pid);
                }
            }
            let _ = child.wait();
            let engine =
                kiln_engine::Engine::open(kiln_engine::EngineOptions { root: self.root() })
                    .unwrap();
            let _ = engine.sweep(&BTreeSet::new());
            engine.close();
        }
        self.unmount();
    }
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Processes with `root` (or a folder below it) among their arguments, ourselves left out.
pub(crate) fn processes(root: &Path) -> Vec<(i32, Vec<String>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(text) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let arguments: Vec<_> = text
            .split(|b| *b == 0)
            .map(|a| String::from_utf8_lossy(a).into_owned())
            .collect();
        if arguments
            .iter()
            .any(|argument| Path::new(argument).starts_with(root))
        {
            found.push((pid, arguments));
        }
    }
    found
}

/// This program, with the libraries that it has mapped.
pub(crate) fn program() -> Tree {
    let mut tree = Tree::new();
    let mut add = |path: &Path, to: &Path| {
        let mut folder = PathBuf::new();
        for part in to.parent().unwrap().components() {
            folder.push(part);
            if tree.get(&folder).is_none() {
                tree.insert(&folder, Entry::dir(0o755)).unwrap();
            }
        }
        let size = std::fs::metadata(path).unwrap().len();
        let content = Content::Path(path.to_owned());
        tree.insert(to, Entry::new(Kind::File { content, size }, 0o755))
            .unwrap();
    };
    add(&std::env::current_exe().unwrap(), Path::new("app"));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libraries: BTreeSet<_> = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|path| path.contains(".so"))
        .collect();
    for library in libraries {
        let path = Path::new(library);
        let name = path.file_name().unwrap();
        // The loader is named by the program itself; the others are looked for here.
        if name.to_str().unwrap().starts_with("ld-linux") {
            add(path, &Path::new("lib64").join(name));
        } else {
            add(path, &Path::new("lib").join(name));
            add(path, &Path::new("lib/x86_64-linux-gnu").join(name));
        }
    }
    tree
}

fn text(answer: &Answer) -> String {
    format!(
        "{} {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    )
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} within twenty seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
}
