//! What FROM names: nothing, an earlier stage, or an image: of the store, of an archive or of a registry, by its own name or
//! by a mapping.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_config::dockerfile::Complaint;
use kiln_model::{Digest, days_of};
use kiln_oci::{
    ArchiveReference, Image, ImportError, RegistryName, RunConfig, Store, StoreError, normal_name,
    same_name,
};

use super::bake::Bake;
use super::stage::{Based, FIRST_DAY, Stage, created};
use crate::arch;
use crate::error::BakeError;
use crate::leaks;
use crate::progress::BakeProgress;
use crate::record::provenance::ResolvedBase;

/// What the image called `name` says of how it is run, where it is here: nothing is fetched.
pub fn known_base(
    store: &Store,
    bases: &BTreeMap<String, String>,
    name: &str,
) -> Option<RunConfig> {
    let mapped = bases.iter().find(|(known, _)| same_name(known, name));
    let reference = mapped.map_or(name, |(_, reference)| reference);
    let digest = match store.resolve(reference) {
        Ok(digest) => digest,
        Err(_) => tagged(store, reference).ok()??,
    };
    Some(store.image(&digest).ok()?.config.config)
}

fn tagged(store: &Store, name: &str) -> Result<Option<Digest>, StoreError> {
    let wanted = normal_name(name);
    let mut known = store.tags()?.into_iter();
    let found = known.find(|entry| entry.tag == name || entry.tag == wanted);
    Ok(found.map(|entry| entry.digest))
}

impl Bake<'_> {
    /// The image called `name` at `span` of the stage `index`, which is no stage itself.
    pub(super) fn image(
        &self,
        index: usize,
        name: &str,
        span: &std::ops::Range<usize>,
    ) -> Result<Arc<Stage>, BakeError> {
        if let Some((name, path)) = self.context_named(name) {
            return self.folder_stage(index, name, path, span).map(Arc::new);
        }
        let mapped = self
            .request
            .bases
            .iter()
            .find(|(known, _)| same_name(known, name))
            .map(|(_, reference)| reference.as_str());
        let digest = match mapped {
            Some(reference) if ArchiveReference::is_one(reference) => self.archived(reference)?,
            Some(reference) => match self.store.resolve(reference) {
                Ok(digest) => digest,
                Err(StoreError::UnknownReference { .. }) => self.named_image(reference, span)?,
                Err(error) => return Err(error.into()),
            },
            None => match self.stored(name)? {
                Some(digest) => digest,
                None => self.named_image(name, span)?,
            },
        };
        self.notes().bases.insert(ResolvedBase {
            name: name.to_owned(),
            digest,
        });
        let image = self.store.image(&digest)?;
        Ok(Arc::new(stage(image)))
    }

    fn archived(&self, reference: &str) -> Result<Digest, BakeError> {
        let archive: ArchiveReference = reference.parse()?;
        self.tell(BakeProgress::Importing {
            image: reference.to_owned(),
        });
        Ok(self.store.import_archive(&archive, arch::arch())?)
    }

    /// An image of a registry.
    fn named_image(&self, name: &str, span: &std::ops::Range<usize>) -> Result<Digest, BakeError> {
        let map = format!(
            "map it to one that can be had: --base {name}=REF, where REF is a tag or digest that `kiln images` lists, oci:DIR, oci-archive:FILE, docker-archive:FILE or the name of another image"
        );
        let wrong = |what: String| self.error(Complaint::error(span.clone(), what, map.clone()));
        let parsed = RegistryName::parse(name)
            .map_err(|problem| wrong(format!("there is no image `{name}` here: {problem}")))?;
        self.tell(BakeProgress::Importing {
            image: name.to_owned(),
        });
        let registries = self.request.registries;
        registries
            .pull(self.store, &parsed, name, arch::arch())
            .map_err(|error| match error {
                ImportError::Registry { problem, .. } => {
                    wrong(format!("there is no image `{name}` here: {problem}"))
                }
                error => error.into(),
            })
    }

    fn stored(&self, name: &str) -> Result<Option<Digest>, BakeError> {
        // The beginning of a digest is for people, and a name that happens to look like it is none.
        let is_digest = name.starts_with("sha256:");
        if let Some(digest) = tagged(self.store, name)? {
            return Ok(Some(digest));
        }
        if !is_digest {
            return Ok(None);
        }
        match self.store.resolve(name) {
            Ok(digest) => Ok(Some(digest)),
            Err(StoreError::UnknownReference { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn stage(image: Image) -> Stage {
    let mut config = image.config;
    if config.architecture.is_empty() {
        config.architecture = arch::arch().to_owned();
    }
    if config.os.is_empty() {
        config.os = "linux".to_owned();
    }
    let date = config
        .created
        .as_deref()
        .and_then(seconds)
        .unwrap_or(FIRST_DAY)
        .max(FIRST_DAY);
    config.created = Some(created(date));
    let based = Based {
        layers: image.layers.len(),
        said: leaks::in_config(&config, &[]),
    };
    Stage {
        layers: image.layers,
        config,
        args: BTreeMap::new(),
        declared: BTreeSet::new(),
        date,
        based,
    }
}

/// Seconds since 1970 of an RFC 3339 time; its fraction is dropped.
fn seconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let of_day = number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?;
    let days = days_of(year, month, day);
    let zone = text
        .get(19..)?
        .trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match (zone.get(..1), zone.get(1..3), zone.get(4..6)) {
        (Some("Z" | "z"), _, _) => 0,
        (Some(sign @ ("+" | "-")), Some(hours), Some(minutes)) => {
            let offset = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if sign == "+" { offset } else { -offset }
        }
        _ => return None,
    };
    Some(days * 86_400 + of_day - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_zone() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:30:15.123456789Z", Some(951_827_415)),
            ("2024-03-01T01:00:00+01:00", Some(1_709_251_200)),
            ("2023-12-31T23:00:00-01:00", Some(1_704_067_200)),
            ("yesterday", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }
}
