//! What FROM names: nothing, an earlier stage, or an image of the store, by its own name or by a mapping.

use std::sync::Arc;

use kiln_config::dockerfile::Complaint;
use kiln_model::Digest;
use kiln_oci::{Image, ImageConfig, RunConfig, StoreError};

use super::{Bake, Stage, created};
use crate::error::BakeError;
use crate::{archive, configure};

/// The first day that every archive format can hold (that of zip): what stands on nothing has it.
const FIRST_DAY: i64 = 315_532_800;

/// A name as registries understand it: `debian` is `docker.io/library/debian:latest`.
fn normal(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

pub(super) fn scratch() -> Stage {
    Stage {
        layers: Vec::new(),
        config: ImageConfig {
            created: Some(created(FIRST_DAY)),
            architecture: archive::arch().to_owned(),
            os: "linux".to_owned(),
            config: RunConfig {
                env: vec![format!("PATH={}", configure::PATH)],
                working_dir: "/".to_owned(),
                ..RunConfig::default()
            },
            ..ImageConfig::default()
        },
        date: FIRST_DAY,
    }
}

impl Bake<'_> {
    /// The image called `name` at `span`, which is no stage.
    pub(super) fn image(
        &self,
        name: &str,
        span: &std::ops::Range<usize>,
    ) -> Result<Arc<Stage>, BakeError> {
        let wanted = normal(name);
        let mapped = self
            .request
            .bases
            .iter()
            .find(|(known, _)| normal(known) == wanted);
        let digest = match mapped {
            Some((_, reference)) => self.store.resolve(reference).map_err(|error| {
                let place = self.request.dockerfile.error(Complaint::error(
                    span.clone(),
                    format!("`{name}` is mapped to `{reference}`, which is no image here"),
                    "`kiln images` lists those there are: --base NAME=REF, where REF is a tag or a digest",
                ));
                match error {
                    StoreError::UnknownReference { .. } => BakeError::Dockerfile(place),
                    error => super::at(place, error.into()),
                }
            })?,
            None => self.stored(name, &wanted).ok_or_else(|| {
                self.error(Complaint::error(
                    span.clone(),
                    format!("there is no image `{name}` here, and this version of kiln asks no registry"),
                    format!("map it to one that `kiln images` lists: --base {name}=REF"),
                ))
            })?,
        };
        let image = self.store.image(&digest)?;
        Ok(Arc::new(stage(image)))
    }

    fn stored(&self, name: &str, wanted: &str) -> Option<Digest> {
        // The beginning of a digest is for people, and a name that happens to look like it is none.
        let tags = [name, wanted];
        let is_digest = name.starts_with("sha256:");
        let known = self.store.tags().ok()?;
        known
            .into_iter()
            .find(|entry| tags.contains(&entry.tag.as_str()))
            .map(|entry| entry.digest)
            .or_else(|| is_digest.then(|| self.store.resolve(name).ok()).flatten())
    }
}

fn stage(image: Image) -> Stage {
    let mut config = image.config;
    if config.architecture.is_empty() {
        config.architecture = archive::arch().to_owned();
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
    Stage {
        layers: image.layers,
        config,
        date,
    }
}

/// Seconds since 1970 of an RFC 3339 time; its fraction is dropped.
fn seconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let of_day = number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?;
    // Days from civil (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
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
    fn names_are_equal_as_registries_have_them() {
        for (one, other, equal) in [
            ("debian", "docker.io/library/debian:latest", true),
            ("debian:12", "library/debian:12", true),
            ("debian", "debian:12", false),
            ("localhost:5000/a", "localhost:5000/a:latest", true),
            ("a/debian", "debian", false),
        ] {
            assert_eq!(normal(one) == normal(other), equal, "{one} {other}");
        }
    }

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
