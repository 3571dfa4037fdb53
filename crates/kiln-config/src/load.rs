//! The whole file: what may stand at its top, and one spec for the environment that is asked for.

use std::collections::BTreeMap;
use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::structure::Body;
use kiln_model::{
    EnvName, ImageName, ImageSpec, ProjectName, ProjectSpec, ServiceDefinition, ServiceName,
};

use crate::each::{self, Round};
use crate::reader::{Outside, Reader};
use crate::section::{BlockShape, Labelled, Section, Shape};
use crate::service::ServiceDraft;
use crate::value::At;
use crate::variable::{self, VariableValue};
use crate::{
    ConfigErrors, Diagnostic, Problem, Source, Sources, checks, image, image_dockerfile,
    image_test, suggest,
};

/// What a definition is read for.
#[derive(Clone, Debug)]
pub struct Inputs {
    pub environment: EnvName,
    pub variables: BTreeMap<String, VariableValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub spec: ProjectSpec,
    /// For a person; nothing is wrong with the definition itself.
    pub warnings: Vec<String>,
    /// What the definition read besides itself, relative to its folder.
    pub files: Vec<String>,
}

const FILE: Shape = Shape {
    attributes: &["project", "bases"],
    blocks: &[
        BlockShape {
            name: "image",
            label: Some("name"),
        },
        BlockShape {
            name: "service",
            label: Some("name"),
        },
        BlockShape {
            name: "environment",
            label: Some("name"),
        },
        BlockShape {
            name: "variable",
            label: Some("name"),
        },
        BlockShape {
            name: "locals",
            label: None,
        },
    ],
    later: &[
        ("job", "leave it out"),
        (
            "module",
            "split the definition into files: kiln reads each *.kiln.hcl beside kiln.hcl",
        ),
        ("registry", "leave it out"),
    ],
};
const ENVIRONMENT: Shape = Shape {
    attributes: &[],
    blocks: &[BlockShape {
        name: "service",
        label: Some("name"),
    }],
    later: &[
        (
            "after",
            "leave it out: no order between environments is kept yet",
        ),
        ("approvals", "leave it out: no approval is asked for yet"),
        ("engine", "leave it out: this machine is the engine"),
    ],
};

/// The environment that every definition has, and that commands mean when they name none.
const DEFAULT_ENVIRONMENT: &str = "dev";

/// Reads a definition, which may be split over several files. Every environment is checked, whichever is asked for.
pub fn load(
    sources: Vec<Source>,
    inputs: &Inputs,
    outside: &dyn Outside,
) -> Result<Loaded, ConfigErrors> {
    let mut reader = Reader::new(Sources::default(), outside);
    // All of them, so that each reports what is wrong with it. Then one body: blocks may stand in any file.
    let bodies: Vec<Option<Body>> = sources
        .into_iter()
        .map(|source| reader.parse(source, hcl_edit::parser::parse_body))
        .collect();
    let body: Option<Body> = bodies
        .into_iter()
        .collect::<Option<Vec<Body>>>()
        .map(|bodies| bodies.into_iter().flatten().collect());
    let Some(body) = body else {
        let (sources, diagnostics) = reader.finish();
        return Err(ConfigErrors {
            sources,
            diagnostics,
        });
    };
    // Made anew, because what it keeps of the body has to outlive it.
    let (sources, _) = reader.finish();
    let mut reader = Reader::new(sources, outside);
    let mut warnings = Vec::new();
    let spec = read(&mut reader, &body, inputs, &mut warnings);
    let files = std::mem::take(&mut reader.files).into_iter().collect();
    let (sources, diagnostics) = reader.finish();
    match spec {
        Some(spec) if diagnostics.is_empty() => Ok(Loaded {
            spec,
            warnings,
            files,
        }),
        _ => Err(ConfigErrors {
            sources,
            diagnostics,
        }),
    }
}

