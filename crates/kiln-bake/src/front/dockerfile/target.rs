//! A Dockerfile's target, baked: its stages, then the tests, the records and the tag of the image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, mpsc};
use std::time::SystemTime;

use kiln_config::dockerfile::Complaint;
use kiln_model::Digest;
use kiln_oci::{Layer, Store};

use super::bake::{Bake, Notes};
use super::instructions::carry_out;
use super::request::{BakedDockerfile, DockerfileRequest, Tagging};
use super::schedule::{Schedule, lock};
use super::stage::Stage;
use super::{named_contexts, platform};
use crate::context::stat_cache::StatCache;
use crate::error::BakeError;
use crate::granted::PROXIES;
use crate::image_tests::{self, Subject};
use crate::leaks::{self, Finding};
use crate::progress::{BakeProgress, StepReport};
use crate::record::explain;
use crate::record::provenance::{self, Done, ResolvedBase};
use crate::record::publish::{describe, give_tag};
use crate::step::scratch::sweep;

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
    let target = target_stage(request)?;
    refuse(request, target)?;
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
        carry_out,
        network: Mutex::new(None),
        stat_cache: Mutex::new(StatCache::load(
            store,
            request.context,
            request.tag.versions(),
            SystemTime::now(),
            request.listings,
        )),
        notes: Mutex::default(),
    };
    bake.set_globals()?;
    let (stage, stat_cache, notes) = std::thread::scope(|scope| {
        let baking = scope.spawn(move || {
            let stage = bake.all(target)?;
            let Bake {
                stat_cache, notes, ..
            } = bake;
            Ok::<_, BakeError>((stage, stat_cache, notes))
        });
        // Until the bake, and with it the other end, is gone.
        told.into_iter().for_each(&mut *progress);
        baking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    lock(&stat_cache).save(store);
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
    warnings.extend(unused_arguments(request, target, &used_args));
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
    let contexts = named_contexts::materials(request, is_committed, &taken)?;
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

/// The number of the stage that is baked.
fn target_stage(request: &DockerfileRequest<'_>) -> Result<usize, BakeError> {
    let file = request.dockerfile;
    match request.target {
        None => Ok(file.stages.len() - 1),
        Some(name) => file.stage(name, file.stages.len()).ok_or_else(|| {
            let names: Vec<_> = file
                .stages
                .iter()
                .flat_map(|stage| stage.name.clone())
                .collect();
            let last = file.stages[file.stages.len() - 1].from.span.clone();
            BakeError::Dockerfile(file.error(Complaint::error(
                last,
                format!("the Dockerfile has no stage `{name}`"),
                match &names[..] {
                    [] => "none of its stages has a name: FROM IMAGE AS NAME gives one".to_owned(),
                    names => format!("it has: {}", names.join(", ")),
                },
            )))
        }),
    }
}

/// What is wrong before anything is baked.
fn refuse(request: &DockerfileRequest<'_>, target: usize) -> Result<(), BakeError> {
    let file = request.dockerfile;
    if let Some(error) = file.refused_for(&request.warnings()) {
        return Err(BakeError::Dockerfile(error));
    }
    if let Some(wanted) = request.platform.filter(|wanted| !platform::is_here(wanted)) {
        let place = file.stages[target].from.span.clone();
        return Err(BakeError::Dockerfile(
            file.error(platform::another(place, wanted)),
        ));
    }
    Ok(())
}

/// The warning of build arguments that no ARG takes.
fn unused_arguments(
    request: &DockerfileRequest<'_>,
    target: usize,
    used: &BTreeSet<String>,
) -> Option<Complaint> {
    let unused: Vec<&str> = request
        .build_args
        .keys()
        .map(String::as_str)
        .filter(|name| !used.contains(*name))
        .filter(|name| !PROXIES.contains(name) && !PREDECLARED.contains(name))
        .filter(|name| !name.starts_with(OF_BUILDER))
        .collect();
    (!unused.is_empty()).then(|| {
        let span = request.dockerfile.stages[target].from.span.clone();
        Complaint::warning(
            "UnusedBuildArg",
            span,
            format!("no ARG takes the build argument {}", unused.join(", ")),
            "is its name right?",
        )
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
