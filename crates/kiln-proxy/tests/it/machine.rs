//! A data root with a real supervisor and a real proxy on it, and a controller that is the test itself.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_model::{
    Backend, Draining, FromProxy, Generation, InstanceId, ReleaseCounters, ReleaseNumber, Route,
    RoutingTable, ServiceKey, ToProxy, WeightedSet,
};
use kiln_supervise::handoff::{Client, SupervisorStatus};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until it gives something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat[stat.rfind(')').unwrap_or(0)..].starts_with(") Z"))
}

pub(crate) fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub(crate) struct Machine {
    pub(crate) root: PathBuf,
    supervisor: Child,
}

impl Machine {
    pub(crate) fn start() -> Self {
        Self::start_on(new_root())
    }

    /// With limits of a second or two, for tests of limits: a busy machine is late for others.
    pub(crate) fn start_impatient() -> Self {
        let root = new_root();
        std::fs::write(root.join(crate::IMPATIENT), "").unwrap();
        Self::start_on(root)
    }

    pub(crate) fn start_on(root: PathBuf) -> Self {
        let supervisor = spawn_supervisor(&root);
        let machine = Self { root, supervisor };
        machine.proxy();
        machine
    }

    pub(crate) fn client(&self) -> Client {
        wait_for("the supervisor", || Client::connect(&self.root).ok())
    }

    pub(crate) fn status(&self) -> SupervisorStatus {
        wait_for("the supervisor's status", || {
            Client::connect(&self.root).ok()?.status().ok()
        })
    }

    /// Its pid, once it takes tables.
    pub(crate) fn proxy(&self) -> u32 {
        wait_for("a proxy", || {
            let pid = self.status().proxy?;
            UnixStream::connect(self.root.join(format!("run/proxy/{pid}.sock"))).ok()?;
            Some(pid)
        })
    }

    pub(crate) fn supervisor(&self) -> u32 {
        self.supervisor.id()
    }

    pub(crate) fn kill_supervisor(&mut self) {
        self.supervisor.kill().unwrap();
        self.supervisor.wait().unwrap();
    }

    pub(crate) fn start_supervisor(&mut self) {
        self.supervisor = spawn_supervisor(&self.root);
    }

    /// A listening socket, deposited as a controller does.
    pub(crate) fn listener(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        self.client()
            .deposit(&address.to_string(), &listener)
            .unwrap();
        address
    }

    pub(crate) fn controller(&self) -> Controller {
        Controller::connect(&self.root, self.proxy())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log/proxy.log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- proxy.log\n{}", self.log());
        }
        let ended = Client::connect(&self.root).is_ok_and(|mut client| client.shutdown().is_ok());
        if !ended {
            let _ = self.supervisor.kill();
        }
        let _ = self.supervisor.wait();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

pub(crate) fn new_root() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests start a proxy that gives up root: run them as root"
    );
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let root = std::env::temp_dir().join(format!("kiln-proxy-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    root
}

fn spawn_supervisor(root: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["supervise".as_ref(), "--root".as_ref(), root.as_os_str()])
        .stdin(Stdio::null())
        .stderr(
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(root.join("supervise.log"))
                .unwrap(),
        )
        .spawn()
        .unwrap()
}

/// The controller's end of a proxy's control socket.
pub(crate) struct Controller {
    stream: BufReader<UnixStream>,
}

impl Controller {
    pub(crate) fn connect(root: &Path, pid: u32) -> Self {
        let stream = UnixStream::connect(root.join(format!("run/proxy/{pid}.sock"))).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub(crate) fn say(&mut self, message: &ToProxy) {
        let mut line = serde_json::to_vec(message).unwrap();
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).unwrap();
    }

    pub(crate) fn hear(&mut self) -> FromProxy {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .expect("the proxy said nothing in time");
        serde_json::from_str(&line).expect("the proxy closed the control socket")
    }

    pub(crate) fn hear_until<T>(&mut self, mut found: impl FnMut(FromProxy) -> Option<T>) -> T {
        loop {
            if let Some(found) = found(self.hear()) {
                return found;
            }
        }
    }

    /// Sends it, and returns when it is confirmed.
    pub(crate) fn serve(&mut self, table: &RoutingTable) {
        self.say(&ToProxy::Table {
            table: table.clone(),
        });
        self.hear_until(|said| match said {
            FromProxy::Confirmed { generation } if generation == table.generation => Some(()),
            FromProxy::Refused { reason, .. } => panic!("refused: {reason}"),
            _ => None,
        });
    }

    /// How many requests its end cut.
    pub(crate) fn drained(&mut self, of: &str) -> u64 {
        self.hear_until(|said| match said {
            FromProxy::Drained { instance, cut, .. } if instance.as_str() == of => Some(cut),
            _ => None,
        })
    }

    pub(crate) fn counters(&mut self) -> Vec<ReleaseCounters> {
        self.say(&ToProxy::Count);
        self.hear_until(|said| match said {
            FromProxy::Counters { counters, .. } => Some(counters),
            _ => None,
        })
    }

    pub(crate) fn counters_of(&mut self, release: u64) -> ReleaseCounters {
        let all = self.counters();
        all.iter()
            .find(|counters| counters.release == ReleaseNumber(release))
            .cloned()
            .unwrap_or_else(|| panic!("release {release} is not among {all:?}"))
    }
}

pub(crate) fn service() -> ServiceKey {
    ServiceKey::try_from("dev/api".to_owned()).unwrap()
}

/// One service whose release is served by these instances.
pub(crate) fn table(
    generation: u64,
    listen: SocketAddr,
    release: u64,
    set: &[(&str, SocketAddr)],
) -> RoutingTable {
    let backends = set
        .iter()
        .map(|(id, address)| Backend {
            instance: InstanceId::new(*id),
            address: *address,
        })
        .collect();
    RoutingTable {
        generation: Generation(generation),
        routes: vec![Route {
            service: service(),
            generation: Generation(generation),
            listen: Some(listen),
            inside: None,
            sets: vec![WeightedSet::whole(ReleaseNumber(release), backends)],
        }],
        draining: Vec::new(),
    }
}

pub(crate) fn draining(
    table: RoutingTable,
    release: u64,
    ids: &[&str],
    deadline: Duration,
) -> RoutingTable {
    let draining = ids
        .iter()
        .map(|id| Draining {
            service: service(),
            release: ReleaseNumber(release),
            instance: InstanceId::new(*id),
            deadline,
        })
        .collect();
    RoutingTable { draining, ..table }
}
