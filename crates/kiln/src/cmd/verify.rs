//! `kiln verify`: bakes an image again from the commit that it was baked from, in other circumstances, and says what differs.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_bake::{Circumstances, Difference, Lock, MEDIA_IN_TOTO, compare, static_programs};
use kiln_model::{Digest, ImageSpec};
use kiln_oci::Store;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::rebake::{Rebake, Rebaked};
use crate::definition::Definition;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::{self, Audience};
use crate::settings::DefinitionSettings;
use crate::{args, definition, git, rollout, settings};

/// More than a year, so that year, month, day, weekday and hour are others; forward, so that no file is of the future.
const MOVED: i32 = 400 * 86_400 + 26_009;

#[derive(Serialize)]
struct Answer {
    image: String,
    digest: Digest,
    commit: String,
    rebaked: Digest,
    same: bool,
    differences: Vec<Difference>,
    /// Programs that the moved clock did not reach.
    static_programs: Vec<String>,
}

/// What the provenance says of the bake.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provenance {
    external_parameters: External,
    internal_parameters: Internal,
}

#[derive(Deserialize)]
struct External {
    image: Option<String>,
    commit: Option<String>,
    definition: Option<PathBuf>,
    #[serde(default)]
    dirty: bool,
}

#[derive(Deserialize)]
struct Internal {
    lock: Option<Digest>,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    name: String,
}

pub(crate) fn run(args: args::Verify) -> Result<Exit, Failure> {
    settings::need_root("`kiln verify`")?;
    kiln_engine::Engine::check()?;
    let root = settings::root(args.root)?;
    let store = Store::open_existing(&root)?;
    let digest = store.resolve(&args.image)?;
    let provenance = provenance(&store, &digest, &args.image)?;
    let work = Work::new(&root)?;
    let audience = Audience::of(args.json.json);
    let settings = DefinitionSettings::from(args.definition);
    let answer = Interrupts::catch()?.during(
        || {
            again(
                &store,
                &args.image,
                digest,
                &provenance,
                settings,
                &work,
                audience,
            )
        },
        || "nothing of the second bake is kept".to_owned(),
    )?;
    let exit = if answer.same {
        Exit::Done
    } else {
        Exit::Failed
    };
    match audience {
        Audience::Program => output::json(&answer)?,
        Audience::Person => output::line(&text(&answer))?,
    }
    Ok(exit)
}

fn refused(image: &str, why: impl Into<String>, help: impl Into<String>) -> Failure {
    Failure::NotVerifiable {
        image: image.to_owned(),
        why: why.into(),
        help: help.into(),
    }
}

/// The newest of a clean commit.
fn provenance(store: &Store, digest: &Digest, image: &str) -> Result<Provenance, Failure> {
    let mut found = None;
    let mut is_there = false;
    for referrer in store.referrers(digest)? {
        if referrer.artifact_type != MEDIA_IN_TOTO {
            continue;
        }
        let document = store.referrer_document(&referrer.digest)?;
        let statement: Value = serde_json::from_slice(&document).unwrap_or_default();
        let definition = &statement["predicate"]["buildDefinition"];
        is_there = true;
        if !definition["buildType"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("/bake/v1"))
        {
            continue;
        }
        if let Ok(provenance) = serde_json::from_value::<Provenance>(definition.clone()) {
            found = Some(provenance);
            if found
                .as_ref()
                .is_some_and(|one| !one.external_parameters.dirty)
            {
                break;
            }
        }
    }
    match found {
        None if is_there => Err(refused(
            image,
            "it was not baked of a definition",
            "bake its Dockerfile again with `--no-cache` and another tag, and compare with `kiln diff`",
        )),
        None => Err(Failure::NoDocument {
            image: image.to_owned(),
            what: "provenance",
        }),
        Some(one) if one.external_parameters.dirty => Err(refused(
            image,
            "it was baked of files that no commit has",
            "commit the definition and what it copies, bake again, and verify that image",
        )),
        Some(one) => Ok(one),
    }
}

