//! kiln, docker with its BuildKit, and buildah, on a Dockerfile: each on a data root of its own, ended with the benchmark.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::BenchError;
use super::leaks;
use super::machine::{Cost, measure, occupied};
use super::world::WorldError;

/// Debian's own: a client of another origin in the PATH would ask for its plug-in.
const DOCKER: &str = "/usr/bin/docker";
const DOCKERD_DEADLINE: Duration = Duration::from_secs(60);

/// One of the programs that are compared.
pub(super) enum Builder {
    Kiln { program: PathBuf, root: PathBuf },
    Docker { folder: PathBuf, daemon: Child },
    Buildah { folder: PathBuf },
}

fn failed(what: &Path) -> impl FnOnce(std::io::Error) -> WorldError {
    let what = what.display().to_string();
    move |source| WorldError::Io { what, source }
}

/// All three, with their data below `folder`.
pub(super) fn all(kiln: &Path, folder: &Path) -> Result<Vec<Builder>, BenchError> {
    for (program, package) in [
        (DOCKER, "docker.io"),
        ("/usr/sbin/dockerd", "docker.io"),
        ("/usr/bin/buildah", "buildah runc"),
        ("/usr/sbin/runc", "runc"),
    ] {
        if !Path::new(program).exists() {
            return Err(BenchError::NotInstalled {
                program,
                packages: package,
            });
        }
    }
    let root = folder.join("kiln");
    std::fs::create_dir_all(&root).map_err(failed(&root))?;
    Ok(vec![
        Builder::Kiln {
            program: kiln.to_owned(),
            root,
        },
        docker(folder.join("docker"))?,
        Builder::Buildah {
            folder: folder.join("buildah"),
        },
    ])
}

/// A daemon with its own state, socket and log, without a bridge: nothing here is fetched.
fn docker(folder: PathBuf) -> Result<Builder, BenchError> {
    std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
    let log = folder.join("log");
    let log = std::fs::File::create(&log).map_err(failed(&log))?;
    let daemon = Command::new("/usr/sbin/dockerd")
        .arg("--data-root")
        .arg(folder.join("data"))
        .arg("--exec-root")
        .arg(folder.join("exec"))
        .arg("--pidfile")
        .arg(folder.join("pid"))
        .arg("--host")
        .arg(socket(&folder))
        .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed(&folder))?)
        .stderr(log)
        .spawn()
        .map_err(failed(Path::new("dockerd")))?;
    let builder = Builder::Docker { folder, daemon };
    let begun = Instant::now();
    while let Err(error) = builder.docker(&["version"]) {
        if begun.elapsed() > DOCKERD_DEADLINE {
            return Err(error.into());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(builder)
}

fn socket(folder: &Path) -> String {
    format!("unix://{}", folder.join("socket").display())
}

impl Builder {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Kiln { .. } => "kiln",
            Self::Docker { .. } => "docker",
            Self::Buildah { .. } => "buildah",
        }
    }

    /// Bakes the Dockerfile of a context under a tag, from its cache or without.
    pub(super) fn build(
        &self,
        context: &Path,
        tag: &str,
        cached: bool,
    ) -> Result<Cost, WorldError> {
        let mut command = match self {
            Self::Kiln { program, root } => {
                let mut command = Command::new(program);
                command
                    .env("KILN_ROOT", root)
                    .args(["bake", "--dockerfile"])
                    .arg(context.join("Dockerfile"));
                command
            }
            Self::Docker { folder, .. } => {
                let mut command = Command::new(DOCKER);
                command
                    .env("DOCKER_HOST", socket(folder))
                    .env("DOCKER_BUILDKIT", "1")
                    .env("DOCKER_CONFIG", folder)
                    .args(["build", "--network=none", "--progress=plain"]);
                command
            }
            Self::Buildah { folder } => {
                let mut command = buildah(folder);
                // crun, its default, refuses machines with both kinds of control groups.
                command.args(["bud", "--layers", "--network=none", "--runtime=runc"]);
                command
            }
        };
        if !cached {
            command.arg("--no-cache");
        }
        command.args(["--tag", tag]).arg(context);
        measure(&mut command)
    }

    /// Writes an image to a new place: an OCI layout, but for docker, which has only its own archive.
    pub(super) fn export(&self, context: &Path, tag: &str, to: &Path) -> Result<Cost, WorldError> {
        match self {
            // An image that is baked already: what is left is the export.
            Self::Kiln { program, root } => {
                let mut command = Command::new(program);
                command
                    .env("KILN_ROOT", root)
                    .args(["bake", "--dockerfile"])
                    .arg(context.join("Dockerfile"))
                    .args(["--tag", tag, "--output"])
                    .arg(format!("oci:{}", to.display()))
                    .arg(context);
                measure(&mut command)
            }
            Self::Docker { folder, .. } => measure(
                Command::new(DOCKER)
                    .env("DOCKER_HOST", socket(folder))
                    .args(["save", "--output"])
                    .arg(to)
                    .arg(tag),
            ),
            Self::Buildah { folder } => measure(
                buildah(folder)
                    .args(["push", "--quiet", tag])
                    .arg(format!("oci:{}", to.display())),
            ),
        }
    }

    /// Forgets all images and all of the cache.
    pub(super) fn wipe(&self) -> Result<(), WorldError> {
        match self {
            Self::Kiln { root, .. } => {
                std::fs::remove_dir_all(root).map_err(failed(root))?;
                std::fs::create_dir_all(root).map_err(failed(root))
            }
            Self::Docker { .. } => {
                self.docker(&["image", "prune", "--all", "--force"])?;
                self.docker(&["builder", "prune", "--all", "--force"])
            }
            Self::Buildah { folder } => {
                measure(buildah(folder).args(["rmi", "--all", "--force"])).map(drop)
            }
        }
    }

    /// The bytes of its images and its cache.
    pub(super) fn stored(&self) -> Result<u64, WorldError> {
        match self {
            Self::Kiln { root, .. } => occupied(root),
            Self::Docker { folder, .. } => occupied(&folder.join("data")),
            Self::Buildah { folder } => occupied(folder),
        }
    }

    fn docker(&self, arguments: &[&str]) -> Result<(), WorldError> {
        let Self::Docker { folder, .. } = self else {
            return Ok(());
        };
        measure(
            Command::new(DOCKER)
                .env("DOCKER_HOST", socket(folder))
                .args(arguments),
        )
        .map(drop)
    }
}

