//! The steps that are made of Debian packages: the base, configured alone, and what is installed over it.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use kiln_model::{DebianSpec, ImageSpec};
use kiln_oci::{Store, Tree};

use crate::debian::configure;
use crate::debian::database::{Before, info_name};
use crate::debian::fetch::{Arrivals, Client};
use crate::debian::install;
use crate::debian::lock::{ImageLock, LockedPackage};
use crate::debian::lock_update::package_roots;
use crate::debian::repack::Repacking;
use crate::debian::slim;
use crate::debian::upper_dir::UpperDir;
use crate::error::BakeError;
use crate::progress::{BakeProgress, said};
use crate::step::container::Container;
use crate::step::prefetch::LayerPrefetch;

pub(crate) struct Debian<'a> {
    pub(crate) store: &'a Store,
    pub(crate) image: &'a ImageSpec,
    pub(crate) debian: &'a DebianSpec,
    pub(crate) client: &'a Client,
    pub(crate) locked: &'a ImageLock,
    pub(crate) container: &'a Container<'a>,
    pub(crate) repacking: &'a Repacking<'a>,
    /// Parts of the layer, ahead of it.
    pub(crate) prefetch: &'a LayerPrefetch,
}

enum Told {
    Fetched { done: usize, of: usize },
    Ended,
}

