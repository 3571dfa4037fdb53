//! `apt-choice`: whether kiln's resolver takes the packages that apt takes. A chroot made by mmdebstrap has apt and the same archive; there
//! apt is asked what it would install over the packages that kiln's base with apt has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::args::{Args, ArgsError};
use crate::bench::{BenchError, Setting};

const MIRROR: &str = "http://deb.debian.org/debian";

/// What people install, and what is hard to choose: alternatives, virtual packages, what excludes each other.
const SETS: &[&str] = &[
    "ansible",
    "apache2 libapache2-mod-php php-mysql",
    "avahi-daemon",
    "bind9",
    "build-essential cmake ninja-build",
    "certbot python3-certbot-nginx",
    "chromium",
    "cups",
    "dbus-x11",
    "default-jdk maven",
    "default-mysql-server",
    "docker.io",
    "dovecot-imapd postfix",
    "emacs-nox",
    "exim4",
    "ffmpeg",
    "firefox-esr",
    "fonts-noto",
    "gawk",
    "gdm3",
    "ghc cabal-install",
    "git git-lfs openssh-client",
    "gnome-core",
    "gnupg",
    "golang",
    "gstreamer1.0-plugins-good",
    "haproxy keepalived",
    "imagemagick",
    "kde-plasma-desktop",
    "krb5-kdc",
    "libgtk-3-dev",
    "libreoffice-core",
    "logrotate cron",
    "mariadb-server",
    "mailutils",
    "memcached",
    "munin",
    "network-manager",
    "nginx",
    "nodejs npm",
    "octave",
    "openjdk-17-jre-headless",
    "openssh-server",
    "php-fpm php-cli",
    "podman",
    "postgresql postgresql-contrib",
    "prometheus",
    "python3-pip python3-venv",
    "python3-scipy python3-pandas",
    "qtbase5-dev",
    "r-base-core",
    "rabbitmq-server",
    "redis",
    "ruby rails",
    "rustc cargo",
    "samba",
    "slapd",
    "squid",
    "sudo",
    "systemd systemd-sysv",
    "texlive-base",
    "tomcat10",
    "varnish",
    "vim",
    "wordpress",
    "xfce4",
    "xorg",
    "zabbix-agent",
    "zutty",
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum AptChoiceError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error(transparent)]
    Build(#[from] BenchError),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} failed:\n{said}")]
    Failed { what: String, said: String },
    #[error("kiln.lock can't be understood")]
    Lock(#[source] serde_json::Error),
    #[error("apt and kiln disagree on {0} sets")]
    Different(usize),
}

/// Names and versions.
type Packages = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Lock {
    images: BTreeMap<String, Image>,
}

#[derive(Deserialize)]
struct Image {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
}

pub(crate) fn run(mut args: Args) -> Result<(), AptChoiceError> {
    let suite: String = args
        .option("--suite", "a Debian release")?
        .unwrap_or_else(|| "bookworm".to_owned());
    let mirror: String = args
        .option("--mirror", "an address")?
        .unwrap_or_else(|| MIRROR.to_owned());
    let one: Option<String> = args.option("--set", "packages")?;
    let kiln: Option<PathBuf> = args.option("--kiln", "a program")?;
    // To go on where a run was ended.
    let skip: usize = args.option("--skip", "a number")?.unwrap_or(0);
    let recommends = args.flag("--recommends");
    args.end()?;
    let sets: Vec<&str> = match &one {
        Some(one) => vec![one],
        None => SETS.iter().skip(skip).copied().collect(),
    };
    let kiln = match kiln {
        Some(kiln) => kiln,
        None => Setting::build(&[])?.kiln,
    };
    let folder = Folder::new()?;
    let choice = Choice {
        kiln,
        project: folder.make("project")?,
        store: folder.make("store")?,
        chroot: folder.make("chroot")?,
        recommends,
    };
    choice.define(&suite, &mirror, &sets)?;
    choice.debootstrap(&suite, &mirror)?;
    let base = choice
        .kiln("base", &Packages::new())?
        .map_err(|said| AptChoiceError::Failed {
            what: "kiln lock".to_owned(),
            said,
        })?;
    choice.install(&base)?;
    let mut different = 0;
    for (number, set) in sets.iter().enumerate() {
        let apt = choice.apt(set)?;
        let kiln = choice.kiln(&format!("set-{number}"), &base)?;
        let line = match (apt, kiln) {
            (Err(_), Err(_)) => "both refuse it".to_owned(),
            (Err(said), Ok(_)) => format!("DIFFERENT: apt refuses it: {said}"),
            (Ok(_), Err(said)) => format!("DIFFERENT: kiln refuses it: {said}"),
            (Ok(apt), Ok(kiln)) if apt == kiln => format!("{} packages", apt.len()),
            (Ok(apt), Ok(kiln)) => {
                let only = |one: &Packages, other: &Packages| {
                    let mut all = Vec::new();
                    for (name, version) in one {
                        if other.get(name) != Some(version) {
                            all.push(format!("{name} {version}"));
                        }
                    }
                    all.join(", ")
                };
                format!(
                    "DIFFERENT: only apt: {}; only kiln: {}",
                    only(&apt, &kiln),
                    only(&kiln, &apt)
                )
            }
        };
        different += usize::from(line.starts_with("DIFFERENT"));
        println!("{set}: {line}");
    }
    println!(
        "{} of {} sets are apt's",
        sets.len() - different,
        sets.len()
    );
    match different {
        0 => Ok(()),
        different => Err(AptChoiceError::Different(different)),
    }
}

fn io(what: &Path) -> impl FnOnce(std::io::Error) -> AptChoiceError {
    let what = what.display().to_string();
    move |source| AptChoiceError::Io { what, source }
}

/// Removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, AptChoiceError> {
        let path = std::env::temp_dir().join(format!("apt-choice-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(io(&path))?;
        Ok(Self(path))
    }

    fn make(&self, name: &str) -> Result<PathBuf, AptChoiceError> {
        let path = self.0.join(name);
        fs::create_dir_all(&path).map_err(io(&path))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left: {error}", self.0.display());
        }
    }
}

