//! `bench proxy`: requests per CPU second of kiln's proxy, of haproxy and of nginx, in turn and before the same instance.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::report::Section;
use super::world::{World, WorldError};
use super::{BenchError, Setting, expect};
use crate::args::Args;

/// What is asked for, and with which header.
const KINDS: [(&str, &str, Option<&str>); 3] = [
    ("small answers, connections kept", "small", None),
    ("16 KiB answers, connections kept", "16k", None),
    (
        "small answers, a connection each",
        "small",
        Some("Connection: close"),
    ),
];
const CONNECTIONS: u32 = 32;
const THREADS: u32 = 2;
/// `sysconf(_SC_CLK_TCK)`: the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

struct Peer {
    name: &'static str,
    address: SocketAddr,
    /// Whose CPU time is counted.
    processes: Vec<u32>,
    child: Option<Child>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // nginx's master takes its workers along at SIGTERM only.
            if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = child.wait();
        }
    }
}

struct Round {
    per_cpu_second: f64,
    per_second: f64,
}

pub(super) fn run(mut args: Args) -> Result<(), BenchError> {
    let rounds = args.count("--rounds", 7)?;
    let seconds = args.count("--seconds", 3)?;
    args.end()?;
    for program in ["haproxy", "nginx", "wrk"] {
        if Command::new(program).arg("-v").output().is_err() {
            return Err(BenchError::NotInstalled {
                program,
                packages: "haproxy nginx-light wrk",
            });
        }
    }
    let setting = Setting::build(&[])?;
    let origin = setting.workspace.join("xtask/origin");
    let world = World::new(&setting.kiln, &origin, "origin")?;
    world.up()?;
    let instance = world
        .status()?
        .instances
        .first()
        .and_then(|instance| instance.address)
        .ok_or_else(|| WorldError::NoService("origin".to_owned()))?;
    let folder = world.root.join("peers");
    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |source| WorldError::Io { what, source }
    };
    std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
    let peers = [
        Peer {
            name: "kiln",
            address: world.address,
            processes: world.processes("proxy"),
            child: None,
        },
        haproxy(&folder, instance)?,
        nginx(&folder, instance)?,
    ];
    let mut section = Section {
        command: format!("bench proxy --rounds {rounds} --seconds {seconds}"),
        head: [
            "",
            "kiln",
            "haproxy",
            "nginx",
            "kiln / haproxy",
            "kiln / nginx",
        ]
        .map(str::to_owned)
        .into(),
        ..Section::default()
    };
    let mut versions = Vec::new();
    for (kind, path, header) in KINDS {
        let mut measured: [Vec<Round>; 3] = Default::default();
        for _ in 0..rounds {
            for (peer, rounds) in peers.iter().zip(&mut measured) {
                world.check_interrupted()?;
                rounds.push(load(peer, path, header, seconds)?);
            }
        }
        let of = |index: usize, which: fn(&Round) -> f64| median(measured[index].iter().map(which));
        let cpu = |index| of(index, |round| round.per_cpu_second);
        section.row([
            kind.to_owned(),
            format!("{:.0}", cpu(0)),
            format!("{:.0}", cpu(1)),
            format!("{:.0}", cpu(2)),
            format!("{:.2}", cpu(0) / cpu(1)),
            format!("{:.2}", cpu(0) / cpu(2)),
        ]);
        versions.push(format!(
            "{kind}: {:.0}, {:.0} and {:.0}",
            of(0, |round| round.per_second),
            of(1, |round| round.per_second),
            of(2, |round| round.per_second)
        ));
    }
    section.notes.push(format!(
        "Requests per second of the proxy's own CPU time (user and system), medians of {rounds} rounds of {seconds} s, the proxies in turn, {CONNECTIONS} connections of wrk, {THREADS} threads each, before one instance of nginx. The machine's two cores are shared by client, proxy and instance."
    ));
    section.notes.push(format!(
        "Requests per second of wall time in the same runs, kiln, haproxy and nginx: {}.",
        versions.join("; ")
    ));
    drop(peers);
    let left = world.end()?;
    section.publish("proxy", &setting.documents())?;
    expect("left after `kiln down`", &Vec::new(), &left)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn free() -> Result<SocketAddr, WorldError> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(|source| WorldError::Io {
            what: "a free port".to_owned(),
            source,
        })
}

