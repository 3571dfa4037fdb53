//! A stage: its layers and its configuration.

use std::collections::{BTreeMap, BTreeSet};

use kiln_model::Timestamp;
use kiln_oci::{ImageConfig, Layer, RunConfig};

use crate::arch;
use crate::leaks::Finding;
use crate::step::container;

/// A stage that was carried out, or an image.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) layers: Vec<Layer>,
    pub(super) config: ImageConfig,
    /// The ARGs, which a stage on top of this one has too.
    pub(super) args: BTreeMap<String, String>,
    /// The names of those ARGs, also without a value.
    pub(super) declared: BTreeSet<String>,
    /// No time in its layers is later: seconds since 1970.
    pub(super) date: i64,
    pub(super) based: Based,
}

/// What of a stage is its base's.
#[derive(Clone, Default)]
pub(super) struct Based {
    pub(super) layers: usize,
    /// What looks secret in its configuration.
    pub(super) said: Vec<Finding>,
}

/// The first day that every archive format can hold (that of zip): what stands on nothing has it.
pub(super) const FIRST_DAY: i64 = 315_532_800;

/// A stage of nothing.
pub(super) fn scratch() -> Stage {
    Stage {
        layers: Vec::new(),
        config: ImageConfig {
            created: Some(created(FIRST_DAY)),
            architecture: arch::arch().to_owned(),
            os: "linux".to_owned(),
            config: RunConfig {
                env: vec![format!("PATH={}", container::PATH)],
                working_dir: "/".to_owned(),
                ..RunConfig::default()
            },
            ..ImageConfig::default()
        },
        args: BTreeMap::new(),
        declared: BTreeSet::new(),
        date: FIRST_DAY,
        based: Based::default(),
    }
}

/// As the configuration of an image writes a time.
pub(super) fn created(date: i64) -> String {
    Timestamp(u64::try_from(date).unwrap_or(0) * 1000).rfc3339()
}