fn read<'a>(
    reader: &mut Reader<'a>,
    body: &'a Body,
    inputs: &Inputs,
    warnings: &mut Vec<String>,
) -> Option<ProjectSpec> {
    let validations = variable::declare(reader, body, &inputs.variables, warnings);
    each::images(reader, body);
    variable::check_all(reader, &validations);
    // The first line stands for a file that lacks something.
    let start = body
        .iter()
        .next()
        .and_then(Span::span)
        .map_or(0, |span| span.start);
    let file = Section::read(
        reader,
        &FILE,
        body,
        "the definition".to_owned(),
        start..start + 1,
    );
    file.require(reader, "project", "project = \"NAME\"");
    let project: Option<ProjectName> = file
        .string(reader, "project")
        .and_then(|text| checks::name(reader, &text));

    let bases = image_dockerfile::bases(reader, &file);
    let mut found: Vec<image::Draft> = Vec::new();
    for block in file.blocks("image") {
        for round in rounds(reader, block) {
            let image = each::in_round(reader, block, round.as_ref(), image::read);
            let Some(image) = image else { continue };
            if found.iter().any(|other| other.name == image.name) {
                taken(reader, block, &format!("`image \"{}\"`", image.name));
            }
            found.push(image);
        }
    }
    let tests = image::test_places(&found);
    let mut images = image::resolve(reader, found);
    let mut drafts: BTreeMap<ServiceName, ServiceDraft> = BTreeMap::new();
    let mut groups = Groups::new();
    for block in file.blocks("service") {
        for round in rounds(reader, block) {
            let (name, draft) = each::in_round(reader, block, round.as_ref(), |reader, block| {
                let name: Option<ServiceName> = checks::name(reader, &block.label);
                (name, ServiceDraft::read(reader, block))
            });
            let Some(name) = name else { continue };
            if drafts.insert(name.clone(), draft).is_some() {
                taken(reader, block, &format!("`service \"{name}\"`"));
            }
            if let Some(round) = round {
                let group = groups.entry(block.label.value.clone()).or_default();
                group.push((name, round));
            }
        }
    }
    if !reader.has_errors() {
        circles(reader, &file);
    }
    let environments = environments(reader, &file, &drafts, &groups);
    let headers: BTreeMap<ServiceName, Range<usize>> = drafts
        .iter()
        .map(|(name, draft)| (name.clone(), draft.header()))
        .collect();
    let services = choose(reader, inputs, drafts, &environments)?;
    command_check(reader, &headers, &images, &services);
    image_test::settle(reader, &mut images, &services, &tests);
    Some(ProjectSpec {
        project: project?,
        environment: inputs.environment.clone(),
        environments: environments.into_iter().map(|(name, _)| name).collect(),
        images,
        bases,
        services,
    })
}

/// The rounds of a block: one without `each`, where it has no `for_each`; none, where that is wrong.
fn rounds(reader: &mut Reader<'_>, block: &Labelled<'_>) -> Vec<Option<Round>> {
    let place = format!("`{} \"{}\"`", block.block.ident.as_str(), block.label.value);
    match each::rounds(reader, &place, block.block) {
        Some(None) => vec![None],
        Some(Some(rounds)) => rounds.into_iter().map(Some).collect(),
        None => Vec::new(),
    }
}

/// Images whose `for_each` can't be told, and nothing else is wrong: they wait for each other.
fn circles(reader: &mut Reader<'_>, file: &Section<'_>) {
    for block in file.blocks("image") {
        if matches!(reader.images.get(&block.label.value), Some(None)) {
            reader.report(
                Problem::Cycle {
                    what: format!("`for_each` of `image \"{}\"`", block.label.value),
                },
                block.header.clone(),
                "what it goes through is known without the image itself",
                "go through something else, a local for example",
            );
        }
    }
}

fn taken(reader: &mut Reader<'_>, block: &Labelled<'_>, what: &str) {
    reader.report(
        Problem::Duplicate {
            what: what.to_owned(),
        },
        block.header.clone(),
        "a name that no other has: with `for_each` it is NAME-KEY",
        "rename one of the two",
    );
}

/// The services that a block with `for_each` stands for, by its label.
type Groups = BTreeMap<String, Vec<(ServiceName, Round)>>;
type Overrides = BTreeMap<ServiceName, ServiceDraft>;

fn environments(
    reader: &mut Reader<'_>,
    file: &Section<'_>,
    drafts: &BTreeMap<ServiceName, ServiceDraft>,
    groups: &Groups,
) -> Vec<(EnvName, Overrides)> {
    let mut environments = Vec::new();
    for block in file.blocks("environment") {
        let name: Option<EnvName> = checks::name(reader, &block.label);
        let place = format!("`environment \"{}\"`", block.label.value);
        let section = Section::read(
            reader,
            &ENVIRONMENT,
            &block.block.body,
            place,
            block.header.clone(),
        );
        let mut overrides = Overrides::new();
        for block in section.blocks("service") {
            if let Some(attribute) = block.block.body.get_attribute("for_each") {
                reader.report(
                    Problem::Contradiction {
                        what: "`for_each` in an environment".to_owned(),
                    },
                    attribute.key.span().unwrap_or_default(),
                    "it belongs to the service at the top",
                    "remove it here: the block changes each of them",
                );
            }
            let label = &block.label;
            if let Some(group) = groups.get(&label.value) {
                for (name, round) in group {
                    let draft = each::in_round(reader, block, Some(round), ServiceDraft::read);
                    let draft = match overrides.remove(name) {
                        // What names one of them wins over what names all.
                        Some(own) => draft.overlay(own),
                        None => draft,
                    };
                    overrides.insert(name.clone(), draft);
                }
                continue;
            }
            let draft = ServiceDraft::read(reader, block);
            match drafts
                .iter()
                .find(|(known, _)| known.as_str() == label.value)
            {
                Some((known, _)) => {
                    let draft = match overrides.remove(known) {
                        Some(all) => all.overlay(draft),
                        None => draft,
                    };
                    overrides.insert(known.clone(), draft);
                }
                None => {
                    let known = drafts
                        .keys()
                        .map(ServiceName::as_str)
                        .chain(groups.keys().map(String::as_str));
                    let help = match suggest::nearest(&label.value, known) {
                        Some(right) => format!("write `service \"{right}\"`"),
                        None => "define the service at the top of the file; an environment only changes it".to_owned(),
                    };
                    reader.report(
                        Problem::UnknownReference {
                            kind: "service",
                            name: label.value.clone(),
                        },
                        label.span.clone(),
                        "a service of this definition",
                        help,
                    );
                }
            }
        }
        if let Some(name) = name {
            environments.push((name, overrides));
        }
    }
    environments
}

