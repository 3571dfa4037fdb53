//! The other front end: a Dockerfile's stages carried out over the same store, sandbox and cache as a definition's steps.
//!
//! A stage is baked when something needs it, so that what the target does not need never runs. Layers and configuration
//! are what BuildKit makes of the same instructions; times are those of the base at most, so that two bakes are one image.

mod added;
mod base;
mod caches;
mod config;
mod context;
mod contexts;
mod copy;
mod from;
mod mode;
mod mount_points;
mod mounts;
mod needs;
mod owner;
mod place;
mod platform;
mod run;
mod schedule;
mod scope;
mod source;
mod stage;
mod step;
mod unpack;
mod workdir;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use kiln_config::dockerfile::{Action, Complaint, Dockerfile, DockerfileError, Ignore, LintInputs};
use kiln_engine::StepNetwork;
use kiln_git::Access;
use kiln_model::{Digest, TestSpec, Timestamp};
use kiln_oci::{ImageConfig, Layer, Store};
use kiln_registry::Registries;

use crate::arch;
use crate::commit::{Checkout, CommitInfo};
use crate::error::BakeError;
use crate::explain;
use crate::finish::{describe, give_tag};
use crate::granted::{Granted, PROXIES};
use crate::image_tests::{self, Subject};
use crate::late::Late;
use crate::leaks::{self, Finding};
use crate::listing::Listings;
use crate::progress::{BakeProgress, StepReport};
use crate::provenance::{self, Done, Material, ResolvedBase};
use crate::scratch::sweep;
use crate::seen::Seen;
pub use base::known_base;
pub use context::{ContextFolder, ContextRepository};
pub use needs::images_named;
use needs::predefined;
use schedule::{Schedule, lock};
use scope::Scope;

pub struct DockerfileRequest<'a> {
    pub dockerfile: &'a Dockerfile,
    pub context: &'a Path,
    pub ignore: &'a Ignore,
    pub tag: Tagging<'a>,
    /// All of them have to pass before the image gets its tag.
    pub tests: &'a [TestSpec],
    pub build_args: &'a BTreeMap<String, String>,
    /// None: the last stage.
    pub target: Option<&'a str>,
    /// What a name of an image in the Dockerfile means: a tag or digest of the store, an archive (`oci:DIR` and the like),
    /// or another name.
    pub bases: &'a BTreeMap<String, String>,
    pub registries: &'a Registries,
    /// Those of `bases` that are in place of a stage of their name, too.
    pub named_images: &'a BTreeSet<String>,
    /// Folders that the Dockerfile knows by a name.
    pub contexts: &'a BTreeMap<String, PathBuf>,
    /// Where contexts are of repositories of the network: by name, that of the context itself with an empty one.
    pub repositories: &'a BTreeMap<String, ContextRepository>,
    /// Secrets and the like, and what a RUN may do.
    pub granted: &'a Granted,
    /// What looks secret and is none, as `RULE:PLACE`.
    pub allow_leaks: &'a [String],
    /// Has to be this machine's.
    pub platform: Option<&'a str>,
    /// Does every step anew.
    pub no_cache: bool,
    /// For what is made on the way; on the store's file system.
    pub work: &'a Path,
    /// Where the Dockerfile is in a repository, when no definition names it.
    pub checkout: Late<'a, Checkout>,
    /// Of the context's folders, with whoever looks through them beside the bake.
    pub listings: &'a Listings,
    pub move_clock: Option<OtherClock<'a>>,
}

/// A clock for the steps' programs, to find out what depends on it.
#[derive(Clone, Copy, Debug)]
pub struct OtherClock<'a> {
    /// Seconds that it is moved by.
    pub moved: i32,
    /// Steps, by name, that have the machine's all the same: what is fetched is signed for a time.
    pub not_for: &'a BTreeSet<String>,
}

impl DockerfileRequest<'_> {
    /// What the Dockerfile is warned of before anything is baked.
    pub fn warnings(&self) -> Vec<Complaint> {
        let file = self.dockerfile;
        let last = file.stages.len() - 1;
        let target = self
            .target
            .map_or(Some(last), |name| file.stage(name, last + 1));
        file.lint(&LintInputs {
            build_args: self.build_args,
            target,
            arch: arch::arch(),
            ignore: self.ignore,
            base: None,
        })
    }
}

/// The tag that the image gets.
#[derive(Clone, Copy, Debug)]
pub enum Tagging<'a> {
    /// Which may be taken by another image, and is then an error.
    As(&'a str),
    /// One of a definition's.
    Version {
        image: &'a str,
        version: &'a str,
        commit: Late<'a, CommitInfo>,
    },
}

