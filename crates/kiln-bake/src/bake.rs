//! From a definition to an image: the lock, the steps, the configuration, the tag.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use kiln_engine::Overlay;
use kiln_model::{Digest, ImageSpec, Timestamp, canonical_json};
use kiln_oci::{ImageConfig, Layer, Prepared, RunConfig, Store, Tree};

use crate::apt_sources;
use crate::archive;
use crate::configure::{self, Ground};
use crate::debian::Debian;
use crate::error::BakeError;
use crate::fetch::Client;
use crate::graph::{self, Step, Work};
use crate::image_tests::{self, Subject};
use crate::leak_check;
use crate::leaks;
use crate::lock::{ImageLock, Lock};
use crate::locking::{self, LockRequest, Update};
use crate::minimal;
use crate::provenance::{self, Done};
pub(crate) use crate::scratch::{Scratch, sweep};
use crate::seen::Seen;
use crate::step_lock::StepLock;
use crate::{clock, copy, explain, look, sbom, scratch, users};

pub struct BakeRequest<'a> {
    pub image: &'a ImageSpec,
    /// The definition's folder.
    pub context: &'a Path,
    /// `None`: there is no lock yet.
    pub lock: Option<&'a Lock>,
    /// For what is made on the way; on the store's file system.
    pub work: &'a Path,
    pub commit: Option<CommitInfo>,
    pub now: Timestamp,
    /// Seconds that the clock of the steps' programs is moved by, to find out what depends on it.
    pub move_clock: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitInfo {
    /// The whole hexadecimal name.
    pub sha: String,
    /// Something of what is baked is not as the commit has it.
    pub dirty: bool,
    /// The path of the definition in the repository.
    pub definition: String,
}

/// What a bake is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BakeProgress {
    /// The archive is asked what it has.
    Resolving {
        suite: String,
    },
    /// A base that is elsewhere is looked at, and brought here.
    Importing {
        image: String,
    },
    /// A file that a Dockerfile names by its address is looked for.
    Downloading {
        url: String,
    },
    Fetching {
        done: usize,
        of: usize,
    },
    /// A step begins; one that is cached ends at once.
    Step {
        name: String,
        cached: bool,
    },
    /// A line that a step said. Of a Dockerfile, several may be carried out at the same time.
    Said {
        step: String,
        line: String,
    },
    /// A shell follows where a step failed; or why it can't.
    Shell {
        why: String,
    },
    /// A step has its layer.
    Ended(StepReport),
}

pub struct Baked {
    pub name: String,
    pub tag: String,
    pub digest: Digest,
    pub steps: Vec<StepReport>,
    /// To be written as `kiln.lock` where it differs.
    pub lock: Lock,
    pub config: ImageConfig,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    pub name: String,
    pub cached: bool,
    pub duration_ms: u64,
    /// `None`: a test, which makes no layer.
    pub key: Option<Digest>,
    /// What changed since the last bake of the image; empty for a cached step, and while the bake goes on.
    pub reasons: Vec<String>,
}

