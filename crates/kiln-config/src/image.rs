//! `image "name" { … }`.

use std::collections::BTreeMap;

use kiln_model::{CopySpec, DebianSpec, DockerfileSpec, ImageName, ImageSpec, UserSpec};

use crate::Problem;
use crate::checks::{absolute, name, user_name, whole_lines};
use crate::debian;
use crate::environment::environment_names;
use crate::image_dockerfile;
use crate::image_parts::{allow_leak, copy, user};
use crate::image_test::{self, TestDraft};
use crate::reader::Reader;
use crate::section::{BlockShape, Labelled, Section, Shape};
use crate::service::plain;
use crate::signal;
use crate::value::{At, Value};

const SHAPE: Shape = Shape {
    attributes: &[
        "version",
        "from",
        "run",
        "run_as",
        "env",
        "entrypoint",
        "cmd",
        "labels",
        "workdir",
        "stop_signal",
        "for_each",
        "allow_leak",
        "dockerfile",
        "context",
        "target",
        "args",
    ],
    blocks: &[
        BlockShape {
            name: "debian",
            label: None,
        },
        BlockShape {
            name: "user",
            label: Some("name"),
        },
        BlockShape {
            name: "copy",
            label: None,
        },
        BlockShape {
            name: "test",
            label: Some("name"),
        },
    ],
    later: &[
        ("count", "use `for_each`, with a key for each image"),
        ("base", "write `from = image.NAME`"),
    ],
};

/// An image as written: what it starts from may stand below it in the text.
pub(crate) struct Draft {
    pub(crate) name: ImageName,
    from: Option<At<String>>,
    /// With neither this, nor a base, nor a Dockerfile it starts from nothing.
    debian: Option<DebianSpec>,
    dockerfile: Option<DockerfileSpec>,
    version: String,
    users: Vec<UserSpec>,
    copies: Vec<CopySpec>,
    run: Vec<String>,
    run_as: Option<String>,
    env: BTreeMap<String, String>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    labels: BTreeMap<String, String>,
    workdir: Option<String>,
    stop_signal: Option<String>,
    allow_leak: Vec<String>,
    pub(crate) tests: Vec<TestDraft>,
}

/// Where the tests of all images stand.
pub(crate) fn test_places(drafts: &[Draft]) -> image_test::Places {
    let mut places = image_test::Places::new();
    for draft in drafts {
        for test in &draft.tests {
            let key = (draft.name.clone(), test.spec.name.clone());
            places.insert(key, test.header.clone());
        }
    }
    places
}

