//! `bench debian`: a Debian root file system by kiln and by mmdebstrap, in turn, with the packages at hand and without.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::bake::{Keep, forget_all_but_packages};
use super::builders::Workshop;
use super::machine::{Cost, measure, typical};
use super::report::{Section, shown};
use super::world::WorldError;
use super::{BenchError, Setting};
use crate::args::Args;

const MMDEBSTRAP: &str = "/usr/bin/mmdebstrap";

/// What `--variant=minbase` has besides the essential packages: apt, and those of priority `required` with what they need.
const MINBASE: &[&str] = &[
    "apt",
    "e2fsprogs",
    "libpam-runtime",
    "mawk",
    "mount",
    "passwd",
    "tzdata",
    "usrmerge",
    "util-linux-extra",
];

/// With what they need about a hundred packages.
const MORE: &[&str] = &[
    "build-essential",
    "ca-certificates",
    "curl",
    "git",
    "nginx-light",
    "postgresql-client",
    "python3",
];

/// What kiln begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtHand {
    Nothing,
    /// The lock and the .deb files.
    Archives,
    /// Those, and what an earlier bake keeps beside them.
    Repacked,
    /// The same, and another image of the same base.
    Base,
}

const AT_HAND: [AtHand; 4] = [
    AtHand::Nothing,
    AtHand::Archives,
    AtHand::Repacked,
    AtHand::Base,
];

/// The image that is measured, and the other one.
const MEASURED: &str = "base";
const OTHER: &str = "other";

/// One root file system by both.
struct Case {
    name: &'static str,
    packages: &'static [&'static str],
    project: PathBuf,
    root: PathBuf,
    /// Of mmdebstrap's .deb files.
    archives: PathBuf,
}

pub(super) fn run(mut args: Args) -> Result<(), BenchError> {
    let runs = args.count("--runs", 5)?;
    args.end()?;
    if !Path::new(MMDEBSTRAP).exists() {
        return Err(BenchError::NotInstalled {
            program: MMDEBSTRAP,
            packages: "mmdebstrap",
        });
    }
    let setting = Setting::build(&[])?;
    let workshop = Workshop::new()?;
    let mut section = Section {
        command: format!("bench debian --runs {runs}"),
        head: [
            "wall / processor time",
            "packages",
            "runs",
            "kiln",
            "mmdebstrap",
            "ratio",
        ]
        .map(str::to_owned)
        .into(),
        ..Section::default()
    };
    for (name, packages) in [("minbase", &[][..]), ("minbase and more", MORE)] {
        let case = Case::new(&workshop, name, packages)?;
        let mut count = None;
        // The other image of the first case is the same one.
        let at_hand = AT_HAND.iter().copied();
        for at_hand in at_hand.filter(|at| *at != AtHand::Base || !packages.is_empty()) {
            let cached = at_hand != AtHand::Nothing;
            let mut kiln = Vec::new();
            let mut mmdebstrap = Vec::new();
            for _ in 0..runs {
                kiln.push(case.kiln(&setting.kiln, at_hand)?);
                mmdebstrap.push(case.mmdebstrap(&workshop, cached)?);
            }
            let packages = match count {
                Some(packages) => packages,
                None => *count.insert(case.count()?),
            };
            let (kiln, mmdebstrap) = (typical(&kiln), typical(&mmdebstrap));
            let cell = |cost: &Cost| format!("{} / {}", shown(cost.wall), shown(cost.cpu));
            section.row([
                format!(
                    "{name}, {}",
                    match at_hand {
                        AtHand::Nothing => "packages from the mirror",
                        AtHand::Archives => "packages at hand",
                        AtHand::Repacked => "packages at hand, unpacked before",
                        AtHand::Base => "packages at hand, minbase baked before",
                    }
                ),
                packages.to_string(),
                runs.to_string(),
                cell(&kiln),
                cell(&mmdebstrap),
                format!(
                    "{:.2} / {:.2}",
                    kiln.wall.as_secs_f64() / mmdebstrap.wall.as_secs_f64(),
                    kiln.cpu.as_secs_f64() / mmdebstrap.cpu.as_secs_f64()
                ),
            ]);
        }
    }
    section.notes.push(
        "Wall time of the command (median) and processor time of the whole machine while it ran (mean), in turn. kiln bakes an image with its SBOM and its leak search, unpacks and configures everything anew, and keeps it in both of its forms; mmdebstrap writes an uncompressed tar (`--variant=minbase --include=…`). \"At hand\": kiln has the lock and the .deb files and asks nobody; mmdebstrap has the .deb files and fetches the indexes, which it cannot do without. \"Unpacked before\": kiln's store has also what it keeps of packages that any image was baked of, so that they are unpacked quickly; mmdebstrap keeps nothing more. \"Minbase baked before\": the base is another image's already, and what comes over it is unpacked and configured.".to_owned(),
    );
    section.publish("debian", &setting.documents())?;
    Ok(())
}