fn haproxy(folder: &Path, instance: SocketAddr) -> Result<Peer, BenchError> {
    let address = free()?;
    let config = format!(
        "global\n  nbthread {THREADS}\n  maxconn 4096\n\
         defaults\n  mode http\n  option forwardfor\n  timeout connect 1s\n  timeout client 60s\n  timeout server 60s\n\
         frontend f\n  bind {address}\n  default_backend b\n\
         backend b\n  http-reuse always\n  server a {instance}\n"
    );
    let path = folder.join("haproxy.cfg");
    start("haproxy", address, &path, &config, |command| {
        command.arg("-db").arg("-f").arg(&path);
    })
}

fn nginx(folder: &Path, instance: SocketAddr) -> Result<Peer, BenchError> {
    let address = free()?;
    let config = format!(
        "worker_processes {THREADS};\ndaemon off;\npid {folder}/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n\
         client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n\
         upstream b {{ server {instance}; keepalive 64; keepalive_requests 1000000000; }}\n\
         server {{ listen {address} reuseport; location / {{ proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header X-Forwarded-For $remote_addr; }} }}\n}}\n",
        folder = folder.display()
    );
    let path = folder.join("nginx.conf");
    start("nginx", address, &path, &config, |command| {
        command.arg("-c").arg(&path).arg("-e").arg("stderr");
    })
}

fn start(
    name: &'static str,
    address: SocketAddr,
    path: &PathBuf,
    config: &str,
    arguments: impl FnOnce(&mut Command),
) -> Result<Peer, BenchError> {
    let failed = |source| WorldError::Io {
        what: format!("{name} with {}", path.display()),
        source,
    };
    std::fs::write(path, config).map_err(failed)?;
    let mut command = Command::new(name);
    arguments(&mut command);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let pid = child.id();
    let mut peer = Peer {
        name,
        address,
        processes: vec![pid],
        child: Some(child),
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            return Err(WorldError::Deadline {
                what: format!("{name} to listen"),
                deadline: Duration::from_secs(10),
            }
            .into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.map_err(failed)?;
    peer.processes.extend(
        children
            .split_whitespace()
            .filter_map(|pid| pid.parse::<u32>().ok()),
    );
    Ok(peer)
}

/// User and system time of the processes, in seconds.
fn cpu(processes: &[u32]) -> f64 {
    let ticks: u64 = processes
        .iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .filter_map(|stat| {
            // After the name, which may have spaces: fields 14 and 15 of proc(5).
            let fields: Vec<u64> = stat[stat.rfind(')')? + 1..]
                .split_whitespace()
                .skip(11)
                .take(2)
                .filter_map(|field| field.parse().ok())
                .collect();
            Some(fields.iter().sum::<u64>())
        })
        .sum();
    ticks as f64 / TICKS_PER_SECOND
}

fn load(peer: &Peer, path: &str, header: Option<&str>, seconds: u64) -> Result<Round, BenchError> {
    let url = format!("http://{}/{path}", peer.address);
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")]);
    if let Some(header) = header {
        wrk.args(["-H", header]);
    }
    let before = cpu(&peer.processes);
    let output = wrk.arg(&url).output().map_err(|source| WorldError::Io {
        what: format!("wrk {url}"),
        source,
    })?;
    let used = cpu(&peer.processes) - before;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let refused = said
        .lines()
        .find(|line| line.contains("Socket errors") || line.contains("Non-2xx"));
    expect(
        format!("what {} failed, as wrk says", peer.name),
        &None,
        &refused,
    )?;
    let number = |mark: &str, before: bool| {
        let line = said.lines().find(|line| line.contains(mark))?;
        let word = match before {
            true => line.split_whitespace().next(),
            false => line.split_whitespace().last(),
        };
        word?.parse::<f64>().ok()
    };
    let (Some(requests), Some(per_second)) =
        (number("requests in", true), number("Requests/sec", false))
    else {
        return Err(BenchError::Broken {
            what: format!("what wrk says of {}", peer.name),
            expected: "a number of requests".to_owned(),
            found: said,
        });
    };
    Ok(Round {
        per_cpu_second: requests / used,
        per_second,
    })
}