/// Bakes one image. To be called from a thread that lives until the end: the steps' containers are tied to it.
pub fn bake(
    store: &Store,
    request: &BakeRequest<'_>,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<Baked, BakeError> {
    let image = request.image;
    sweep(request.work);
    // One for all of it, with its connections and the names that it knows. A bake that fetches nothing needs none.
    let client = LazyCell::<Client>::new(Client::new);
    let locked = locked(store, request, &client, progress)?;
    let name = image.name.to_string();
    let mut seen = Seen::load(store, request.context, &name, SystemTime::now());
    let chain = image.chain();
    let mut steps = Vec::new();
    for (index, part) in chain.iter().enumerate() {
        let copies = part
            .copies
            .iter()
            .map(|copy| copy::list(part, copy, request.context, &mut seen))
            .collect::<Result<Vec<_>, _>>()?;
        // Debian is the first image's of the chain.
        let debian = part.debian.as_ref().filter(|_| index == 0);
        if let Some(debian) = debian {
            let apt = apt_sources::wanted(part, debian, &locked, &copies, request.context)?;
            steps.extend(
                graph::debian(debian, &locked, apt)
                    .into_iter()
                    .map(|s| (*part, s)),
            );
        }
        steps.extend(graph::steps(part, copies).into_iter().map(|s| (*part, s)));
    }
    seen.keep(store);
    let mut layers: Vec<Layer> = Vec::new();
    // The names of the steps that made them.
    let mut by: Vec<&str> = Vec::new();
    let mut reports = Vec::new();
    let mut done = Vec::new();
    for (part, step) in steps.iter().map(|(part, step)| (*part, step)) {
        let began = Instant::now();
        let below: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        let key = step.key(&below, locked.date)?;
        let known = recorded(store, &key);
        let cached = known.is_some();
        progress(BakeProgress::Step {
            name: step.name.clone(),
            cached,
        });
        let layer = match known {
            Some(layer) => layer,
            None => {
                let _only_one = StepLock::take(store, &key)?;
                // Another bake may have done it while this one waited.
                match recorded(store, &key) {
                    Some(layer) => layer,
                    None => {
                        let step = (part, step);
                        let ground = (&locked, &layers[..]);
                        let layer =
                            carry_out(store, request, &client, ground, step, &mut seen, progress)?;
                        store.cache_put(&key, &serde_json::to_vec(&layer).unwrap_or_default())?;
                        explain::keep(store, &key, &below, locked.date, &step.1.work)?;
                        layer
                    }
                }
            }
        };
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let report = StepReport {
            name: step.name.clone(),
            cached,
            duration_ms,
            key: Some(key),
            reasons: Vec::new(),
        };
        progress(BakeProgress::Ended(report.clone()));
        reports.push(report);
        done.push(Done {
            name: step.name.clone(),
            key,
            diff_id: layer.diff_id,
        });
        if matches!(step.work, Work::Minimal { .. }) {
            // What it was taken from is not in the image.
            layers.clear();
            by.clear();
        }
        layers.push(layer);
        by.push(step.name.as_str());
    }
    seen.keep(store);
    explain::fill(store, &name, &mut reports)?;
    let config = config(image, &locked.arch, locked.date);
    let commands: Vec<String> = chain
        .iter()
        .flat_map(|part| part.run.iter().cloned())
        .collect();
    leak_check::Search {
        store,
        image: &name,
        allowed: &image.allow_leak,
        excuse: "image { allow_leak = [",
        layers: &layers,
        by: &by,
    }
    .check(leaks::in_config(&config, &commands))?;
    // Once for these layers and this configuration: looking into an image costs a mount for each of its layers.
    let below: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let checked = Digest::of(&canonical_json(&("command", &below, &config))?);
    if store.cache_get(&checked).is_none() {
        check_command(store, request, &layers, &config)?;
        store.cache_put(&checked, b"")?;
    }
    let digest = store.put_image(&config, &layers)?;
    let subject = Subject {
        store,
        work: request.work,
        name: &name,
        digest,
        config: &config,
        layers: &layers,
    };
    let (tests, passed) = image_tests::run(&subject, &image.tests, progress)?;
    reports.extend(tests);
    describe(store, request.work, &digest)?;
    let commit = request.commit.as_ref();
    let statement = provenance::statement(image, &digest, commit, &locked, &done, &passed)?;
    store.attach(&digest, provenance::MEDIA_IN_TOTO, &statement)?;
    let tag = give_tag(store, &name, &image.version, commit, &digest)?;
    let lock = request.lock.cloned().unwrap_or_default();
    let lock = match image.debian {
        Some(_) => lock.with(locking::first(image), locked),
        None => lock,
    };
    Ok(Baked {
        name: image.name.to_string(),
        tag,
        digest,
        steps: reports,
        lock,
        config,
    })
}