fn again(
    store: &Store,
    image: &str,
    digest: Digest,
    provenance: &Provenance,
    settings: DefinitionSettings,
    work: &Work,
    audience: Audience,
) -> Result<Answer, Failure> {
    let External {
        image: name,
        commit,
        definition,
        dirty: _,
    } = &provenance.external_parameters;
    let (Some(name), Some(commit)) = (name, commit) else {
        return Err(refused(
            image,
            "its provenance names no commit",
            "bake it again",
        ));
    };
    let here = settings.folder().to_owned();
    let path = definition.clone().unwrap_or_else(|| "kiln.hcl".into());
    let file = path.file_name().unwrap_or_default();
    let prefix = path.parent().unwrap_or(Path::new(""));
    let source = work.folder("source")?;
    let is_there =
        git::check_out(&here, commit, prefix, &source).map_err(|source| Failure::Commit {
            commit: commit.clone(),
            source,
        })?;
    if !is_there {
        return Err(refused(
            image,
            format!("{} is in no Git repository", here.display()),
            "go to the repository that the image was baked from, or name its definition with --file",
        ));
    }
    let read = definition::read(DefinitionSettings {
        file: source.join(file),
        ..settings
    })?;
    let spec = read
        .spec
        .images
        .iter()
        .find(|(known, _)| known.as_str() == name);
    let Some((_, spec)) = spec else {
        let help = "was it baked with other variables? give them with --var";
        return Err(refused(
            image,
            format!("its commit has no image `{name}`"),
            help,
        ));
    };
    let spec = ImageSpec {
        // They say nothing of what is in it.
        tests: Vec::new(),
        ..spec.clone()
    };
    let lock = lock(&read, &here, &spec, provenance, image)?;
    let root = work.folder("root")?;
    let packages = Store::open(&root)?;
    for package in lock.packages().filter(|package| store.has(package)) {
        packages.put_file(&store.blob_path(&package))?;
    }
    audience.progress(&format!(
        "{image}: baking commit {} again",
        &commit[..12.min(commit.len())]
    ))?;
    let begun = rollout::now();
    let rebaked = bake(
        &Rebake {
            root: root.clone(),
            context: source.clone(),
            image: spec,
            lock: lock.to_string(),
            move_clock: MOVED,
        },
        work,
    )?;
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let seconds = |at: kiln_model::Timestamp| i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    // What the first bake saw is of some time before, which nothing says exactly.
    let first = store
        .images()?
        .into_iter()
        .find(|entry| entry.digest == digest);
    let first = first.map_or(begun, |entry| kiln_model::Timestamp(entry.created_ms));
    let circumstances = Circumstances {
        times: (seconds(first), seconds(rollout::now())),
        moved: i64::from(MOVED),
        paths: [work.0.as_path(), store.dir(), &here]
            .map(|path| path.display().to_string())
            .into_iter()
            .filter(|path| path.len() > 3)
            .collect(),
        host,
        processors: (
            std::thread::available_parallelism().map_or(1, usize::from),
            rebaked.processors,
        ),
    };
    let steps: Vec<String> = provenance
        .internal_parameters
        .steps
        .iter()
        .map(|step| step.name.clone())
        .collect();
    let failed = |source| Failure::Bake {
        image: image.to_owned(),
        source: Box::new(source),
    };
    let differences = if rebaked.digest == digest {
        Vec::new()
    } else if rebaked.steps != steps {
        return Err(refused(
            image,
            format!(
                "its commit has other steps than it was baked of: {}, and not {}",
                rebaked.steps.join("; "),
                steps.join("; ")
            ),
            "was it baked with other variables? give them with --var",
        ));
    } else {
        let second = Store::open(&root)?;
        compare(
            (store, &digest),
            (&second, &rebaked.digest),
            &steps,
            &circumstances,
        )
        .map_err(failed)?
    };
    let runs = steps.iter().any(|step| step.starts_with("run "));
    Ok(Answer {
        image: image.to_owned(),
        digest,
        commit: commit.clone(),
        same: rebaked.digest == digest,
        rebaked: rebaked.digest,
        differences,
        static_programs: if runs {
            static_programs(store, &digest).map_err(failed)?
        } else {
            Vec::new()
        },
    })
}