impl Draft {
    /// With what it has of its base, as a Dockerfile's `FROM` gives it.
    fn over(self, base: Option<&ImageSpec>) -> Option<ImageSpec> {
        let Self {
            name,
            from: _,
            debian,
            dockerfile,
            version,
            users,
            copies,
            run,
            run_as,
            mut env,
            entrypoint,
            cmd,
            mut labels,
            workdir,
            stop_signal,
            mut allow_leak,
            tests,
        } = self;
        let tests = tests.into_iter().map(|test| test.spec).collect();
        let Some(base) = base else {
            return Some(ImageSpec {
                name,
                version,
                base: None,
                debian,
                dockerfile,
                users,
                copies,
                run,
                run_as,
                env,
                entrypoint,
                cmd,
                labels,
                workdir,
                stop_signal,
                allow_leak,
                tests,
            });
        };
        for (key, value) in &base.env {
            env.entry(key.clone()).or_insert_with(|| value.clone());
        }
        for (key, value) in &base.labels {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        // What was excused in the base's layers is in this image's too.
        for excuse in &base.allow_leak {
            if !allow_leak.contains(excuse) {
                allow_leak.push(excuse.clone());
            }
        }
        // The base's arguments are for the base's program.
        let (entrypoint, cmd) = match (entrypoint.is_empty(), cmd.is_empty()) {
            (true, true) => (base.entrypoint.clone(), base.cmd.clone()),
            (true, false) => (base.entrypoint.clone(), cmd),
            (false, _) => (entrypoint, cmd),
        };
        Some(ImageSpec {
            name,
            version,
            // Its tests are of the base itself.
            base: Some(Box::new(ImageSpec {
                tests: Vec::new(),
                ..base.clone()
            })),
            debian: base.debian.clone(),
            dockerfile: None,
            users,
            copies,
            run,
            run_as: run_as.or_else(|| base.run_as.clone()),
            env,
            entrypoint,
            cmd,
            labels,
            workdir: workdir.or_else(|| base.workdir.clone()),
            stop_signal: stop_signal.or_else(|| base.stop_signal.clone()),
            allow_leak,
            tests,
        })
    }
}

/// What an image starts from that starts from nothing, as in a Dockerfile.
const SCRATCH: &str = "scratch";

/// The longest chain of images. Each holds those before it.
const LONGEST: usize = 16;

/// Every image with its base, whatever the order of the text is.
pub(crate) fn resolve(
    reader: &mut Reader<'_>,
    drafts: Vec<Draft>,
) -> BTreeMap<ImageName, ImageSpec> {
    let known: Vec<String> = drafts.iter().map(|draft| draft.name.to_string()).collect();
    let mut waiting = drafts;
    let mut images: BTreeMap<ImageName, ImageSpec> = BTreeMap::new();
    loop {
        let before = waiting.len();
        let mut later = Vec::new();
        for draft in waiting {
            let base = match &draft.from {
                None => None,
                Some(from) => match images.iter().find(|(name, _)| name.as_str() == from.value) {
                    Some((_, base)) if base.dockerfile.is_some() => {
                        reader.report(
                            Problem::Unsupported {
                                what: format!("`from` of a Dockerfile's image, `{}`", base.name),
                            },
                            from.span.clone(),
                            "an image that begins with `debian`",
                            "make this one a Dockerfile too, with `bases = { \"NAME\" = image.NAME }` for its FROM",
                        );
                        continue;
                    }
                    Some((_, base)) if base.chain().len() < LONGEST => Some(base.clone()),
                    Some(_) => {
                        reader.report(
                            Problem::TooLarge {
                                what: format!("the chain of images below `{}`", draft.name),
                            },
                            from.span.clone(),
                            format!("at most {LONGEST} images, each starting from the one before"),
                            "join some of them",
                        );
                        continue;
                    }
                    None => {
                        later.push(draft);
                        continue;
                    }
                },
            };
            let name = draft.name.clone();
            if let Some(image) = draft.over(base.as_ref()) {
                images.insert(name, image);
            }
        }
        waiting = later;
        if waiting.len() == before {
            break;
        }
    }
    // What is left waits for a base that is wrong itself, which is reported, or for itself.
    for draft in &waiting {
        let mut next = draft.from.as_ref();
        let mut steps = 0;
        while let Some(from) = next
            && from.value != draft.name.as_str()
            && steps < known.len()
        {
            let base = waiting.iter().find(|base| base.name.as_str() == from.value);
            next = base.and_then(|base| base.from.as_ref());
            steps += 1;
        }
        if let (Some(from), Some(end)) = (&draft.from, next)
            && end.value == draft.name.as_str()
        {
            reader.report(
                Problem::Cycle {
                    what: format!("the image `{}`", draft.name),
                },
                from.span.clone(),
                "an image that does not start from this one",
                "begin one of them with `debian`",
            );
        }
    }
    images
}

pub(crate) fn read(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Option<Draft> {
    let name = name::<ImageName>(reader, &labelled.label)?;
    let place = format!("`image \"{name}\"`");
    let section = Section::read_lazily(
        reader,
        &SHAPE,
        &labelled.block.body,
        place,
        labelled.header.clone(),
        &["for_each"],
    );
    section.require(reader, "version", "version = \"1.0.0\"");
    let version = section.string_where(
        reader,
        "version",
        // It becomes a part of a tag (OCI distribution specification: `[\w][\w.-]{0,127}`) with a commit behind it.
        |version| {
            let mut bytes = version.bytes();
            version.len() <= 64
                && version.starts_with(|c: char| c.is_ascii_alphanumeric())
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        },
        "at most 64 letters, digits, `.`, `_` and `-`, a letter or digit first",
        |_| "write a version such as \"1.4.0\"",
    );
    let mut scratch = false;
    let from = match section.value("from") {
        Some(At {
            value: Value::String(name),
            ..
        }) if name == SCRATCH => {
            scratch = true;
            None
        }
        Some(At {
            value: Value::Image(name),
            span,
        }) => Some(At { value: name, span }),
        Some(At { value, span }) => {
            reader.wrong_type(&section.what("from"), &value, span, "an image");
            None
        }
        None => None,
    };
    let attributes = SHAPE.attributes.iter().copied();
    let blocks = SHAPE.blocks.iter().map(|block| block.name);
    let dockerfile = image_dockerfile::read(reader, &section, attributes.chain(blocks));
    let of_dockerfile = section.has("dockerfile");
    let debian = match (section.blocks("debian").next(), section.has("from")) {
        _ if of_dockerfile => None,
        (Some(block), true) => {
            reader.report(
                Problem::Contradiction {
                    what: format!("{} has both `from` and `debian`", section.place),
                },
                block.header.clone(),
                "one thing to start from",
                "remove one of the two: packages belong to the image that has `debian`",
            );
            return None;
        }
        (Some(block), false) => debian::read(reader, block),
        (None, true) => None,
        (None, false) => {
            reader.report(
                Problem::Missing {
                    place: section.place.clone(),
                    name: "debian".to_owned(),
                },
                section.header.clone(),
                "expected a `debian` block in it",
                "add `debian { suite = \"bookworm\" }`, `from = image.NAME`, `dockerfile = \"Dockerfile\"`, or `from = \"scratch\"` to start from nothing",
            );
            None
        }
    };
    // A base that is wrong is no reason to look for another.
    let broken = if of_dockerfile {
        dockerfile.is_none()
    } else {
        !scratch
            && (section.has("from") && from.is_none() || !section.has("from") && debian.is_none())
    };
    let users: Vec<UserSpec> = section
        .blocks("user")
        .filter_map(|block| user(reader, block))
        .collect();
    let copies: Vec<CopySpec> = section
        .blocks("copy")
        .filter_map(|block| copy(reader, block))
        .collect();
    let workdir = section
        .string(reader, "workdir")
        .filter(|path| absolute(reader, &section.what("workdir"), path));
    let stop_signal = section.string_where(
        reader,
        "stop_signal",
        signal::is_one,
        "the name of a signal",
        signal::nearest,
    );
    let run_as = section
        .string(reader, "run_as")
        .filter(|user| user_name(reader, &section.what("run_as"), user));
    let entrypoint = section
        .strings(reader, "entrypoint")
        .map(plain)
        .unwrap_or_default();
    let cmd = section
        .strings(reader, "cmd")
        .map(plain)
        .unwrap_or_default();
    let env = environment_names(reader, &section, false);
    let run = section.strings(reader, "run");
    if let Some(lines) = &run {
        whole_lines(reader, &section.what("run"), &lines.value);
    }
    let run = run.map(plain).unwrap_or_default();
    let labels: BTreeMap<String, String> = section
        .map(reader, "labels")
        .into_iter()
        .map(|(key, at)| (key, at.value))
        .collect();
    let allow_leak = allow_leak(reader, &section);
    let tests: Vec<TestDraft> = section
        .blocks("test")
        .filter_map(|block| image_test::read(reader, block))
        .collect();
    if broken {
        return None;
    }
    Some(Draft {
        name,
        from,
        debian,
        dockerfile,
        version: version?.value,
        users,
        copies,
        run,
        run_as: run_as.map(|at| at.value),
        env,
        entrypoint,
        cmd,
        labels,
        workdir: workdir.map(|at| at.value),
        stop_signal: stop_signal.map(|at| at.value),
        allow_leak,
        tests,
    })
}
