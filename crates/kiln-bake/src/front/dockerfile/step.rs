//! The keys of a Dockerfile's steps, and a step's way through the cache.

use std::path::{Path, PathBuf};
use std::time::Instant;

use kiln_engine::Overlay;
use kiln_model::{Digest, canonical_json};
use kiln_oci::{Layer, Store, Tree};
use serde::{Deserialize, Serialize};

use super::bake::Bake;
use super::key::Inputs;
use super::schedule::lock;
use crate::error::BakeError;
use crate::leaks::{self, Finding};
use crate::progress::{BakeProgress, StepReport};
use crate::record::explain;
use crate::record::provenance::Done;
use crate::step::key::digest_of;
use crate::step::lock::StepLock;

/// Changed whenever the same inputs would give another result.
const FORMAT: u32 = 9;

/// What a step gave.
#[derive(Serialize, Deserialize)]
pub(super) struct Made {
    #[serde(flatten)]
    pub(super) layer: Layer,
    /// What it fetched may be another thing tomorrow.
    #[serde(default)]
    pub(super) used_network: bool,
    /// Where it has a secret that the bake was given.
    #[serde(default)]
    pub(super) given: Vec<Finding>,
}

impl From<Layer> for Made {
    fn from(layer: Layer) -> Self {
        Self {
            layer,
            used_network: false,
            given: Vec::new(),
        }
    }
}

fn known_step(store: &Store, key: &Digest) -> Option<Made> {
    let made: Made = serde_json::from_slice(&store.cache_get(key)?).ok()?;
    // A record whose blob is gone is no record.
    store.has(&made.layer.blob.digest).then_some(made)
}

impl Bake<'_> {
    /// The layer of a step: the recorded one, or what `make` gives.
    pub(super) fn step(
        &self,
        stage: usize,
        name: &str,
        below: &[Layer],
        date: i64,
        inputs: &Inputs<'_>,
        make: impl FnOnce() -> Result<Made, BakeError>,
    ) -> Result<Layer, BakeError> {
        #[derive(Serialize)]
        struct Key<'a> {
            front_end: &'a str,
            format: u32,
            compressor: String,
            tar: u32,
            below: Vec<Digest>,
            date: i64,
            inputs: &'a Inputs<'a>,
        }
        if self.schedule.is_stopped() {
            return Err(BakeError::Stopped);
        }
        let began = Instant::now();
        let below: Vec<Digest> = below.iter().map(|layer| layer.diff_id).collect();
        let key = digest_of(&Key {
            front_end: "dockerfile",
            format: FORMAT,
            compressor: kiln_oci::compressor(),
            tar: kiln_oci::tar::VERSION,
            below: below.clone(),
            date,
            inputs,
        })?;
        let known = if self.request.no_cache {
            None
        } else {
            known_step(self.store, &key)
        };
        let cached = known.is_some();
        self.tell(BakeProgress::Step {
            name: name.to_owned(),
            cached,
        });
        let Made {
            layer,
            used_network,
            given,
        } = match known {
            Some(made) => made,
            None => {
                let _only_one = StepLock::take(self.store, &key)?;
                // Another bake may have done it while this one waited.
                let meanwhile = if self.request.no_cache {
                    None
                } else {
                    known_step(self.store, &key)
                };
                match meanwhile {
                    Some(made) => made,
                    None => {
                        let _room = self.schedule.room();
                        if self.schedule.is_stopped() {
                            return Err(BakeError::Stopped);
                        }
                        let made = make()?;
                        let record = canonical_json(&made)?;
                        self.store.cache_put(&key, &record)?;
                        explain::keep(self.store, &key, &below, date, inputs)?;
                        made
                    }
                }
            }
        };
        let report = StepReport {
            name: name.to_owned(),
            cached,
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            key: Some(key),
            reasons: Vec::new(),
        };
        self.tell(BakeProgress::Ended(report.clone()));
        let mut notes = self.notes();
        if used_network {
            notes.networked.push((stage, report.name.clone()));
        }
        let done = Done {
            name: report.name.clone(),
            key,
            diff_id: layer.diff_id,
        };
        notes.done.push((stage, done));
        // Another step may have made the same layer.
        notes.given.entry(layer.diff_id).or_default().extend(given);
        notes.reports.push((stage, report));
        Ok(layer)
    }

    /// Stores what a step made. What unchanged files hold is not searched for secrets again.
    pub(super) fn add(&self, tree: &Tree) -> Result<Layer, BakeError> {
        let clean = lock(&self.stat_cache).clean();
        let (layer, clean) = leaks::add(self.store, tree, &clean)?;
        lock(&self.stat_cache).are_clean(&clean);
        Ok(layer)
    }

    /// Layers, mounted for looking.
    pub(super) fn view(&self, layers: &[Layer], folder: &Path) -> Result<Overlay, BakeError> {
        Overlay::mount(&self.lowers(layers)?, folder)
            .map_err(|error| BakeError::View(std::io::Error::other(error)))
    }

    pub(super) fn lowers(&self, layers: &[Layer]) -> Result<Vec<PathBuf>, BakeError> {
        Ok(self.store.lowers(layers)?)
    }
}