/// Attaches the image's SBOM, unless an earlier bake did.
pub(crate) fn describe(store: &Store, work: &Path, digest: &Digest) -> Result<(), BakeError> {
    // Another version of kiln may say more.
    let key = Digest::of(&canonical_json(&(
        "sbom",
        env!("CARGO_PKG_VERSION"),
        digest,
    ))?);
    let is_described = |attached: Vec<kiln_oci::Referrer>| {
        let is_sbom = |one: &kiln_oci::Referrer| one.artifact_type == sbom::MEDIA_SPDX;
        attached.iter().any(is_sbom)
    };
    if store.cache_get(&key).is_some() && is_described(store.referrers(digest)?) {
        return Ok(());
    }
    let image = store.image(digest)?;
    let scratch = Scratch::new(work)?;
    let view = Overlay::mount(&image.erofs_paths(store)?, scratch.path())
        .map_err(|error| BakeError::View(std::io::Error::other(error)))?;
    let created = image.config.created.as_deref();
    let document = sbom::document(view.path(), digest, created)?.map_err(BakeError::View)?;
    store.attach(digest, sbom::MEDIA_SPDX, &document)?;
    store.cache_put(&key, b"")?;
    Ok(())
}

/// `NAME:VERSION-COMMIT`, or for what no commit has `NAME:VERSION-dirty.DIGEST`.
fn tag(name: &str, version: &str, commit: Option<&CommitInfo>, digest: &Digest) -> String {
    match commit {
        Some(CommitInfo {
            sha, dirty: false, ..
        }) => {
            format!("{name}:{version}-{}", &sha[..sha.len().min(12)])
        }
        _ => format!("{name}:{version}-dirty.{}", digest.short()),
    }
}

/// Gives the image of a definition its tag.
pub(crate) fn give_tag(
    store: &Store,
    name: &str,
    version: &str,
    commit: Option<&CommitInfo>,
    digest: &Digest,
) -> Result<String, BakeError> {
    let tag = tag(name, version, commit, digest);
    store.tag(&tag, digest).or_else(|error| match error {
        // The same version of the same commit with other inputs (an updated lock): the first keeps the tag.
        kiln_oci::StoreError::TagTaken { .. } => Ok(()),
        error => Err(error),
    })?;
    match store.resolve(&tag) {
        Ok(there) if there == *digest => Ok(tag),
        _ => {
            let own = format!("{name}:{version}-{}", digest.short());
            store.tag(&own, digest)?;
            Ok(own)
        }
    }
}

pub(crate) fn recorded(store: &Store, key: &Digest) -> Option<Layer> {
    let layer: Layer = serde_json::from_slice(&store.cache_get(key)?).ok()?;
    // A record whose blob is gone is no record.
    store.has(&layer.blob.digest).then_some(layer)
}