fn buildah(folder: &Path) -> Command {
    let mut command = Command::new("/usr/bin/buildah");
    command
        .arg("--root")
        .arg(folder.join("root"))
        .arg("--runroot")
        .arg(folder.join("run"))
        .args(["--storage-driver", "overlay"]);
    command
}

impl Drop for Builder {
    fn drop(&mut self) {
        let Self::Docker { daemon, .. } = self else {
            return;
        };
        if let Some(pid) = rustix::process::Pid::from_raw(daemon.id().cast_signed())
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        {
            eprintln!("dockerd {pid:?} could not be told to end: {error}");
        }
        if let Err(error) = daemon.wait() {
            eprintln!("dockerd: {error}");
        }
    }
}

/// A folder for one benchmark, removed at its end unless something is still mounted below it.
pub(super) struct Workshop {
    pub(super) folder: PathBuf,
}

impl Workshop {
    pub(super) fn new() -> Result<Self, WorldError> {
        let folder = std::env::temp_dir().join(format!("kiln-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
        Ok(Self { folder })
    }

    /// A folder of files that look the same in every run, and the Dockerfile beside them.
    pub(super) fn context(
        &self,
        name: &str,
        dockerfile: &str,
        files: u64,
        size: usize,
    ) -> Result<PathBuf, WorldError> {
        let context = self.folder.join(name);
        for number in 0..files {
            let folder = context.join(format!("tree/{}", number / 100));
            if number % 100 == 0 {
                std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
            }
            let path = folder.join(number.to_string());
            std::fs::write(&path, bytes(number, size)).map_err(failed(&path))?;
        }
        let path = context.join("Dockerfile");
        std::fs::create_dir_all(&context).map_err(failed(&context))?;
        std::fs::write(&path, dockerfile).map_err(failed(&path))?;
        let busybox = context.join("busybox");
        std::fs::copy("/bin/busybox", &busybox).map_err(failed(Path::new("/bin/busybox")))?;
        Ok(context)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // buildah keeps its overlay mounted, dockerd a network namespace.
        for mount in leaks::mounts(&self.folder).into_iter().rev() {
            if let Err(error) = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH)
            {
                eprintln!("{}: still mounted, so left alone: {error}", mount.display());
                return;
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("{}: {error}", self.folder.display());
        }
    }
}

/// Half of it random, half of it text, as programs with their resources are: it compresses to a bit over a half.
fn bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(size + 8);
    while out.len() < size {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled".
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let value = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        if out.len() % 8192 < 4096 {
            out.extend_from_slice(&value.to_le_bytes());
        } else {
            let words: [&[u8]; 4] = [b"request ", b"release\n", b"serving ", b"replace "];
            out.extend_from_slice(words[(value % 4) as usize]);
        }
    }
    out.truncate(size);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_the_same_in_every_run_and_differ_from_each_other() {
        assert_eq!(bytes(7, 10_000), bytes(7, 10_000));
        assert_ne!(bytes(7, 10_000), bytes(8, 10_000));
        assert_eq!(bytes(1, 4097).len(), 4097);
    }
}