fn failed(what: &Path) -> impl FnOnce(std::io::Error) -> WorldError {
    let what = what.display().to_string();
    move |source| WorldError::Io { what, source }
}

impl Case {
    fn new(
        workshop: &Workshop,
        name: &'static str,
        packages: &'static [&'static str],
    ) -> Result<Self, WorldError> {
        let folder = workshop.folder.join(name.replace(' ', "-"));
        let case = Self {
            name,
            packages,
            project: folder.join("project"),
            root: folder.join("root"),
            archives: folder.join("archives"),
        };
        for folder in [&case.project, &case.root, &case.archives] {
            std::fs::create_dir_all(folder).map_err(failed(folder))?;
        }
        let image = |image: &str, packages: &[&str]| {
            let names: Vec<String> = MINBASE
                .iter()
                .chain(packages)
                .map(|name| format!("\"{name}\""))
                .collect();
            format!(
                "\nimage \"{image}\" {{\n  version = \"1\"\n  debian {{\n    suite    = \"bookworm\"\n    packages = [{}]\n  }}\n}}\n",
                names.join(", ")
            )
        };
        let definition = format!(
            "project = \"bench\"\n{}{}",
            image(MEASURED, packages),
            image(OTHER, &[])
        );
        let path = case.project.join("kiln.hcl");
        std::fs::write(&path, definition).map_err(failed(&path))?;
        Ok(case)
    }

    /// From nothing, or from the packages and the lock alone.
    fn kiln(&self, program: &Path, at_hand: AtHand) -> Result<Cost, WorldError> {
        let lock = self.project.join("kiln.lock");
        let store = self.root.join("store");
        let bake = |image: &str| {
            let mut command = Command::new(program);
            command
                .args(["bake", image])
                .current_dir(&self.project)
                .env("KILN_ROOT", &self.root);
            measure(&mut command)
        };
        match at_hand {
            AtHand::Archives => forget_all_but_packages(&store, &lock, Keep::Archives)?,
            AtHand::Repacked => forget_all_but_packages(&store, &lock, Keep::Repacked)?,
            AtHand::Base => {
                forget_all_but_packages(&store, &lock, Keep::Repacked)?;
                bake(OTHER)?;
            }
            AtHand::Nothing => {
                std::fs::remove_dir_all(&self.root).map_err(failed(&self.root))?;
                std::fs::create_dir_all(&self.root).map_err(failed(&self.root))?;
                if lock.exists() {
                    std::fs::remove_file(&lock).map_err(failed(&lock))?;
                }
            }
        }
        bake(MEASURED)
    }

    fn mmdebstrap(&self, workshop: &Workshop, cached: bool) -> Result<Cost, WorldError> {
        let out = workshop.folder.join("out.tar");
        let archives = self.archives.display();
        let mut command = Command::new(MMDEBSTRAP);
        command.args(["--quiet", "--variant=minbase"]);
        if !self.packages.is_empty() {
            command.arg(format!("--include={}", self.packages.join(",")));
        }
        if cached {
            // As its manual keeps packages between runs.
            command
                .args(["--skip=download/empty", "--skip=essential/unlink"])
                .arg("--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives/")
                .arg(format!(
                    "--setup-hook=sync-in {archives} /var/cache/apt/archives/"
                ))
                .arg(format!(
                    "--customize-hook=sync-out /var/cache/apt/archives {archives}"
                ));
        }
        command.arg("bookworm").arg(&out).args(sources()?);
        let empty = std::fs::read_dir(&self.archives)
            .map_err(failed(&self.archives))?
            .next()
            .is_none();
        if cached && empty {
            println!("{}: filling mmdebstrap's packages", self.name);
            measure(&mut command)?;
        }
        let cost = measure(&mut command)?;
        std::fs::remove_file(&out).map_err(failed(&out))?;
        Ok(cost)
    }

    /// How many packages the lock has.
    fn count(&self) -> Result<usize, WorldError> {
        let lock = self.project.join("kiln.lock");
        let text = std::fs::read_to_string(&lock).map_err(failed(&lock))?;
        Ok(text.matches("\"sha256\":").count())
    }
}

/// The machine's own sources, which kiln uses as well.
fn sources() -> Result<Vec<PathBuf>, WorldError> {
    let list = Path::new("/etc/apt/sources.list");
    let mut found: Vec<PathBuf> = list.exists().then(|| list.to_owned()).into_iter().collect();
    let folder = Path::new("/etc/apt/sources.list.d");
    if let Ok(entries) = std::fs::read_dir(folder) {
        for entry in entries {
            let path = entry.map_err(failed(folder))?.path();
            if path
                .extension()
                .is_some_and(|end| end == "list" || end == "sources")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
