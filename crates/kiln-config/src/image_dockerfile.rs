//! An image of a Dockerfile, `image "name" { dockerfile = … }`, and `bases`, what the names of images in Dockerfiles mean.

use std::collections::BTreeMap;

use kiln_model::{BaseSpec, DockerfileSpec};

use crate::Problem;
use crate::reader::Reader;
use crate::section::Section;
use crate::value::{At, Value};

/// What only a Dockerfile's image has.
const OWN: [&str; 3] = ["context", "target", "args"];
/// What such an image has besides.
const SHARED: [&str; 5] = ["version", "for_each", "allow_leak", "dockerfile", "test"];

/// Some where the image is of a Dockerfile, and all is right.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    names: impl Iterator<Item = &'static str>,
) -> Option<DockerfileSpec> {
    if !section.has("dockerfile") {
        for name in OWN.into_iter().filter(|name| section.has(name)) {
            let span = span(section, name);
            reader.report(
                Problem::Contradiction {
                    what: format!("{} without `dockerfile`", section.what(name)),
                },
                span,
                "an image of a Dockerfile",
                "add `dockerfile = \"Dockerfile\"`, or remove it",
            );
        }
        return None;
    }
    let mut good = true;
    for name in names.filter(|name| !OWN.contains(name) && !SHARED.contains(name)) {
        let span = match section.blocks(name).next() {
            Some(block) => block.header.clone(),
            None if section.has(name) => span(section, name),
            None => continue,
        };
        reader.report(
            Problem::Contradiction {
                what: format!("{} has both `dockerfile` and `{name}`", section.place),
            },
            span,
            "either a Dockerfile, or what the definition says itself",
            "say it in the Dockerfile",
        );
        good = false;
    }
    let dockerfile = path(reader, section, "dockerfile");
    let context = path(reader, section, "context");
    let target = section.string(reader, "target").map(|at| at.value);
    let args = section.map(reader, "args");
    let whole = good && dockerfile.is_some() && (context.is_some() || !section.has("context"));
    whole.then(|| DockerfileSpec {
        file: dockerfile.unwrap_or_default(),
        context: context.unwrap_or_else(|| ".".to_owned()),
        target,
        args: args
            .into_iter()
            .map(|(name, at)| (name, at.value))
            .collect(),
    })
}

fn span(section: &Section<'_>, name: &str) -> std::ops::Range<usize> {
    section
        .value(name)
        .map_or(section.header.clone(), |at| at.span)
}

/// A path of the definition's folder: what is baked has to come from the commit.
fn path(reader: &mut Reader<'_>, section: &Section<'_>, name: &str) -> Option<String> {
    let at = section.string(reader, name)?;
    let inside = !at.value.is_empty()
        && !at.value.starts_with('/')
        && at.value.split('/').all(|part| part != "..");
    if !inside {
        reader.bad_value(
            &section.what(name),
            format!("`{}`", at.value),
            at.span,
            "a path inside the definition's folder",
            "write it relative to the definition, without `..`",
        );
        return None;
    }
    Some(at.value)
}

/// `bases = { "debian:bookworm" = image.base, "alpine" = "oci:alpine" }`
pub(crate) fn bases(reader: &mut Reader<'_>, file: &Section<'_>) -> BTreeMap<String, BaseSpec> {
    let mut bases = BTreeMap::new();
    let Some(At { value, span }) = file.value("bases") else {
        return bases;
    };
    let Value::Map(entries) = value else {
        reader.wrong_type(&file.what("bases"), &value, span, "a map");
        return bases;
    };
    for (name, entry) in entries {
        let At { value, span } = entry.item;
        let base = match value {
            Value::Image(image) => match image.parse() {
                Ok(image) => BaseSpec::Image(image),
                // Reported where the image is.
                Err(_) => continue,
            },
            Value::String(text) if !text.is_empty() => BaseSpec::Reference(text),
            Value::Null => continue,
            other => {
                let what = format!("`{name}` in {}", file.what("bases"));
                reader.wrong_type(&what, &other, span, "an image, or a string");
                continue;
            }
        };
        bases.insert(name, base);
    }
    bases
}