/// The lock that the image was baked with: that of the commit, or the present one beside the definition.
fn lock(
    read: &Definition,
    here: &Path,
    spec: &ImageSpec,
    provenance: &Provenance,
    image: &str,
) -> Result<Lock, Failure> {
    let wanted = provenance.internal_parameters.lock;
    for folder in [read.folder.as_path(), here] {
        let path = folder.join("kiln.lock");
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let lock = Lock::parse(&text).map_err(|error| Failure::Lock {
            path,
            source: Box::new(error),
        })?;
        if lock.digest_of(spec) == wanted {
            return Ok(lock);
        }
    }
    Err(refused(
        image,
        "neither its commit nor the present folder has the kiln.lock that it was baked with",
        "commit kiln.lock with the definition, bake again, and verify that image",
    ))
}

/// In a process of its own, of which nothing is as in the one that baked first.
fn bake(rebake: &Rebake, work: &Work) -> Result<Rebaked, Failure> {
    let path = work.0.join("rebake.json");
    let failed = |source| Failure::Root {
        path: path.clone(),
        source,
    };
    let json = serde_json::to_vec(rebake).map_err(|error| failed(error.into()))?;
    std::fs::write(&path, json).map_err(failed)?;
    let exe = std::env::current_exe().map_err(Failure::Spawn)?;
    let mut child = Command::new(exe)
        .arg("rebake")
        .arg(&path)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/nonexistent")
        .env("HOME", "/nonexistent")
        .env("USER", "somebody")
        .env("LOGNAME", "somebody")
        .env("TZ", "Pacific/Chatham")
        .env("LANG", "tr_TR.UTF-8")
        .env("LC_ALL", "tr_TR.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Failure::Spawn)?;
    let mut said = String::new();
    let read = child
        .stdout
        .take()
        .map(|mut out| out.read_to_string(&mut said));
    let status = child.wait().map_err(Failure::Spawn)?;
    read.transpose().map_err(Failure::Spawn)?;
    let rebaked = serde_json::from_str(&said).ok();
    rebaked.filter(|_| status.success()).ok_or(Failure::Rebake)
}

/// A folder for all of it, gone afterwards.
struct Work(PathBuf);

impl Work {
    fn new(root: &Path) -> Result<Self, Failure> {
        let all = root.join("work");
        for entry in std::fs::read_dir(&all).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix("verify-");
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                // One that was killed has left it.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let path = all.join(format!("verify-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|source| Failure::Root {
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }

    fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.0.join(name);
        match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(Failure::Root { path, source }),
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What can't be removed now, the next one removes.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(answer: &Answer) -> String {
    let Answer {
        image,
        digest,
        commit,
        rebaked,
        same,
        differences,
        static_programs,
    } = answer;
    let commit = &commit[..12.min(commit.len())];
    let mut lines = vec![if *same {
        format!("{image}: commit {commit} gives the same image again, {digest}")
    } else {
        format!(
            "{image}: commit {commit} gives another image, {} and not {}",
            rebaked.short(),
            digest.short()
        )
    }];
    for Difference { step, path, cause } in differences {
        let step = step
            .as_ref()
            .map_or("the configuration", |step| step.as_str());
        lines.push(format!("  {path}  (of `{step}`)\n    {cause}"));
    }
    lines.push(
        "otherwise this time: path, user, locale, time zone, umask, processors, clock, cache"
            .to_owned(),
    );
    if !static_programs.is_empty() {
        lines.push(format!(
            "not reached by the moved clock, since they are linked statically: {}",
            static_programs.join(", ")
        ));
    }
    lines.join("\n")
}
