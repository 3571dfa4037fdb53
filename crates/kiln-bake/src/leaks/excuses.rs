//! Whether an image may leave: nothing secret does, but what is excused by name.

use kiln_oci::{Layer, Store};

use super::finding::Finding;
use super::layers::of_layer;
use super::rules::rules;
use crate::error::BakeError;

pub(crate) struct Search<'a> {
    pub(crate) store: &'a Store,
    pub(crate) image: &'a str,
    /// `RULE:PLACE`.
    pub(crate) allowed: &'a [String],
    /// What is written before an excuse.
    pub(crate) excuse: &'static str,
    pub(crate) layers: &'a [Layer],
    /// The steps that the layers are of.
    pub(crate) by: &'a [&'a str],
}

impl Search<'_> {
    /// `said`: what was found in the configuration.
    pub(crate) fn check(&self, said: Vec<Finding>) -> Result<(), BakeError> {
        let name = self.image.to_owned();
        let known_rules = rules();
        for excuse in self.allowed {
            let rule = excuse.split(':').next().unwrap_or_default();
            if !known_rules.contains(rule) {
                let known: Vec<&str> = known_rules.into_iter().collect();
                return Err(BakeError::NoRule {
                    image: name,
                    rule: rule.to_owned(),
                    known: known.join(", "),
                });
            }
        }
        let mut found: Vec<(Finding, Option<&str>)> =
            said.into_iter().map(|finding| (finding, None)).collect();
        for (layer, step) in self.layers.iter().zip(self.by) {
            let leaks = of_layer(self.store, layer)?;
            found.extend(leaks.into_iter().map(|leak| (leak, Some(*step))));
        }
        found.retain(|(finding, _)| !self.allowed.contains(&finding.excuse()));
        if found.is_empty() {
            return Ok(());
        }
        let findings: Vec<String> = found
            .iter()
            .map(|(Finding { rule, place }, step)| match step {
                Some(step) => format!("  {rule} in {place}, of the step `{step}`"),
                None => format!("  {rule} in {place}"),
            })
            .collect();
        let mut excuses: Vec<String> = found.iter().map(|(finding, _)| finding.excuse()).collect();
        excuses.sort();
        excuses.dedup();
        let excuses: Vec<String> = excuses
            .iter()
            .map(|excuse| format!("\"{excuse}\""))
            .collect();
        let excuses = if self.excuse.ends_with('[') {
            format!("{}{}] }}", self.excuse, excuses.join(", "))
        } else {
            let flags = excuses
                .iter()
                .map(|excuse| format!("{} {excuse}", self.excuse));
            flags.collect::<Vec<_>>().join(" ")
        };
        Err(BakeError::Leaks {
            image: name,
            findings: findings.join("\n"),
            excuses,
        })
    }
}