/// Resolves the services of every environment, for the sake of their errors, and gives those of the one asked for.
fn choose(
    reader: &mut Reader<'_>,
    inputs: &Inputs,
    drafts: BTreeMap<ServiceName, ServiceDraft>,
    environments: &[(EnvName, Overrides)],
) -> Option<BTreeMap<ServiceName, ServiceDefinition>> {
    let none = Overrides::new();
    let mut chosen = None;
    for (name, overrides) in environments {
        let services = resolve(reader, &drafts, overrides);
        if *name == inputs.environment {
            chosen = Some(services);
        }
    }
    if environments
        .iter()
        .all(|(name, _)| name.as_str() != DEFAULT_ENVIRONMENT)
    {
        let services = resolve(reader, &drafts, &none);
        if inputs.environment.as_str() == DEFAULT_ENVIRONMENT {
            chosen = Some(services);
        }
    }
    if chosen.is_none() {
        let name = inputs.environment.to_string();
        let known: Vec<&str> = environments
            .iter()
            .map(|(name, _)| name.as_str())
            .chain([DEFAULT_ENVIRONMENT])
            .collect();
        let help = match suggest::nearest(&name, known.iter().copied()) {
            Some(right) => format!("write `--env {right}`"),
            None => format!("add `environment \"{name}\" {{}}`"),
        };
        reader.push(Diagnostic {
            problem: Problem::UnknownReference {
                kind: "environment",
                name,
            },
            span: None,
            expected: known.join(", "),
            help,
        });
    }
    chosen
}

fn resolve(
    reader: &mut Reader<'_>,
    drafts: &BTreeMap<ServiceName, ServiceDraft>,
    overrides: &Overrides,
) -> BTreeMap<ServiceName, ServiceDefinition> {
    let mut services = BTreeMap::new();
    let mut listening: Vec<(At<std::net::SocketAddr>, &ServiceName)> = Vec::new();
    for (name, draft) in drafts {
        let draft = match overrides.get(name) {
            Some(over) => draft.clone().overlay(over.clone()),
            None => draft.clone(),
        };
        if let Some(listen) = draft.listen() {
            let clash = listening.iter().find(|(other, _)| {
                let (a, b) = (other.value, listen.value);
                a.port() == b.port()
                    && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
            });
            match clash {
                Some((first, other)) => {
                    // Reported at the later of the two in the text.
                    let span = if first.span.start > listen.span.start {
                        first.span.clone()
                    } else {
                        listen.span.clone()
                    };
                    let what = format!(
                        "`service \"{other}\"` and `service \"{name}\"` listen on one port, {}",
                        listen.value.port()
                    );
                    reader.report(
                        Problem::Contradiction { what },
                        span,
                        "expected a port of its own",
                        "give one of them another `listen`",
                    );
                }
                None => listening.push((listen.clone(), name)),
            }
        }
        if let Some(service) = draft.resolve(reader, name) {
            services.insert(name.clone(), service);
        }
    }
    services
}

/// An image without a command can be baked, but a service of it has nothing to run.
fn command_check(
    reader: &mut Reader<'_>,
    headers: &BTreeMap<ServiceName, Range<usize>>,
    images: &BTreeMap<ImageName, ImageSpec>,
    services: &BTreeMap<ServiceName, ServiceDefinition>,
) {
    for (name, service) in services {
        let Some(image) = images.get(&service.image) else {
            continue;
        };
        // What a Dockerfile's image runs is known when it is baked.
        let unknown = image.dockerfile.is_some();
        if !unknown
            && service.command.is_empty()
            && image.cmd.is_empty()
            && image.entrypoint.is_empty()
        {
            let Some(header) = headers.get(name) else {
                continue;
            };
            let what = format!(
                "`service \"{name}\"` has nothing to run: `image \"{}\"` has no `cmd`",
                image.name
            );
            reader.report(
                Problem::Contradiction { what },
                header.clone(),
                "expected a command",
                format!(
                    "add `cmd = [\"PROGRAM\"]` to the image \"{}\", or `command` to the service",
                    image.name
                ),
            );
        }
    }
}
