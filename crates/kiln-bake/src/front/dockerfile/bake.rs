//! What the parts of one bake share: the request, the schedule, the stat cache and the notes for its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, MutexGuard};

use kiln_config::dockerfile::{Action, Complaint};
use kiln_engine::StepNetwork;
use kiln_git::Access;
use kiln_model::Digest;
use kiln_oci::Store;

use super::named_images::predefined;
use super::request::DockerfileRequest;
use super::schedule::{Schedule, lock};
use super::scope::Scope;
use super::stage::Stage;
use crate::context::stat_cache::StatCache;
use crate::error::BakeError;
use crate::leaks::Finding;
use crate::progress::{BakeProgress, StepReport};
use crate::record::provenance::{Done, Material, ResolvedBase};

/// A bake on its way. All of its stages share it.
pub(super) struct Bake<'a> {
    pub(super) store: &'a Store,
    pub(super) request: &'a DockerfileRequest<'a>,
    pub(super) progress: SyncSender<BakeProgress>,
    /// The ARGs before the first FROM.
    pub(super) globals: BTreeMap<String, String>,
    /// Of everything that is made, in place of the base's.
    pub(super) date: Option<i64>,
    pub(super) schedule: Schedule,
    /// Carries out the stage of a number. Instructions ask for other stages, which are made of instructions: so the bake is told how.
    pub(super) carry_out: fn(&Bake<'_>, usize) -> Result<Stage, BakeError>,
    /// Made for the first step that has one.
    pub(super) network: Mutex<Option<StepNetwork>>,
    pub(super) stat_cache: Mutex<StatCache>,
    pub(super) notes: Mutex<Notes>,
}

/// What is said about the bake at its end. The numbers are those of stages: which of two is carried out first is chance.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) reports: Vec<(usize, StepReport)>,
    pub(super) warnings: Vec<(usize, Complaint)>,
    pub(super) networked: Vec<(usize, String)>,
    pub(super) done: Vec<(usize, Done)>,
    /// By the layer that has it.
    pub(super) given: BTreeMap<Digest, Vec<Finding>>,
    pub(super) used_args: BTreeSet<String>,
    pub(super) bases: BTreeSet<ResolvedBase>,
    /// By ADD.
    pub(super) fetched: BTreeSet<Material>,
    /// Of contexts that no commit has, by their names: what each instruction took.
    pub(super) taken: BTreeMap<String, BTreeSet<Digest>>,
}

impl Bake<'_> {
    /// What repositories are asked with.
    pub(super) fn access(&self) -> Access<'_> {
        self.request.granted.access(self.request.work)
    }

    pub(super) fn set_globals(&mut self) -> Result<(), BakeError> {
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

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        lock(&self.notes)
    }

    pub(super) fn warn(&self, stage: usize, warnings: Vec<Complaint>) {
        let warnings = warnings.into_iter().map(|warning| (stage, warning));
        self.notes().warnings.extend(warnings);
    }

    pub(super) fn tell(&self, progress: BakeProgress) {
        // Who hears lives as long as the bake.
        let _ = self.progress.send(progress);
    }

    pub(super) fn said(&self, step: &str, line: &str) {
        self.tell(BakeProgress::Said {
            step: step.to_owned(),
            line: line.to_owned(),
        });
    }

    pub(super) fn error(&self, complaint: Complaint) -> BakeError {
        BakeError::Dockerfile(self.request.dockerfile.error(complaint))
    }
}
