//! A kiln of its own for one benchmark: data root, project in Git, port; and nothing of it left afterwards.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_model::api::{Outcome, RolloutResult, ServiceStatus, Status};

use super::leaks;
use super::watchdog::{Watchdog, shown};

/// How long the processes of a world have to end after `kiln down`.
const END_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum WorldError {
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{command}` {status}\n{output}")]
    Failed {
        command: String,
        status: ExitStatus,
        output: String,
    },
    #[error("`{command}` answered what is not the documented JSON:\n{output}")]
    Answer {
        command: String,
        output: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{command}` reported no outcome of the service:\n{output}")]
    NoOutcome { command: String, output: String },
    #[error("`{command}` ended as {result:?}: {reason}")]
    Result {
        command: String,
        result: RolloutResult,
        reason: String,
    },
    #[error("status knows no service `{0}`")]
    NoService(String),
    #[error("{path}: `{pattern}` is not there: the benchmark edits that line")]
    Edit { path: PathBuf, pattern: String },
    #[error("after {deadline:?} still waiting for {what}")]
    Deadline { what: String, deadline: Duration },
    #[error("interrupted")]
    Interrupted,
}

/// Sets the flag on Ctrl-C or SIGTERM, so that a benchmark ends at its next step and cleans up.
pub(crate) fn interruption() -> Result<&'static Arc<AtomicBool>, WorldError> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| Arc::new(AtomicBool::new(false)));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .map_err(|source| io("the signal handler could not be set", source))?;
    }
    Ok(flag)
}

fn io(what: impl Into<String>, source: std::io::Error) -> WorldError {
    WorldError::Io {
        what: what.into(),
        source,
    }
}

/// A command of kiln that ended with 0.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) wall: Duration,
}

#[derive(Debug)]
pub(crate) struct World {
    kiln: PathBuf,
    folder: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) project: PathBuf,
    pub(crate) service: String,
    pub(crate) address: SocketAddr,
    interrupted: &'static Arc<AtomicBool>,
    /// So that no two edits are the same.
    edits: u64,
    /// So that commands at the same time have each their own output files.
    commands: AtomicU64,
}

impl World {
    /// A copy of an example, committed to Git, that listens on a free port.
    pub(crate) fn new(kiln: &Path, example: &Path, service: &str) -> Result<Self, WorldError> {
        let interrupted = interruption()?;
        let folder = std::env::temp_dir().join(format!("kiln-bench-{}", std::process::id()));
        let root = folder.join("root");
        let project = folder.join("project");
        copy_folder(example, &project)?;
        // A copy: the supervisor starts its children from this path, and the original may be built anew.
        let copied = folder.join("kiln");
        std::fs::copy(kiln, &copied).map_err(|e| io(kiln.display().to_string(), e))?;
        std::fs::create_dir_all(&root).map_err(|e| io(root.display().to_string(), e))?;
        let world = Self {
            kiln: copied,
            root,
            project,
            service: service.to_owned(),
            address: free_address()?,
            interrupted,
            edits: 0,
            commands: AtomicU64::new(0),
            folder,
        };
        world.replace_line(
            "  listen ",
            &format!("  listen   = {}", world.address.port()),
        )?;
        for arguments in [
            &["init", "--quiet"][..],
            &["add", "."],
            &[
                "-c",
                "user.name=bench",
                "-c",
                "user.email=bench@localhost",
                "commit",
                "--quiet",
                "--message=bench",
            ],
        ] {
            let mut git = Command::new("git");
            git.args(arguments);
            world.run(&mut git)?;
        }
        Ok(world)
    }

