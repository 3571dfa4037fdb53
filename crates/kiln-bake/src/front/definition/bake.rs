//! From a definition to an image: the lock, the steps, the configuration, the tag.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use kiln_model::{CanonicalError, Digest, ImageSpec, Timestamp, canonical_json};
use kiln_oci::{ImageConfig, Layer, RunConfig, Store};

use crate::arch;
use crate::context::stat_cache::StatCache;
use crate::debian::fetch::Client;
use crate::debian::lock::{ImageLock, Lock};
use crate::debian::lock_entry::{arch_of, first};
use crate::debian::lock_update::{self, LockRequest, Update};
use crate::debian::repack::Repacking;
use crate::error::BakeError;
use crate::front::definition::apt_sources;
use crate::front::definition::carry_out::{Supply, carry_out, recorded};
use crate::front::definition::command_check::check_command;
use crate::front::definition::copy;
use crate::front::definition::graph::{self, Step, Work};
use crate::front::definition::request::BakeRequest;
use crate::image_tests::{self, Subject};
use crate::leaks;
use crate::progress::{BakeProgress, StepReport};
use crate::record::explain;
use crate::record::provenance::{self, Done};
use crate::record::publish::{describe, give_tag};
use crate::step::container;
use crate::step::lock::StepLock;
use crate::step::scratch::sweep;

pub struct Baked {
    pub name: String,
    pub tag: String,
    pub digest: Digest,
    pub steps: Vec<StepReport>,
    /// To be written as `kiln.lock` where it differs.
    pub lock: Lock,
    pub config: ImageConfig,
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
    let repacking = Repacking::new(store);
    let locked = locked(store, request, &client, progress)?;
    let name = image.name.to_string();
    let mut stat_cache = StatCache::load(
        store,
        request.context,
        &name,
        SystemTime::now(),
        request.listings,
    );
    let steps = steps_of(request, &locked, &mut stat_cache)?;
    stat_cache.save(store);
    let supply = Supply {
        client: &client,
        repacking: &repacking,
    };
    let Built {
        layers,
        made_by,
        mut reports,
        done,
    } = build(
        store,
        request,
        supply,
        &locked,
        &steps,
        &mut stat_cache,
        progress,
    )?;
    stat_cache.save(store);
    explain::fill(store, &name, &mut reports)?;
    let config = config(image, &locked.arch, locked.date);
    check(store, request, &layers, &made_by, &config)?;
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
    let commit = request.commit.get();
    let commit = commit.as_ref();
    let statement = provenance::statement(image, &digest, commit, &locked, &done, &passed)?;
    store.attach(&digest, provenance::MEDIA_IN_TOTO, &statement)?;
    let tag = give_tag(store, &name, &image.version, commit, &digest)?;
    let lock = request.lock.cloned().unwrap_or_default();
    let lock = match image.debian {
        Some(_) => lock.with(first(image), locked),
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

/// Every step of the image, with the image of its chain that it is of.
fn steps_of<'a>(
    request: &BakeRequest<'a>,
    locked: &ImageLock,
    stat_cache: &mut StatCache,
) -> Result<Vec<(&'a ImageSpec, Step)>, BakeError> {
    let mut steps = Vec::new();
    for (index, part) in request.image.chain().into_iter().enumerate() {
        let copies = part
            .copies
            .iter()
            .map(|copy| copy::list(part, copy, request.context, stat_cache))
            .collect::<Result<Vec<_>, _>>()?;
        // Debian is the first image's of the chain.
        if let Some(debian) = part.debian.as_ref().filter(|_| index == 0) {
            let apt = apt_sources::wanted(part, debian, locked, &copies, request.context)?;
            let debian = graph::debian(debian, locked, apt).into_iter();
            steps.extend(debian.map(|step| (part, step)));
        }
        let own = graph::steps(part, copies).into_iter();
        steps.extend(own.map(|step| (part, step)));
    }
    Ok(steps)
}

/// What the steps gave.
struct Built<'a> {
    layers: Vec<Layer>,
    /// The names of the steps that made them.
    made_by: Vec<&'a str>,
    reports: Vec<StepReport>,
    done: Vec<Done>,
}

