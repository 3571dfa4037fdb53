//! A step of a definition, carried out: what it makes is a layer.

use kiln_engine::Overlay;
use kiln_model::{Digest, ImageSpec};
use kiln_oci::{Layer, Store, Tree};

use crate::context::stat_cache::StatCache;
use crate::debian::fetch::Client;
use crate::debian::lock::ImageLock;
use crate::debian::memory;
use crate::debian::repack::Repacking;
use crate::debian::steps::Debian;
use crate::error::BakeError;
use crate::front::definition::apt_sources;
use crate::front::definition::copy;
use crate::front::definition::graph::{Step, Work};
use crate::front::definition::minimal;
use crate::front::definition::request::BakeRequest;
use crate::front::definition::users;
use crate::leaks;
use crate::progress::{BakeProgress, said};
use crate::step::clock;
use crate::step::container::{Container, environment as step_environment, run};
use crate::step::prefetch::LayerPrefetch;
use crate::step::scratch::Scratch;

/// Where packages come from.
#[derive(Clone, Copy)]
pub(crate) struct Supply<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repacking: &'a Repacking<'a>,
}

pub(crate) fn carry_out(
    store: &Store,
    request: &BakeRequest<'_>,
    supply: Supply<'_>,
    (locked, layers): (&ImageLock, &[Layer]),
    (image, step): (&ImageSpec, &Step),
    stat_cache: &mut StatCache,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<Layer, BakeError> {
    let (base, packages) = locked.split();
    let room = match &step.work {
        Work::Debian { .. } => memory::in_memory(base),
        Work::Packages { .. } => memory::in_memory(packages),
        Work::AptSources(_)
        | Work::Minimal { .. }
        | Work::Users { .. }
        | Work::Copy { .. }
        | Work::Run { .. } => None,
    };
    let mut carry_out = |scratch: &Scratch| {
        let (step, place) = ((image, step), (scratch, locked, layers));
        carry_out_at(place, store, request, supply, step, stat_cache, progress)
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
    supply: Supply<'_>,
    (image, step): (&ImageSpec, &Step),
    stat_cache: &mut StatCache,
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
    let mut container = Container::sealed(&name, &step.name, lowers.clone(), (&upper, &work));
    if let Some(seconds) = request.move_clock {
        let folder = scratch.folder("clock")?;
        let moved = clock::Moved::new(folder, seconds).map_err(BakeError::io(request.work))?;
        match (moved, lowers.is_empty()) {
            (Some(moved), true) => container.mounts = moved.mounts(),
            (Some(moved), false) => container.lowers.push(moved.lower()),
            (None, _) => {}
        }
    }
    let prefetch = LayerPrefetch::default();
    // Steps are made of what the image has.
    let missing = |what: &str| BakeError::View(std::io::Error::other(format!("no `{what}`")));
    let mut tree = match &step.work {
        Work::Debian { .. } | Work::Packages { .. } => {
            let debian = Debian {
                store,
                image,
                debian: image.debian.as_ref().ok_or_else(|| missing("debian"))?,
                client: supply.client,
                repacking: supply.repacking,
                locked,
                container: &container,
                prefetch: &prefetch,
            };
            if lowers.is_empty() {
                debian.base(progress)?;
                clock::Moved::remove_mount_points(&container).map_err(BakeError::io(&upper))?;
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
                stat_cache,
            )?
        }
        Work::Run {
            command,
            user,
            workdir,
            env,
        } => {
            let mut environment = step_environment();
            for (name, value) in env {
                environment.retain(|(known, _)| known != name);
                environment.push((name.clone(), value.clone()));
            }
            environment.push(("SOURCE_DATE_EPOCH".to_owned(), locked.date.to_string()));
            let user = user.as_deref().unwrap_or("");
            let cwd = workdir.as_deref().unwrap_or("");
            let mut said = said(&step.name, progress);
            run(
                &container,
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
    prefetch.apply(&mut tree);
    let mut clean = stat_cache.clean();
    clean.extend(prefetch.clean());
    let (layer, clean) = leaks::add_prepared(store, &tree, &prefetch.prepared, &clean)?;
    stat_cache.are_clean(&clean);
    Ok(layer)
}

pub(crate) fn recorded(store: &Store, key: &Digest) -> Option<Layer> {
    let layer: Layer = serde_json::from_slice(&store.cache_get(key)?).ok()?;
    // A record whose blob is gone is no record.
    store.has(&layer.blob.digest).then_some(layer)
}