    pub(crate) fn check_interrupted(&self) -> Result<(), WorldError> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(WorldError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// A pause that Ctrl-C ends.
    pub(crate) fn wait_until(
        &self,
        what: &str,
        deadline: Duration,
        mut done: impl FnMut() -> Result<bool, WorldError>,
    ) -> Result<(), WorldError> {
        let begun = Instant::now();
        loop {
            self.check_interrupted()?;
            if done()? {
                return Ok(());
            }
            if begun.elapsed() > deadline {
                return Err(WorldError::Deadline {
                    what: what.to_owned(),
                    deadline,
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `kiln ARGUMENTS` in the project's folder, on this root.
    pub(crate) fn kiln(&self, arguments: &[&str]) -> Result<Ran, WorldError> {
        let mut command = Command::new(&self.kiln);
        command.args(arguments);
        self.run(&mut command)
    }

    pub(crate) fn up(&self) -> Result<Ran, WorldError> {
        self.kiln(&["up", "--detach"])
    }

    /// `kiln ARGUMENTS --json`, which has to end as done.
    pub(crate) fn rollout(&self, arguments: &[&str]) -> Result<(Outcome, Duration), WorldError> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let ran = self.kiln(&all)?;
        let command = format!("kiln {}", all.join(" "));
        let outcome = outcomes(&ran.stdout)
            .map_err(|source| WorldError::Answer {
                command: command.clone(),
                output: ran.stdout.clone(),
                source,
            })?
            .into_iter()
            .find(|outcome| outcome.service.as_str() == self.service)
            .ok_or_else(|| WorldError::NoOutcome {
                command: command.clone(),
                output: ran.stdout.clone(),
            })?;
        match outcome.result {
            RolloutResult::Done => Ok((outcome, ran.wall)),
            result @ (RolloutResult::Unchanged
            | RolloutResult::RolledBack
            | RolloutResult::Failed
            | RolloutResult::Removed) => Err(WorldError::Result {
                command,
                result,
                reason: outcome.reason.unwrap_or_default(),
            }),
        }
    }

    pub(crate) fn status(&self) -> Result<ServiceStatus, WorldError> {
        let ran = self.kiln(&["status", "--json"])?;
        let status: Status =
            serde_json::from_str(&ran.stdout).map_err(|source| WorldError::Answer {
                command: "kiln status --json".to_owned(),
                output: ran.stdout.clone(),
                source,
            })?;
        status
            .services
            .into_iter()
            .find(|service| service.name.as_str() == self.service)
            .ok_or_else(|| WorldError::NoService(self.service.clone()))
    }

    /// Changes the service's environment: a new release of the same image.
    pub(crate) fn edit_environment(&mut self) -> Result<(), WorldError> {
        self.edits += 1;
        self.replace_line(
            "  env ",
            &format!("  env      = {{ GREETING = \"edit {}\" }}", self.edits),
        )
    }

    /// Changes one file of the image: a bake of one layer, and a new release.
    pub(crate) fn edit_file(&mut self) -> Result<(), WorldError> {
        self.edits += 1;
        let path = self.project.join("app/edit.txt");
        std::fs::write(&path, format!("edit {}\n", self.edits))
            .map_err(|e| io(path.display().to_string(), e))
    }

    /// A second service of the same image on a port of its own; returns the definition as it was.
    pub(crate) fn add_service(&self, name: &str) -> Result<(SocketAddr, String), WorldError> {
        let path = self.project.join("kiln.hcl");
        let failed = |e| io(path.display().to_string(), e);
        let before = std::fs::read_to_string(&path).map_err(failed)?;
        let address = free_address()?;
        let service = format!(
            "\nservice \"{name}\" {{\n  image    = image.{}\n  replicas = 1\n  port     = 3000\n  listen   = {}\n  probe \"ready\" {{\n    http = \"/ready\"\n  }}\n}}\n",
            self.service,
            address.port()
        );
        std::fs::write(&path, format!("{before}{service}")).map_err(failed)?;
        Ok((address, before))
    }

    pub(crate) fn put_definition(&self, text: &str) -> Result<(), WorldError> {
        let path = self.project.join("kiln.hcl");
        std::fs::write(&path, text).map_err(|e| io(path.display().to_string(), e))
    }

    fn replace_line(&self, start: &str, line: &str) -> Result<(), WorldError> {
        let path = self.project.join("kiln.hcl");
        let failed = |e| io(path.display().to_string(), e);
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        let mut found = false;
        let lines: Vec<&str> = text
            .lines()
            .map(|old| {
                if old.starts_with(start) && !found {
                    found = true;
                    line
                } else {
                    old
                }
            })
            .collect();
        if !found {
            return Err(WorldError::Edit {
                path,
                pattern: start.to_owned(),
            });
        }
        std::fs::write(&path, lines.join("\n") + "\n").map_err(failed)
    }

    /// The next process that the supervisor starts has this in its environment: a script takes the place of
    /// the binary, as an upgrade would.
    pub(crate) fn wrap(&self, name: &str, value: &str) -> Result<(), WorldError> {
        let real = self.folder.join("kiln.real");
        if !real.exists() {
            std::fs::copy(&self.kiln, &real).map_err(|e| io(real.display().to_string(), e))?;
        }
        let script = format!(
            "#!/bin/sh\n{name}={value}\nexport {name}\nexec {} \"$@\"\n",
            real.display()
        );
        self.put_binary(|new| {
            std::fs::write(new, script)?;
            std::fs::set_permissions(new, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        })
    }

    /// The end of `wrap`.
    pub(crate) fn unwrap_binary(&self) -> Result<(), WorldError> {
        let real = self.folder.join("kiln.real");
        self.put_binary(|new| std::fs::copy(&real, new).map(drop))
    }

    fn put_binary(
        &self,
        make: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<(), WorldError> {
        let new = self.folder.join("kiln.new");
        make(&new)
            .and_then(|()| std::fs::rename(&new, &self.kiln))
            .map_err(|e| io(self.kiln.display().to_string(), e))
    }

    /// The processes of this world with this role (`serve`, `proxy`, `supervise`, `shim`) as an argument.
    pub(crate) fn processes(&self, role: &str) -> Vec<u32> {
        leaks::processes(&self.root)
            .into_iter()
            .filter(|process| process.arguments.iter().skip(1).any(|word| word == role))
            .map(|process| process.pid)
            .collect()
    }

    /// Runs to its end, at most for the deadline. Output goes to files: what it leaves running may keep them.
    fn run(&self, command: &mut Command) -> Result<Ran, WorldError> {
        self.check_interrupted()?;
        let shown = shown(command);
        let failed = |source| io(format!("`{shown}` could not be run"), source);
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let out = self.folder.join(format!("{number}.out"));
        let err = self.folder.join(format!("{number}.err"));
        // Its own process group: Ctrl-C is for this benchmark, which then ends kiln in order.
        std::os::unix::process::CommandExt::process_group(command, 0)
            .current_dir(&self.project)
            .env("KILN_ROOT", &self.root)
            .stdin(Stdio::null())
            .stdout(File::create(&out).map_err(failed)?)
            .stderr(File::create(&err).map_err(failed)?);
        let begun = Instant::now();
        let mut child = command.spawn().map_err(failed)?;
        let watchdog = Watchdog::start(child.id());
        let status = child.wait().map_err(failed)?;
        let wall = begun.elapsed();
        drop(watchdog);
        let stdout = std::fs::read_to_string(&out).map_err(failed)?;
        let stderr = std::fs::read_to_string(&err).map_err(failed)?;
        for file in [out, err] {
            std::fs::remove_file(&file).map_err(failed)?;
        }
        if !status.success() {
            return Err(WorldError::Failed {
                command: shown,
                status,
                output: format!("{stdout}{stderr}"),
            });
        }
        Ok(Ran { stdout, wall })
    }

    /// `kiln down`, the end of everything by pid where it left something, and what it left.
    pub(crate) fn end(&self) -> Result<Vec<String>, WorldError> {
        // Cleaning up is what Ctrl-C asks for: it does not interrupt it.
        let was = self.interrupted.swap(false, Ordering::Relaxed);
        let down = self.kiln(&["down"]);
        self.interrupted.store(was, Ordering::Relaxed);
        let deadline = Instant::now() + END_DEADLINE;
        while !leaks::processes(&self.root).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = leaks::of(&self.root);
        down.map(|_| left)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !leaks::of(&self.root).is_empty()
            && let Err(error) = self.end()
        {
            eprintln!("kiln down: {error}");
        }
        for left in leaks::remove(&self.root) {
            eprintln!("removed by the benchmark: {left}");
        }
        if leaks::of(&self.root)
            .iter()
            .any(|left| left.starts_with("mount"))
        {
            eprintln!("{}: still mounted, so left alone", self.folder.display());
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("{}: {error}", self.folder.display());
        }
    }
}

/// `apply --json` ends with one outcome for each service: as lines, as one array, or in a field `services`.
fn outcomes(stdout: &str) -> Result<Vec<Outcome>, serde_json::Error> {
    let mut found = Vec::new();
    for value in serde_json::Deserializer::from_str(stdout).into_iter::<serde_json::Value>() {
        let value = value?;
        let values = match value {
            serde_json::Value::Array(values) => values,
            other => vec![other],
        };
        for value in values {
            let is_outcome = value.get("service").is_some() && value.get("result").is_some();
            if is_outcome {
                found.push(serde_json::from_value(value)?);
            }
        }
    }
    Ok(found)
}

fn free_address() -> Result<SocketAddr, WorldError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|e| io("no free port on loopback", e))
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), WorldError> {
    let failed = |e| io(format!("{} to {}", from.display(), to.display()), e);
    std::fs::create_dir_all(to).map_err(failed)?;
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(failed)?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A world whose `kiln` is `env`: it prints the environment that it got and its arguments' effect.
    fn world() -> World {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bench");
        World::new(Path::new("/usr/bin/env"), &example, "bench").unwrap()
    }

    #[test]
    fn a_world_is_a_project_in_git_with_a_root_and_a_port_of_its_own() {
        let mut world = world();
        let environment = world.kiln(&[]).unwrap().stdout;
        assert!(environment.contains(&format!("KILN_ROOT={}\n", world.root.display())));
        let definition = || std::fs::read_to_string(world.project.join("kiln.hcl")).unwrap();
        assert!(definition().contains(&format!("listen   = {}\n", world.address.port())));
        let mut git = Command::new("git");
        let clean = world.run(git.args(["status", "--porcelain"])).unwrap();
        assert_eq!(clean.stdout, "");
        let first = definition();
        world.edit_environment().unwrap();
        let text = std::fs::read_to_string(world.project.join("kiln.hcl")).unwrap();
        assert_ne!(first, text);
        assert!(text.contains("GREETING = \"edit 1\""));
        let failed = world.kiln(&["false"]).unwrap_err();
        assert!(matches!(failed, WorldError::Failed { .. }), "{failed}");

        // While it is wrapped, what starts from the binary's path has one variable more.
        world.wrap("KILN_CRASH_AFTER", "start:2").unwrap();
        let wrapped = world.kiln(&[]).unwrap().stdout;
        assert!(wrapped.contains("KILN_CRASH_AFTER=start:2\n"));
        world.unwrap_binary().unwrap();
        assert!(!world.kiln(&[]).unwrap().stdout.contains("KILN_CRASH_AFTER"));

        let folder = world.folder.clone();
        drop(world);
        assert!(!folder.exists());
    }

    #[test]
    fn outcomes_are_found_among_progress() {
        let outcome = r#"{"service":"bench","environment":"dev","from":1,"to":2,"result":"done","reason":null,"duration_ms":3,"requests":{"served":4,"failed":0},"phases":[],"warm":null,"url":null}"#;
        for text in [
            outcome.to_owned(),
            format!("[{outcome}]"),
            format!("{{\"phase\":\"start\"}}\n{outcome}\n"),
        ] {
            let found = outcomes(&text).unwrap();
            assert_eq!(found.len(), 1, "{text}");
            assert_eq!(found[0].requests.served, 4);
        }
        assert!(outcomes("no JSON").is_err());
        assert!(outcomes("").unwrap().is_empty());
    }
}
