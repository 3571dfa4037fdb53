//! The other side: a BuildKit of its own, started for the test and ended with it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bases::{Bases, NAMES};
use crate::case::Case;
use crate::outcome::{self, Outcome};

const START: Duration = Duration::from_secs(60);

pub(crate) struct Peer {
    daemon: Child,
    programs: PathBuf,
    folder: PathBuf,
    pub(crate) version: String,
}

impl Peer {
    /// `programs` has buildkitd and buildctl; `folder` is for everything that they keep.
    pub(crate) fn start(programs: &Path, folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let log = File::create(folder.join("log")).unwrap();
        let daemon = Command::new(programs.join("buildkitd"))
            .arg("--root")
            .arg(folder.join("root"))
            .arg("--addr")
            .arg(address(folder))
            .args([
                "--oci-worker=true",
                "--containerd-worker=false",
                "--oci-worker-snapshotter=overlayfs",
                "--oci-worker-gc=false",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "{}: {error}; scripts/build-peer makes it",
                    programs.display()
                )
            });
        let mut peer = Self {
            daemon,
            programs: programs.to_owned(),
            folder: folder.to_owned(),
            version: String::new(),
        };
        let began = Instant::now();
        loop {
            let listed = peer.control().args(["debug", "info"]).output().unwrap();
            if listed.status.success() {
                let told = String::from_utf8_lossy(&listed.stdout).into_owned();
                let line = told.lines().find(|line| line.starts_with("BuildKit:"));
                peer.version = line
                    .map(|line| {
                        line.split_whitespace()
                            .take(3)
                            .collect::<Vec<_>>()
                            .join(" ")
                    })
                    .unwrap_or_default();
                return peer;
            }
            if began.elapsed() > START || peer.daemon.try_wait().unwrap().is_some() {
                let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                panic!("buildkitd does not answer; it said: {log}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn control(&self) -> Command {
        let mut command = Command::new(self.programs.join("buildctl"));
        command.arg("--addr").arg(address(&self.folder));
        command
    }

    /// What the peer makes of a case whose files are below `folder`.
    pub(crate) fn bake(&self, case: &Case, folder: &Path, bases: &Bases) -> Outcome {
        let context = folder.join("context");
        let out = folder.join("peer.tar");
        let file = Path::new(&case.options.dockerfile);
        let mut command = self.control();
        command
            // No case is to see what the peer remembers of another one.
            .args([
                "build",
                "--no-cache",
                "--progress=plain",
                "--frontend=dockerfile.v0",
            ])
            .arg("--local")
            .arg(format!("context={}", context.display()))
            .arg("--local")
            .arg(format!(
                "dockerfile={}",
                context.join(file).parent().unwrap().display()
            ))
            .arg("--opt")
            .arg(format!(
                "filename={}",
                file.file_name().unwrap().to_string_lossy()
            ))
            .arg("--output")
            .arg(format!(
                "type=docker,dest={},compression=uncompressed,force-compression=true",
                out.display()
            ));
        let stages = stages(&fs::read_to_string(context.join(file)).unwrap_or_default());
        // A named context stands before a stage of its name, other than an image does.
        for name in NAMES.into_iter().filter(|name| !stages.contains(*name)) {
            let layout = bases.layouts.join(name);
            let digest = &bases.digests[name];
            command
                .arg("--oci-layout")
                .arg(format!("{name}={}", layout.display()))
                .arg("--opt")
                .arg(format!("context:{name}=oci-layout://{name}@{digest}"));
        }
        for arg in &case.options.build_args {
            command.arg("--opt").arg(format!("build-arg:{arg}"));
        }
        if let Some(target) = &case.options.target {
            command.arg("--opt").arg(format!("target={target}"));
        }
        for name in &case.options.contexts {
            command
                .arg("--local")
                .arg(format!("{name}={}", folder.join(name).display()))
                .arg("--opt")
                .arg(format!("context:{name}=local:{name}"));
        }
        for secret in &case.options.secrets {
            command.arg("--secret").arg(secret);
        }
        let output = command.current_dir(&context).output().unwrap();
        if output.status.success() {
            return outcome::read(&out)
                .unwrap_or_else(|error| panic!("{}: the peer's archive: {error}", case.name));
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said
            .lines()
            .rev()
            .find(|line| line.starts_with("error:"))
            .unwrap_or(&said);
        Outcome::Refused {
            says: line.trim_start_matches("error: ").trim().to_owned(),
        }
    }
}

/// The names of a Dockerfile's stages, in small letters.
fn stages(text: &str) -> BTreeSet<String> {
    let named = |line: &str| {
        let lower = line.to_ascii_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        match words[..] {
            ["from", .., "as", name] => Some(name.to_owned()),
            _ => None,
        }
    };
    text.lines().filter_map(named).collect()
}

fn address(folder: &Path) -> String {
    format!("unix://{}", folder.join("socket").display())
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.daemon.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.daemon.wait();
    }
}