struct Choice {
    kiln: PathBuf,
    project: PathBuf,
    store: PathBuf,
    chroot: PathBuf,
    recommends: bool,
}

/// What a command says, or as an error what it says when it fails.
fn said(command: &mut Command) -> Result<Result<String, String>, AptChoiceError> {
    let program = PathBuf::from(command.get_program());
    let output = command.output().map_err(io(&program))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    Ok(if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    })
}

impl Choice {
    fn define(&self, suite: &str, mirror: &str, sets: &[&str]) -> Result<(), AptChoiceError> {
        let mut text = "project = \"choice\"\n".to_owned();
        let sets = sets.iter().enumerate();
        let sets = sets.map(|(number, set)| (format!("set-{number}"), *set));
        for (name, set) in std::iter::once(("base".to_owned(), "")).chain(sets) {
            let mut names: Vec<&str> = set.split_whitespace().collect();
            // The chroot has it.
            names.push("apt");
            text.push_str(&format!(
                "image \"{name}\" {{\n  version = \"1\"\n  debian {{\n    suite = \"{suite}\"\n    mirror = \"{mirror}\"\n    packages = {names:?}\n    recommends = {}\n  }}\n}}\n",
                self.recommends
            ));
        }
        let path = self.project.join("kiln.hcl");
        fs::write(&path, text).map_err(io(&path))
    }

    /// A chroot whose apt knows what the archive has.
    fn debootstrap(&self, suite: &str, mirror: &str) -> Result<(), AptChoiceError> {
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--quiet", "--variant=apt", "--skip=cleanup/apt", suite])
            .arg(&self.chroot)
            .arg(format!("deb {mirror} {suite} main"));
        if !kiln_model::is_rolling(suite) {
            let fixes = mirror.trim_end_matches('/');
            command
                .arg(format!("deb {mirror} {suite}-updates main"))
                .arg(format!("deb {fixes}-security {suite}-security main"));
        }
        self.succeed("mmdebstrap", &mut command).map(drop)
    }

    fn succeed(&self, what: &str, command: &mut Command) -> Result<String, AptChoiceError> {
        said(command)?.map_err(|said| AptChoiceError::Failed {
            what: what.to_owned(),
            said,
        })
    }

    fn chroot(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.chroot).arg(program);
        command.env_clear();
        command.envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("LC_ALL", "C.UTF-8"),
        ]);
        command
    }

    /// Makes apt believe that just `packages` are there.
    fn install(&self, packages: &Packages) -> Result<(), AptChoiceError> {
        let mut show = self.chroot("apt-cache");
        show.arg("show");
        show.args(
            packages
                .iter()
                .map(|(name, version)| format!("{name}={version}")),
        );
        let text = self.succeed("apt-cache show", &mut show)?;
        let status = text
            .split("\n\n")
            .map(|paragraph| format!("{}\nStatus: install ok installed\n\n", paragraph.trim_end()))
            .collect::<String>();
        let path = self.chroot.join("status");
        fs::write(&path, status).map_err(io(&path))
    }

    fn apt(&self, set: &str) -> Result<Result<Packages, String>, AptChoiceError> {
        let mut words: Vec<&str> = set.split_whitespace().collect();
        // As a lock has them; which is the first may matter.
        words.sort_unstable();
        let mut command = self.chroot("apt-get");
        command
            .args(["-q", "-s", "-o", "Dir::State::status=/status", "-o"])
            .arg(format!("APT::Install-Recommends={}", self.recommends))
            .arg("install")
            .args(&words);
        let text = match said(&mut command)? {
            Ok(text) => text,
            Err(said) => return Ok(Err(said)),
        };
        // `Inst NAME (VERSION ARCHIVES [ARCH]) …`
        let mut packages = Packages::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("Inst ")) {
            let mut words = line.split_whitespace();
            let (name, version) = (words.next(), words.find(|word| word.starts_with('(')));
            if let (Some(name), Some(version)) = (name, version) {
                let version = version.trim_start_matches('(');
                packages.insert(name.to_owned(), version.to_owned());
            }
        }
        Ok(Ok(packages))
    }

    /// What kiln takes for an image, without those of `base`.
    fn kiln(
        &self,
        image: &str,
        base: &Packages,
    ) -> Result<Result<Packages, String>, AptChoiceError> {
        let mut command = Command::new(&self.kiln);
        command
            .args(["lock", image])
            .env("KILN_ROOT", &self.store)
            .current_dir(&self.project);
        if let Err(said) = said(&mut command)? {
            return Ok(Err(said));
        }
        let path = self.project.join("kiln.lock");
        let text = fs::read(&path).map_err(io(&path))?;
        // Nothing of one set is kept for another.
        fs::remove_file(&path).map_err(io(&path))?;
        let lock: Lock = serde_json::from_slice(&text).map_err(AptChoiceError::Lock)?;
        let packages = lock.images.into_values().flat_map(|image| image.packages);
        let packages = packages.map(|Package { name, version }| (name, version));
        Ok(Ok(packages
            .filter(|(name, _)| !base.contains_key(name))
            .collect()))
    }
}
