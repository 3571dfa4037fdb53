//! `kiln rebake`: the second bake of `kiln verify`, in a process that is in other circumstances than the first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kiln_bake::{
    BakeError, BakeProgress, BakeRequest, Deferred, DockerfileRequest, Granted, Listings, Lock,
    OtherClock, StepReport, Tagging, bake, bake_dockerfile,
};
use kiln_config::dockerfile::Ignore;
use kiln_engine::memory::{self, MemoryFolder};
use kiln_engine::namespaces;
use kiln_model::{Digest, ImageSpec};
use kiln_oci::Store;
use rustix::fs::Mode;
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};
use crate::progress::Live;
use crate::{args, dockerfile, output, rollout, settings};

/// What the machine is called for the second bake.
pub(super) const HOST: &str = "kiln-verify-otherwise";

#[derive(Serialize, Deserialize)]
pub(super) struct Rebake {
    pub(super) root: PathBuf,
    /// As the caller named it.
    pub(super) image: String,
    pub(super) what: What,
    pub(super) move_clock: Option<i32>,
    /// Steps of a Dockerfile that used the network the first time.
    pub(super) networked: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) enum What {
    Definition {
        image: Box<ImageSpec>,
        context: PathBuf,
        lock: String,
    },
    Dockerfile {
        path: PathBuf,
        context: PathBuf,
        build_args: BTreeMap<String, String>,
        target: Option<String>,
        /// Each by the digest of an image of the second store.
        bases: BTreeMap<String, String>,
        allow_leaks: Vec<String>,
        no_network: bool,
    },
}

#[derive(Serialize, Deserialize)]
pub(super) struct Rebaked {
    pub(super) digest: Digest,
    pub(super) steps: Vec<String>,
    pub(super) networked: Vec<String>,
    pub(super) processors: usize,
    /// Whether steps wrote to a file system of another kind than the store's.
    pub(super) other_file_system: bool,
}

/// What a bake of either kind gave.
struct Made {
    digest: Digest,
    steps: Vec<StepReport>,
    networked: Vec<String>,
}

pub(crate) fn run(args: args::Rebake) -> Result<Exit, Failure> {
    let failed = |source| Failure::File {
        path: args.spec.clone(),
        source,
    };
    // Nobody waits for it when `kiln verify` is gone, and its folders are the next one's.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| failed(errno.into()))?;
    let bytes = std::fs::read(&args.spec).map_err(failed)?;
    let rebake: Rebake = serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    one_processor();
    namespaces::enter(HOST).map_err(failed)?;
    let folder = |name: &str| -> Result<PathBuf, Failure> {
        let path = rebake.root.join(name);
        std::fs::create_dir_all(&path).map_err(failed)?;
        Ok(path)
    };
    let (disk, in_memory) = (folder("work")?, folder("memory")?);
    let mounted =
        memory::available().and_then(|bytes| MemoryFolder::mount(&in_memory, bytes / 2).ok());
    let mut other_file_system = mounted.is_some();
    let made = if mounted.is_some() {
        rebake.carry_out(&in_memory).or_else(|error| {
            // Memory may be too small for what the disk had room for.
            output::aside(&format!("{}; once more, on the disk", told(&error)));
            other_file_system = false;
            rebake.carry_out(&disk)
        })
    } else {
        rebake.carry_out(&disk)
    };
    let Made {
        digest,
        steps,
        networked,
    } = made?;
    output::json(&Rebaked {
        digest,
        steps: steps.into_iter().map(|step| step.name).collect(),
        networked,
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        other_file_system,
    })?;
    Ok(Exit::Done)
}

fn told(error: &Failure) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

impl Rebake {
    /// `work`: for what steps write.
    fn carry_out(&self, work: &Path) -> Result<Made, Failure> {
        let store = Store::open(&self.root)?;
        let live = Live::lines(&self.image);
        let mut progress = |progress: BakeProgress| live.tell(progress, &mut output::aside);
        let failed = |error| match error {
            BakeError::Dockerfile(error) => Failure::Dockerfile(Box::new(error)),
            BakeError::Instruction { place, source } => Failure::Instruction { place, source },
            source => Failure::Bake {
                image: self.image.clone(),
                source: Box::new(source),
            },
        };
        match &self.what {
            What::Definition {
                image,
                context,
                lock,
            } => {
                let lock = Lock::parse(lock).map_err(|error| Failure::Lock {
                    path: context.join("kiln.lock"),
                    source: Box::new(error),
                })?;
                let request = BakeRequest {
                    image,
                    context,
                    lock: Some(&lock),
                    work,
                    commit: Deferred::none(),
                    listings: &Listings::default(),
                    now: rollout::now(),
                    no_cache: false,
                    move_clock: self.move_clock,
                };
                let baked = bake(&store, &request, &mut progress).map_err(failed)?;
                Ok(Made {
                    digest: baked.digest,
                    steps: baked.steps,
                    networked: Vec::new(),
                })
            }
            What::Dockerfile {
                path,
                context,
                build_args,
                target,
                bases,
                allow_leaks,
                no_network,
            } => {
                let dockerfile = dockerfile::read(path, build_args)?;
                let ignore: Ignore = dockerfile::read_ignore(path, context)?;
                let request = DockerfileRequest {
                    named_images: &BTreeSet::new(),
                    dockerfile: &dockerfile,
                    context,
                    ignore: &ignore,
                    tag: Tagging::As("kiln-verify:1"),
                    tests: &[],
                    build_args,
                    target: target.as_deref(),
                    bases,
                    registries: &settings::registries(false, Vec::new()),
                    contexts: &BTreeMap::new(),
                    repositories: &BTreeMap::new(),
                    granted: &Granted {
                        no_network: *no_network,
                        ..Granted::default()
                    },
                    allow_leaks,
                    platform: None,
                    no_cache: false,
                    work,
                    checkout: Deferred::none(),
                    listings: &Listings::default(),
                    move_clock: self.move_clock.map(|moved| OtherClock {
                        moved,
                        not_for: &self.networked,
                    }),
                };
                let baked = bake_dockerfile(&store, &request, &mut progress).map_err(failed)?;
                Ok(Made {
                    digest: baked.digest,
                    steps: baked.steps,
                    networked: baked.networked,
                })
            }
        }
    }
}

/// Where it can't be, the second bake has as many as the first.
fn one_processor() {
    let Ok(mine) = sched_getaffinity(None) else {
        return;
    };
    if let Some(last) = (0..CpuSet::MAX_CPU)
        .rev()
        .find(|number| mine.is_set(*number))
    {
        let mut only = CpuSet::new();
        only.set(last);
        let _ = sched_setaffinity(None, &only);
    }
}