impl<'a> Tagging<'a> {
    /// What the image is called while it has no tag.
    fn name(&self) -> &'a str {
        match self {
            Self::As(name) | Self::Version { image: name, .. } => name,
        }
    }

    /// What all of its versions are called: each tag is given once.
    fn versions(&self) -> &'a str {
        let name = self.name();
        // What is before the last `/` may be a host with a port.
        let path = name.rfind('/').map_or(0, |at| at + 1);
        match name[path..].find(':') {
            Some(at) => &name[..path + at],
            None => name,
        }
    }

    fn commit(&self) -> Option<CommitInfo> {
        match self {
            Self::As(_) => None,
            Self::Version { commit, .. } => commit.get(),
        }
    }

    /// What is written before the excuse of a leak.
    fn excuse(&self) -> &'static str {
        match self {
            Self::As(_) => "--allow-leak",
            Self::Version { .. } => "image { allow_leak = [",
        }
    }
}

pub struct BakedDockerfile {
    pub tag: String,
    pub digest: Digest,
    pub steps: Vec<StepReport>,
    pub config: ImageConfig,
    /// In the order in which they were found.
    pub warnings: Vec<Complaint>,
    /// The images that it stands on or took from, by name.
    pub bases: Vec<ResolvedBase>,
    /// Steps that used the network, now or when they were cached: they may give something else another day.
    pub networked: Vec<String>,
}

/// A stage that was carried out, or an image.
#[derive(Clone)]
struct Stage {
    layers: Vec<Layer>,
    config: ImageConfig,
    /// The ARGs, which a stage on top of this one has too.
    args: BTreeMap<String, String>,
    /// The names of those ARGs, also without a value.
    declared: BTreeSet<String>,
    /// No time in its layers is later: seconds since 1970.
    date: i64,
    based: Based,
}

/// What of a stage is its base's.
#[derive(Clone, Default)]
struct Based {
    layers: usize,
    /// What looks secret in its configuration.
    said: Vec<Finding>,
}

struct Bake<'a> {
    store: &'a Store,
    request: &'a DockerfileRequest<'a>,
    progress: SyncSender<BakeProgress>,
    /// The ARGs before the first FROM.
    globals: BTreeMap<String, String>,
    /// Of everything that is made, in place of the base's.
    date: Option<i64>,
    schedule: Schedule,
    /// Made for the first step that has one.
    network: Mutex<Option<StepNetwork>>,
    seen: Mutex<Seen>,
    notes: Mutex<Notes>,
}

/// What is said about the bake at its end. The numbers are those of stages: which of two is carried out first is chance.
#[derive(Default)]
struct Notes {
    reports: Vec<(usize, StepReport)>,
    warnings: Vec<(usize, Complaint)>,
    networked: Vec<(usize, String)>,
    done: Vec<(usize, Done)>,
    /// By the layer that has it.
    given: BTreeMap<Digest, Vec<Finding>>,
    used_args: BTreeSet<String>,
    bases: BTreeSet<ResolvedBase>,
    /// By ADD.
    fetched: BTreeSet<Material>,
    /// Of contexts that no commit has, by their names: what each instruction took.
    taken: BTreeMap<String, BTreeSet<Digest>>,
}

/// Arguments that need no ARG, besides [`PROXIES`].
const EPOCH: &str = "SOURCE_DATE_EPOCH";
const PREDECLARED: [&str; 2] = [EPOCH, "BUILDKIT_SANDBOX_HOSTNAME"];
/// What begins so is for who bakes, and no ARG has to take it.
const OF_BUILDER: &str = "BUILDKIT_";