/// What the image is made of. One that starts from nothing has no packages.
fn locked(
    store: &Store,
    request: &BakeRequest<'_>,
    client: &Client,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<ImageLock, BakeError> {
    let Some(debian) = &request.image.debian else {
        return Ok(ImageLock::nothing(archive::arch()));
    };
    let arch = locking::arch(debian);
    if arch != archive::arch() {
        return Err(BakeError::ForeignArch {
            image: request.image.name.to_string(),
            arch: arch.to_owned(),
            own: archive::arch().to_owned(),
        });
    }
    let lock = LockRequest {
        image: request.image,
        context: request.context,
        lock: request.lock,
        update: &Update::Nothing,
        now: request.now,
    };
    locking::locked(store, &lock, debian, client, progress)
}

pub(crate) fn said(step: &str, progress: &mut dyn FnMut(BakeProgress)) -> impl FnMut(&str) {
    move |line| {
        progress(BakeProgress::Said {
            step: step.to_owned(),
            line: line.to_owned(),
        })
    }
}

fn carry_out(
    store: &Store,
    request: &BakeRequest<'_>,
    client: &Client,
    (locked, layers): (&ImageLock, &[Layer]),
    (image, step): (&ImageSpec, &Step),
    seen: &mut Seen,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<Layer, BakeError> {
    let (base, packages) = locked.split();
    let room = match &step.work {
        Work::Debian { .. } => scratch::room_for(base),
        Work::Packages { .. } => scratch::room_for(packages),
        Work::AptSources(_)
        | Work::Minimal { .. }
        | Work::Users { .. }
        | Work::Copy { .. }
        | Work::Run { .. } => None,
    };
    let mut carry_out = |scratch: &Scratch| {
        let (step, place) = ((image, step), (scratch, locked, layers));
        carry_out_at(place, store, request, client, step, seen, progress)
    };
    if let Some(size) = room {
        let scratch = Scratch::in_memory(request.work, size)?;
        match carry_out(&scratch) {
            // On the disk there may be more room than thought.
            Err(_) if scratch.is_full() => {}
            done => return done,
        }
    }
    carry_out(&Scratch::new(request.work)?)
}

fn carry_out_at(
    (scratch, locked, layers): (&Scratch, &ImageLock, &[Layer]),
    store: &Store,
    request: &BakeRequest<'_>,
    client: &Client,
    (image, step): (&ImageSpec, &Step),
    seen: &mut Seen,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<Layer, BakeError> {
    let lowers = store.lowers(layers)?;
    let view = || -> Result<Overlay, BakeError> {
        let folder = scratch.folder("look")?;
        Overlay::mount(&lowers, &folder)
            .map_err(|error| BakeError::View(std::io::Error::other(error)))
    };
    let name = image.name.to_string();
    let (upper, work) = (scratch.folder("upper")?, scratch.folder("work")?);
    let mut ground = Ground::sealed(&name, &step.name, lowers.clone(), (&upper, &work));
    if let Some(seconds) = request.move_clock {
        let folder = scratch.folder("clock")?;
        let moved = clock::Moved::new(folder, seconds).map_err(BakeError::io(request.work))?;
        match (moved, lowers.is_empty()) {
            (Some(moved), true) => ground.mounts = moved.mounts(),
            (Some(moved), false) => ground.lowers.push(moved.lower()),
            (None, _) => {}
        }
    }
    let prepared = Prepared::default();
    // Steps are made of what the image has.
    let missing = |what: &str| BakeError::View(std::io::Error::other(format!("no `{what}`")));
    let mut tree = match &step.work {
        Work::Debian { .. } | Work::Packages { .. } => {
            let debian = Debian {
                store,
                image,
                debian: image.debian.as_ref().ok_or_else(|| missing("debian"))?,
                client,
                locked,
                ground: &ground,
                prepared: &prepared,
            };
            if lowers.is_empty() {
                debian.base(progress)?;
                clock::Moved::remove_mount_points(&ground).map_err(BakeError::io(&upper))?;
            } else {
                let view = view()?;
                debian.packages(view.path(), progress)?;
            }
            Tree::from_upper(&upper)?
        }
        Work::AptSources(apt) => {
            let view = view()?;
            let places = (request.context, view.path());
            apt_sources::layer(apt, image, places, locked.date)?
        }
        Work::Minimal { only } => {
            let wanted = minimal::Wanted {
                packages: only,
                arch: &locked.arch,
                date: locked.date,
            };
            let mut new = Tree::new();
            if let Some((_, over)) = layers.split_first().filter(|(_, over)| !over.is_empty()) {
                let folder = scratch.folder("over")?;
                let over = Overlay::mount(&store.lowers(over)?, &folder)
                    .map_err(|error| BakeError::View(std::io::Error::other(error)))?;
                new = Tree::from_upper(over.path())?;
            }
            let view = view()?;
            let whole = Tree::from_upper(view.path())?;
            minimal::tree(&wanted, view.path(), &whole, &new)?
        }
        Work::Users { .. } => users::layer(image, view()?.path(), locked.date)?,
        Work::Copy { to, owner, files } => {
            let copy = image
                .copies
                .iter()
                .find(|copy| {
                    copy.to == *to && copy.owner == *owner && step.name.contains(&copy.from)
                })
                .ok_or_else(|| BakeError::View(std::io::ErrorKind::NotFound.into()))?;
            let view = view()?;
            copy::layer(
                image,
                copy,
                files,
                request.context,
                view.path(),
                locked.date,
                seen,
            )?
        }
        Work::Run {
            command,
            user,
            workdir,
            env,
        } => {
            let mut environment = configure::environment();
            for (name, value) in env {
                environment.retain(|(known, _)| known != name);
                environment.push((name.clone(), value.clone()));
            }
            environment.push(("SOURCE_DATE_EPOCH".to_owned(), locked.date.to_string()));
            let user = user.as_deref().unwrap_or("");
            let cwd = workdir.as_deref().unwrap_or("");
            let mut said = said(&step.name, progress);
            configure::run(
                &ground,
                &["/bin/sh", "-c", command],
                environment,
                user,
                cwd,
                &mut said,
            )?;
            Tree::from_upper(&upper)?
        }
    };
    tree.clamp_mtime(locked.date);
    let (layer, clean) = leaks::add_prepared(store, &tree, &prepared, &seen.clean())?;
    seen.are_clean(&clean);
    Ok(layer)
}

fn config(image: &ImageSpec, arch: &str, date: i64) -> ImageConfig {
    let mut env: BTreeMap<&str, &str> = image
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    env.entry("PATH").or_insert(configure::PATH);
    let created = Timestamp(u64::try_from(date).unwrap_or(0) * 1000).rfc3339();
    ImageConfig {
        // Debian and Go call the architectures that kiln knows by the same names.
        architecture: arch.to_owned(),
        os: "linux".to_owned(),
        created: Some(created),
        config: RunConfig {
            user: image.run_as.clone().unwrap_or_default(),
            env: env
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            entrypoint: image.entrypoint.clone(),
            cmd: image.cmd.clone(),
            working_dir: image.workdir.clone().unwrap_or_default(),
            labels: image.labels.clone(),
            stop_signal: image.stop_signal.clone(),
            ..RunConfig::default()
        },
        ..ImageConfig::default()
    }
}

/// What the image is for is in it: found now rather than when it is started.
fn check_command(
    store: &Store,
    request: &BakeRequest<'_>,
    layers: &[Layer],
    config: &ImageConfig,
) -> Result<(), BakeError> {
    let run = &config.config;
    let Some(command) = run.entrypoint.iter().chain(&run.cmd).next() else {
        return Ok(());
    };
    let scratch = Scratch::new(request.work)?;
    let lowers = store.lowers(layers)?;
    let view = Overlay::mount(&lowers, scratch.path())
        .map_err(|error| BakeError::View(std::io::Error::other(error)))?;
    let path = run
        .env
        .iter()
        .find_map(|pair| pair.strip_prefix("PATH="))
        .unwrap_or(configure::PATH);
    let candidates: Vec<PathBuf> = if command.contains('/') {
        vec![Path::new(&run.working_dir).join(command)]
    } else {
        path.split(':')
            .map(|folder| Path::new(folder).join(command))
            .collect()
    };
    let image = request.image.name.to_string();
    let found = candidates
        .iter()
        .find_map(|path| mode_inside(view.path(), path));
    match found {
        None => Err(BakeError::NoCommand {
            image,
            command: command.clone(),
        }),
        Some(mode) if mode & 0o111 == 0 => Err(BakeError::NotExecutable {
            image,
            command: command.clone(),
        }),
        Some(_) => Ok(()),
    }
}

/// The mode of a file inside `root`, links followed inside it.
fn mode_inside(root: &Path, path: &Path) -> Option<u32> {
    let file = look::open(root, path, rustix::fs::OFlags::PATH).ok()?;
    let there = rustix::fs::fstat(&file).ok()?;
    (rustix::fs::FileType::from_raw_mode(there.st_mode) == rustix::fs::FileType::RegularFile)
        .then_some(there.st_mode)
}
