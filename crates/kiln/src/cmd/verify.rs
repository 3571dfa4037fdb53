//! `kiln verify`: bakes an image again from the commit that it was baked from, in other circumstances, and says what differs.

mod again;
mod recorded;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_bake::{Circumstances, Difference, compare, static_programs};
use kiln_model::Digest;
use kiln_oci::Store;
use serde::Serialize;

use super::rebake::{Rebake, Rebaked};
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::{self, Audience};
use crate::settings::DefinitionSettings;
use crate::{args, named, rollout, settings};
use again::Again;

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
    /// Steps that used the network: they may give something else another day, whatever the rest does.
    used_network: Vec<String>,
    /// Whether the steps wrote to another file system.
    other_file_system: bool,
    /// Whether the steps' programs saw another time of day.
    other_clock: bool,
}

pub(crate) fn run(args: args::Verify) -> Result<Exit, Failure> {
    settings::need_root("`kiln verify`")?;
    kiln_engine::Engine::check()?;
    let root = settings::root(args.root)?;
    let store = Store::open_existing(&root)?;
    let digest = named::image(&store, &args.image)?;
    let recorded = recorded::find(&store, &digest, &args.image)?;
    let work = Work::new(&root)?;
    let audience = Audience::of(args.json.json);
    let settings = DefinitionSettings::from(args.definition);
    let bake = |move_clock| {
        let again = Again {
            store: &store,
            image: &args.image,
            recorded: &recorded,
            work: &work,
            move_clock,
        };
        verify(&again, digest, settings.clone(), audience)
    };
    let answer = Interrupts::catch()?.during(
        || {
            let answer = bake(Some(MOVED))?;
            if !answer
                .differences
                .iter()
                .any(Difference::is_of_moving_the_clock)
            {
                return Ok(answer);
            }
            audience.progress("a step saw how the clock is moved: once more, without that")?;
            bake(None)
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

fn verify(
    again: &Again<'_>,
    digest: Digest,
    settings: DefinitionSettings,
    audience: Audience,
) -> Result<Answer, Failure> {
    let Again {
        store,
        image,
        recorded,
        work,
        move_clock,
    } = *again;
    let Some(commit) = &recorded.external_parameters.commit else {
        let why = "its provenance names no commit";
        return Err(refused(image, why, "bake it again"));
    };
    let here = settings.folder().to_owned();
    let rebake = again.rebake(commit, settings)?;
    audience.progress(&format!(
        "{image}: baking commit {} again",
        &commit[..12.min(commit.len())]
    ))?;
    let begun = rollout::now();
    let rebaked = bake(&rebake, work)?;
    let failed = |source| Failure::Compare {
        what: format!("`{image}` and what it baked to now"),
        source: Box::new(source),
    };
    let steps = &recorded.internal_parameters.steps;
    let is_same = rebaked.digest == digest;
    if !is_same && !rebaked.steps.iter().eq(steps.iter().map(|step| &step.name)) {
        let told = steps.iter().map(|step| step.name.as_str());
        return Err(refused(
            image,
            format!(
                "its commit has other steps than it was baked of: {}, and not {}",
                rebaked.steps.join("; "),
                told.collect::<Vec<_>>().join("; ")
            ),
            "was it baked with other variables? give them with --var",
        ));
    }
    let used_network = rebaked.networked.clone().into_iter();
    let mut used_network: Vec<String> = used_network.chain(recorded.networked()).collect();
    used_network.sort();
    used_network.dedup();
    let mut differences = Vec::new();
    if !is_same {
        let circumstances = Circumstances {
            moved: move_clock.map_or(0, i64::from),
            ..circumstances(store, digest, work, &here, begun, &rebaked)
        };
        let second = Store::open(&rebake.root)?;
        let layers = store.image(&digest)?.layers;
        differences = compare(
            (store, &digest),
            (&second, &rebaked.digest),
            &recorded.steps_of(&layers),
            &circumstances,
        )
        .map_err(failed)?;
    }
    for difference in &mut differences {
        if let Some(step) = &difference.step
            && used_network.contains(step)
        {
            difference.cause += "; its step used the network, which may answer otherwise each time";
        }
    }
    let runs = steps
        .iter()
        .any(|step| step.name.starts_with("run ") || step.name.contains("RUN "));
    Ok(Answer {
        image: image.to_owned(),
        digest,
        commit: commit.clone(),
        same: is_same,
        rebaked: rebaked.digest,
        differences,
        static_programs: if runs {
            static_programs(store, &digest).map_err(failed)?
        } else {
            Vec::new()
        },
        used_network,
        other_file_system: rebaked.other_file_system,
        other_clock: move_clock.is_some(),
    })
}

/// What was otherwise. What the first bake saw is of some time before, which nothing says exactly.
fn circumstances(
    store: &Store,
    digest: Digest,
    work: &Work,
    here: &Path,
    begun: kiln_model::Timestamp,
    rebaked: &Rebaked,
) -> Circumstances {
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let seconds = |at: kiln_model::Timestamp| i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    let images = store.images().unwrap_or_default();
    let first = images.into_iter().find(|entry| entry.digest == digest);
    let first = first.map_or(begun, |entry| kiln_model::Timestamp(entry.created_ms));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Circumstances {
        times: (seconds(first), seconds(rollout::now())),
        moved: 0,
        paths: [work.0.as_path(), store.dir(), here]
            .map(|path| path.display().to_string())
            .into_iter()
            .filter(|path| path.len() > 3)
            .collect(),
        hosts: vec![host, super::rebake::HOST.to_owned()],
        processors: (processors, rebaked.processors),
    }
}

/// In a process of its own, of which nothing is as in the one that baked first.
fn bake(rebake: &Rebake, work: &Work) -> Result<Rebaked, Failure> {
    let path = work.0.join("rebake.json");
    let failed = |source| Failure::File {
        path: path.clone(),
        source,
    };
    let json = serde_json::to_vec(rebake).map_err(|error| failed(error.into()))?;
    kiln_fs::replace(&path, &json).map_err(failed)?;
    let exe = std::env::current_exe().map_err(Failure::Spawn)?;
    let output = Command::new(exe)
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
        .stderr(Stdio::inherit())
        .output()
        .map_err(Failure::Spawn)?;
    if !output.status.success() {
        return Err(Failure::Rebake);
    }
    serde_json::from_slice(&output.stdout).map_err(|error| Failure::File {
        path: PathBuf::from("what the second bake said"),
        source: error.into(),
    })
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
        used_network,
        other_file_system,
        other_clock,
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
    let file_system = if *other_file_system {
        "file system, "
    } else {
        ""
    };
    let clock = if *other_clock { "clock, " } else { "" };
    lines.push(format!(
        "otherwise this time: path, user, host name, {file_system}locale, time zone, umask, processors, {clock}cache"
    ));
    if *other_clock && !static_programs.is_empty() {
        lines.push(format!(
            "not reached by the moved clock, since they are not linked with GNU's C library: {}",
            static_programs.join(", ")
        ));
    }
    for step in used_network {
        lines.push(format!(
            "used the network, so that it may give something else another day: `{step}`"
        ));
    }
    lines.join("\n")
}