/// Bakes the Dockerfile's target. To be called from a thread that lives until the end.
pub fn bake_dockerfile(
    store: &Store,
    request: &DockerfileRequest<'_>,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<BakedDockerfile, BakeError> {
    let file = request.dockerfile;
    let target = match request.target {
        None => file.stages.len() - 1,
        Some(name) => file.stage(name, file.stages.len()).ok_or_else(|| {
            let names: Vec<_> = file
                .stages
                .iter()
                .flat_map(|stage| stage.name.clone())
                .collect();
            let last = file.stages[file.stages.len() - 1].from.span.clone();
            file.error(Complaint::error(
                last,
                format!("the Dockerfile has no stage `{name}`"),
                match &names[..] {
                    [] => "none of its stages has a name: FROM IMAGE AS NAME gives one".to_owned(),
                    names => format!("it has: {}", names.join(", ")),
                },
            ))
        })?,
    };
    if let Some(error) = file.refused_for(&request.warnings()) {
        return Err(BakeError::Dockerfile(error));
    }
    if let Some(wanted) = request.platform.filter(|wanted| !platform::is_here(wanted)) {
        let place = file.stages[target].from.span.clone();
        return Err(BakeError::Dockerfile(
            file.error(platform::another(place, wanted)),
        ));
    }
    sweep(request.work);
    // Who bakes waits for who hears: a step may say more than memory holds.
    let (heard, told) = mpsc::sync_channel(1024);
    let mut bake = Bake {
        store,
        request,
        progress: heard,
        globals: BTreeMap::new(),
        date: date(request, target)?,
        schedule: Schedule::new(file.stages.len()),
        network: Mutex::new(None),
        seen: Mutex::new(Seen::load(
            store,
            request.context,
            request.tag.versions(),
            SystemTime::now(),
            request.listings,
        )),
        notes: Mutex::default(),
    };
    bake.set_globals()?;
    let (stage, seen, notes) = std::thread::scope(|scope| {
        let baking = scope.spawn(move || {
            let stage = bake.all(target)?;
            let Bake { seen, notes, .. } = bake;
            Ok::<_, BakeError>((stage, seen, notes))
        });
        // Until the bake, and with it the other end, is gone.
        told.into_iter().for_each(&mut *progress);
        baking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    lock(&seen).keep(store);
    let Notes {
        mut reports,
        mut warnings,
        mut networked,
        mut done,
        given,
        used_args,
        bases,
        fetched,
        taken,
    } = std::mem::take(&mut *lock(&notes));
    // Within a stage they are in its order.
    reports.sort_by_key(|(stage, _)| *stage);
    warnings.sort_by_key(|(stage, _)| *stage);
    networked.sort_by_key(|(stage, _)| *stage);
    done.sort_by_key(|(stage, _)| *stage);
    let done: Vec<Done> = done.into_iter().map(|(_, done)| done).collect();
    let networked: Vec<String> = networked.into_iter().map(|(_, step)| step).collect();
    let mut steps: Vec<StepReport> = reports.into_iter().map(|(_, report)| report).collect();
    // Each version has a tag of its own, and is explained by the one before.
    explain::fill(store, request.tag.versions(), &mut steps)?;
    let mut warnings: Vec<Complaint> = warnings.into_iter().map(|(_, warning)| warning).collect();
    warnings.retain(|warning| warning.rule.is_none_or(|rule| file.check.asks(rule)));
    if let Some(error) = file.refused_for(&warnings) {
        return Err(BakeError::Dockerfile(error));
    }
    let unused: Vec<&str> = request
        .build_args
        .keys()
        .map(String::as_str)
        .filter(|name| !used_args.contains(*name))
        .filter(|name| !PROXIES.contains(name) && !PREDECLARED.contains(name))
        .filter(|name| !name.starts_with(OF_BUILDER))
        .collect();
    if !unused.is_empty() {
        let span = file.stages[target].from.span.clone();
        warnings.push(Complaint::warning(
            "UnusedBuildArg",
            span,
            format!("no ARG takes the build argument {}", unused.join(", ")),
            "is its name right?",
        ));
    }
    check_leaks(store, request, &stage, &done, &given)?;
    let digest = store.put_image(&stage.config, &stage.layers)?;
    let subject = Subject {
        store,
        work: request.work,
        name: request.tag.name(),
        digest,
        config: &stage.config,
        layers: &stage.layers,
    };
    let (tests, passed) = image_tests::run(&subject, request.tests, progress)?;
    steps.extend(tests);
    describe(store, request.work, &digest)?;
    let bases: Vec<ResolvedBase> = bases.into_iter().collect();
    let (commit, checkout) = (request.tag.commit(), request.checkout.get());
    let is_committed = checkout.as_ref().is_some_and(|found| !found.dirty)
        || commit.as_ref().is_some_and(|found| !found.dirty);
    let contexts = contexts::materials(request, is_committed, &taken)?;
    let origin = provenance::DockerfileOrigin {
        name: request.tag.name(),
        dockerfile: Digest::of(file.bytes()),
        target: request.target,
        build_args: request.build_args,
        bases: &bases,
        fetched: &fetched,
        networked: &networked,
        commit: commit.as_ref(),
        checkout: checkout.as_ref(),
        granted: request.granted,
        contexts: request.contexts.keys().collect(),
        context_materials: contexts,
        allow_leaks: request.allow_leaks,
    };
    let statement = origin.statement(&digest, &done, &passed)?;
    store.attach(&digest, provenance::MEDIA_IN_TOTO, &statement)?;
    let tag = match request.tag {
        Tagging::As(tag) => {
            store.tag(tag, &digest)?;
            tag.to_owned()
        }
        Tagging::Version { image, version, .. } => {
            give_tag(store, image, version, commit.as_ref(), &digest)?
        }
    };
    Ok(BakedDockerfile {
        tag,
        digest,
        steps,
        config: stage.config.clone(),
        warnings,
        bases,
        networked,
    })
}

/// The date that the caller wants (<https://reproducible-builds.org/specs/source-date-epoch/>), in seconds since 1970.
fn date(request: &DockerfileRequest<'_>, target: usize) -> Result<Option<i64>, BakeError> {
    let file = request.dockerfile;
    let Some(text) = request
        .build_args
        .get(EPOCH)
        .filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    let seconds = text.parse().ok().filter(|seconds| *seconds >= 0);
    seconds.map(Some).ok_or_else(|| {
        let from = file.stages[target].from.span.clone();
        BakeError::Dockerfile(file.error(Complaint::error(
            from,
            format!("the build argument {EPOCH} is `{text}`, and no number of seconds"),
            "give seconds since 1970: --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)",
        )))
    })
}

/// What the Dockerfile adds to its base; what the base itself gives away is its publisher's.
fn check_leaks(
    store: &Store,
    request: &DockerfileRequest<'_>,
    stage: &Stage,
    done: &[Done],
    given: &BTreeMap<Digest, Vec<Finding>>,
) -> Result<(), BakeError> {
    let layers = stage.layers.get(stage.based.layers..).unwrap_or_default();
    let step_of = |layer: &Layer| {
        let step = done.iter().find(|done| done.diff_id == layer.diff_id);
        step.map_or("FROM", |step| step.name.as_str())
    };
    let by: Vec<&str> = layers.iter().map(step_of).collect();
    let mut said = leaks::in_config(&stage.config, &[]);
    said.retain(|finding| !stage.based.said.contains(finding));
    let held = layers.iter().filter_map(|layer| given.get(&layer.diff_id));
    said.extend(held.flatten().cloned());
    leaks::Search {
        store,
        image: request.tag.name(),
        allowed: request.allow_leaks,
        excuse: request.tag.excuse(),
        layers,
        by: &by,
    }
    .check(said)
}

impl Bake<'_> {
    /// What repositories are asked with.
    fn access(&self) -> Access<'_> {
        self.request.granted.access(self.request.work)
    }

    fn set_globals(&mut self) -> Result<(), BakeError> {
        let file = self.request.dockerfile;
        self.globals = predefined(self.request.target);
        for instruction in &file.args {
            let Action::Arg(args) = &instruction.action else {
                continue;
            };
            for (name, value) in args {
                self.notes().used_args.insert(name.clone());
                let value = match (self.request.build_args.get(name), value) {
                    (Some(given), _) => Some(given.clone()),
                    (None, Some(value)) => {
                        let mut scope = Scope::new(&[], &self.globals);
                        let text = scope.expand(file, value)?;
                        let warnings = scope.warnings;
                        self.warn(0, warnings);
                        Some(text)
                    }
                    (None, None) => None,
                };
                if let Some(value) = value {
                    self.globals.insert(name.clone(), value);
                }
            }
        }
        Ok(())
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        lock(&self.notes)
    }

    fn warn(&self, stage: usize, warnings: Vec<Complaint>) {
        let warnings = warnings.into_iter().map(|warning| (stage, warning));
        self.notes().warnings.extend(warnings);
    }

    fn tell(&self, progress: BakeProgress) {
        // Who hears lives as long as the bake.
        let _ = self.progress.send(progress);
    }

    fn said(&self, step: &str, line: &str) {
        self.tell(BakeProgress::Said {
            step: step.to_owned(),
            line: line.to_owned(),
        });
    }

    fn error(&self, complaint: Complaint) -> BakeError {
        BakeError::Dockerfile(self.request.dockerfile.error(complaint))
    }
}

/// `source` happened while an instruction was carried out.
fn at(place: DockerfileError, source: BakeError) -> BakeError {
    match source {
        // Tells its own place.
        source
        @ (BakeError::Dockerfile(_) | BakeError::Instruction { .. } | BakeError::Stopped) => source,
        source => BakeError::Instruction {
            place: Box::new(place),
            source: Box::new(source),
        },
    }
}

fn created(date: i64) -> String {
    Timestamp(u64::try_from(date).unwrap_or(0) * 1000).rfc3339()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_registry_is_no_version() {
        for (tag, versions) in [
            ("app:1", "app"),
            ("app", "app"),
            ("localhost:5000/a:1", "localhost:5000/a"),
            ("localhost:5000/a/b", "localhost:5000/a/b"),
        ] {
            assert_eq!(Tagging::As(tag).versions(), versions);
        }
    }
}