impl Debian<'_> {
    /// The base, as the root. The packages that come over it are fetched meanwhile.
    pub(crate) fn base(&self, progress: &mut dyn FnMut(BakeProgress)) -> Result<(), BakeError> {
        let (base, over) = self.locked.split();
        let upper_dir = UpperDir::new(self.container.upper, None);
        install::make_merged(self.container.upper)?;
        let before = Before::nothing(self.debian.slim);
        let place = (&upper_dir, &before);
        let all = &self.locked.packages;
        let from = self.repacking;
        self.while_fetching(all, |arrivals, told, heard| {
            let mut installed = std::thread::scope(|scope| {
                let unpacking = scope.spawn(|| {
                    let installed = install::unpack_arriving(from, base, place, arrivals);
                    // Nobody hears it any more: the bake is over.
                    let _ = told.send(Told::Ended);
                    installed
                });
                tell(&heard, progress);
                unpacking
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            if installed.len() < base.len() {
                // The failure is told by who waits for it.
                return Ok(());
            }
            let which: Vec<usize> = (0..installed.len()).collect();
            let name = self.image.name.to_string();
            install::register(from, &name, base, &mut installed, &which, place)?;
            if self.debian.slim {
                let config = Path::new(slim::CONFIG);
                upper_dir
                    .write(config, slim::config().as_bytes(), 0o644)
                    .map_err(BakeError::io(self.container.upper))?;
            }
            let names: Vec<String> = installed
                .iter()
                .map(|one| info_name(&one.paragraph))
                .collect();
            let (arch, date) = (&self.locked.arch, self.locked.date);
            let meanwhile = |stop: &dyn Fn() -> bool| from.pack_ahead(over, stop);
            self.while_preparing(meanwhile, || {
                let said = &mut said(self.container.step, progress);
                configure::base(self.container, &names, arch, date, said)
            })
        })?;
        self.tidy()
    }

    /// The packages over the base, in the rounds that their scripts need. `below`: the image so far.
    pub(crate) fn packages(
        &self,
        below: &Path,
        progress: &mut dyn FnMut(BakeProgress),
    ) -> Result<(), BakeError> {
        let (_, packages) = self.locked.split();
        let from = self.repacking;
        self.while_fetching(packages, |arrivals, told, heard| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = (0..packages.len()).all(|index| arrivals.wait(index));
                    let _ = told.send(Told::Ended);
                });
                tell(&heard, progress);
            });
            Ok(())
        })?;
        let mut installed = install::read(from, packages)?;
        let (arch, date) = (&self.locked.arch, self.locked.date);
        let name = self.image.name.to_string();
        let upper = self.container.upper;
        for round in install::rounds(&installed, arch) {
            let waiting = UpperDir::new(upper, Some(below));
            let mut runs = !round.configured.is_empty();
            for (number, index) in round.packages.iter().enumerate() {
                let one = &installed[*index];
                if !one.control.contains_key("preinst") {
                    continue;
                }
                runs = true;
                let package = one.paragraph.get("Package").unwrap_or_default();
                let folder = Path::new(configure::WAITING).join(format!("{number:05}.{package}"));
                for (file, bytes) in &one.control {
                    let mode = if file == "preinst" || file == "config" {
                        0o755
                    } else {
                        0o644
                    };
                    waiting
                        .write(&folder.join(file), bytes, mode)
                        .map_err(BakeError::io(upper))?;
                }
            }
            waiting.settle().map_err(BakeError::io(upper))?;
            if runs {
                let configured = &round.configured;
                self.while_preparing(
                    |_| {},
                    || {
                        let said = &mut said(self.container.step, progress);
                        configure::round(self.container, configured, arch, date, said)
                    },
                )?;
            }
            let upper_dir = UpperDir::new(upper, Some(below));
            let before =
                Before::read(&upper_dir, self.debian.slim).map_err(BakeError::io(upper))?;
            let place = (&upper_dir, &before);
            let which = &round.packages;
            install::unpack(from, packages, &mut installed, which, place)?;
            install::register(from, &name, packages, &mut installed, which, place)?;
        }
        self.while_preparing(
            |_| {},
            || {
                let said = &mut said(self.container.step, progress);
                configure::rest(self.container, arch, date, said)
            },
        )?;
        self.tidy()
    }

    /// Runs scripts, which hardly ever use more than one processor, while others look at what is unpacked and compress it, do `meanwhile`, and
    /// then keep what was unpacked for other bakes.
    fn while_preparing(
        &self,
        meanwhile: impl FnOnce(&dyn Fn() -> bool) + Send,
        scripts: impl FnOnce() -> Result<(), BakeError>,
    ) -> Result<(), BakeError> {
        let mut tree = Tree::from_upper(self.container.upper)?;
        // Elsewhere scripts change much, and files that are no longer there would end it.
        let is_changed = |path: &Path| !path.starts_with("usr") && path.components().count() == 1;
        let changed = tree.iter().filter(|(path, _)| is_changed(path));
        for path in changed.map(|(path, _)| path.to_owned()).collect::<Vec<_>>() {
            tree.remove(path);
        }
        tree.clamp_mtime(self.locked.date);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let stop = || ended.load(Ordering::Relaxed);
                self.prefetch.read_ahead(self.store, &mut tree, &stop);
                meanwhile(&stop);
                self.repacking.keep(&stop);
            });
            let ran = scripts();
            ended.store(true, Ordering::Relaxed);
            ran
        })
    }

    fn tidy(&self) -> Result<(), BakeError> {
        let upper = self.container.upper;
        configure::tidy(upper, self.locked.date).map_err(BakeError::io(upper))
    }

    /// Does `work` while what the store lacks of `packages` is fetched, and waits for both.
    fn while_fetching(
        &self,
        packages: &[LockedPackage],
        work: impl FnOnce(&Arrivals, Sender<Told>, Receiver<Told>) -> Result<(), BakeError>,
    ) -> Result<(), BakeError> {
        let missing = packages.iter().any(|one| !self.store.has(&one.sha256));
        let mut roots = Vec::new();
        if missing {
            roots = package_roots(self.debian);
        }
        let arrivals = Arrivals::new(packages.len());
        if !missing {
            // Who unpacks may begin with any.
            arrivals.all_but(&[]);
        }
        let (told, heard) = channel();
        let (store, client) = (self.store, self.client);
        let worked = std::thread::scope(|scope| {
            let (arrivals, roots) = (&arrivals, &roots);
            let telling = Mutex::new(told.clone());
            scope.spawn(move || {
                let fetched = |done, of| {
                    if let Ok(told) = telling.lock() {
                        let _ = told.send(Told::Fetched { done, of });
                    }
                };
                client.packages(store, roots, packages, arrivals, &fetched);
            });
            let worked = work(arrivals, told, heard);
            if worked.is_err() {
                arrivals.stop();
            }
            worked
        });
        worked?;
        arrivals.failure().map_or(Ok(()), Err)
    }
}

fn tell(heard: &Receiver<Told>, progress: &mut dyn FnMut(BakeProgress)) {
    while let Ok(Told::Fetched { done, of }) = heard.recv() {
        progress(BakeProgress::Fetching { done, of });
    }
}