/// Carries out the steps in their order, or takes their layers from the cache.
fn build<'a>(
    store: &Store,
    request: &BakeRequest<'_>,
    supply: Supply<'_>,
    locked: &ImageLock,
    steps: &'a [(&ImageSpec, Step)],
    stat_cache: &mut StatCache,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<Built<'a>, BakeError> {
    let mut built = Built {
        layers: Vec::new(),
        made_by: Vec::new(),
        reports: Vec::new(),
        done: Vec::new(),
    };
    for (part, step) in steps {
        let began = Instant::now();
        let below: Vec<_> = built.layers.iter().map(|layer| layer.diff_id).collect();
        let key = step.key(&below, locked.date)?;
        let from_cache = || {
            if request.no_cache {
                None
            } else {
                recorded(store, &key)
            }
        };
        let known = from_cache();
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
                match from_cache() {
                    Some(layer) => layer,
                    None => {
                        let step = (*part, step);
                        let ground = (locked, &built.layers[..]);
                        let layer =
                            carry_out(store, request, supply, ground, step, stat_cache, progress)?;
                        let record = serde_json::to_vec(&layer).map_err(CanonicalError::Json)?;
                        store.cache_put(&key, &record)?;
                        explain::keep(store, &key, &below, locked.date, &step.1.work)?;
                        layer
                    }
                }
            }
        };
        let report = StepReport {
            name: step.name.clone(),
            cached,
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            key: Some(key),
            reasons: Vec::new(),
        };
        progress(BakeProgress::Ended(report.clone()));
        built.reports.push(report);
        built.done.push(Done {
            name: step.name.clone(),
            key,
            diff_id: layer.diff_id,
        });
        if matches!(step.work, Work::Minimal { .. }) {
            // What it was taken from is not in the image.
            built.layers.clear();
            built.made_by.clear();
        }
        built.layers.push(layer);
        built.made_by.push(step.name.as_str());
    }
    Ok(built)
}

/// Nothing secret is in the image, and its command is.
fn check(
    store: &Store,
    request: &BakeRequest<'_>,
    layers: &[Layer],
    made_by: &[&str],
    config: &ImageConfig,
) -> Result<(), BakeError> {
    let image = request.image;
    let commands: Vec<String> = image
        .chain()
        .iter()
        .flat_map(|part| part.run.iter().cloned())
        .collect();
    leaks::Search {
        store,
        image: &image.name.to_string(),
        allowed: &image.allow_leak,
        excuse: "image { allow_leak = [",
        layers,
        by: made_by,
    }
    .check(leaks::in_config(config, &commands))?;
    // Once for these layers and this configuration: looking into an image costs a mount for each of its layers.
    let below: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let checked = Digest::of(&canonical_json(&("command", &below, config))?);
    if store.cache_get(&checked).is_none() {
        check_command(store, request, layers, config)?;
        store.cache_put(&checked, b"")?;
    }
    Ok(())
}

/// What the image is made of. One that starts from nothing has no packages.
fn locked(
    store: &Store,
    request: &BakeRequest<'_>,
    client: &Client,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<ImageLock, BakeError> {
    let Some(debian) = &request.image.debian else {
        return Ok(ImageLock::nothing(arch::arch()));
    };
    let arch = arch_of(debian);
    if arch != arch::arch() {
        return Err(BakeError::ForeignArch {
            image: request.image.name.to_string(),
            arch: arch.to_owned(),
            own: arch::arch().to_owned(),
        });
    }
    let lock = LockRequest {
        image: request.image,
        context: request.context,
        lock: request.lock,
        update: &Update::Nothing,
        now: request.now,
    };
    lock_update::locked(store, &lock, debian, client, progress)
}

fn config(image: &ImageSpec, arch: &str, date: i64) -> ImageConfig {
    let mut env: BTreeMap<&str, &str> = image
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    env.entry("PATH").or_insert(container::PATH);
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
