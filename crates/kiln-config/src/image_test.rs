//! `test "name" { … }` of an image.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use kiln_model::{
    CommandCheck, FileCheck, HttpCheck, ImageName, ImageSpec, ServiceDefinition, ServiceName,
    TestSpec, TextCheck,
};

use crate::Problem;
use crate::checks::{absolute, user_name, whole_lines};
use crate::environment::environment_names;
use crate::reader::Reader;
use crate::section::{BlockShape, Labelled, Section, Shape};
use crate::service::plain;
use crate::value::{At, Value, number_text};

const TIMEOUT: Duration = Duration::from_secs(30);

const SHAPE: Shape = Shape {
    attributes: &[
        "timeout",
        "env",
        "run",
        "ports",
        "present",
        "absent",
        "packages",
        "packages_absent",
    ],
    blocks: &[
        BlockShape {
            name: "command",
            label: None,
        },
        BlockShape {
            name: "http",
            label: None,
        },
        BlockShape {
            name: "file",
            label: Some("/path"),
        },
    ],
    later: &[
        (
            "tmpfs",
            "give the service one: tests of its image have it too",
        ),
        ("exec", "write `command { argv = [\"PROGRAM\"] }`"),
    ],
};
const COMMAND: Shape = Shape {
    attributes: &["run", "argv", "user", "exit"],
    blocks: &[
        BlockShape {
            name: "stdout",
            label: None,
        },
        BlockShape {
            name: "stderr",
            label: None,
        },
    ],
    later: &[],
};
const HTTP: Shape = Shape {
    attributes: &[
        "path", "port", "status", "headers", "contains", "matches", "equals",
    ],
    blocks: &[],
    later: &[
        ("method", "tests ask with GET: send others with a `command`"),
        ("body", "write `contains`, `matches` or `equals`"),
    ],
};
const FILE: Shape = Shape {
    attributes: &["owner", "group", "mode", "contains", "matches", "equals"],
    blocks: &[],
    later: &[],
};
const TEXT: Shape = Shape {
    attributes: &["contains", "matches", "equals"],
    blocks: &[],
    later: &[],
};

/// A test as written: what it has of the services comes later.
pub(crate) struct TestDraft {
    pub(crate) spec: TestSpec,
    pub(crate) header: Range<usize>,
}

/// Where each test stands.
pub(crate) type Places = BTreeMap<(ImageName, String), Range<usize>>;

pub(crate) fn read(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Option<TestDraft> {
    let name = labelled.label.value.clone();
    let section = Section::read(
        reader,
        &SHAPE,
        &labelled.block.body,
        format!("`test \"{name}\"`"),
        labelled.header.clone(),
    );
    let printable = !name.is_empty() && name.len() <= 100 && !name.contains(char::is_control);
    if !printable {
        reader.bad_value(
            "the name of a test",
            format!("`{name}`"),
            labelled.label.span.clone(),
            "what it checks, in at most 100 characters",
            "write a name such as \"answers\"",
        );
    }
    let timeout = section.duration(reader, "timeout", Duration::from_millis(100));
    let lines = section.one_or_more(reader, "run");
    whole_lines(reader, &section.what("run"), &lines);
    let mut commands: Vec<CommandCheck> = lines
        .into_iter()
        .map(|line| CommandCheck {
            argv: shell(&line.value),
            user: None,
            exit: 0,
            stdout: TextCheck::default(),
            stderr: TextCheck::default(),
        })
        .collect();
    let blocks = section.blocks("command");
    commands.extend(blocks.filter_map(|block| command(reader, block)));
    let http = section
        .blocks("http")
        .filter_map(|block| self::http(reader, block))
        .collect();
    let files = section
        .blocks("file")
        .filter_map(|block| file(reader, block))
        .collect();
    let mut paths = |name: &str| -> Vec<String> {
        let what = format!("an item of {}", section.what(name));
        let found = section.one_or_more(reader, name).into_iter();
        let good: Vec<_> = found.filter(|path| absolute(reader, &what, path)).collect();
        good.into_iter().map(|path| path.value).collect()
    };
    let (present, absent) = (paths("present"), paths("absent"));
    let ports = ports(reader, &section);
    let env = environment_names(reader, &section, false);
    let mut names = |name: &str| -> Vec<String> {
        let list = section.one_or_more(reader, name).into_iter();
        list.map(|at| at.value).collect()
    };
    let (packages, packages_absent) = (names("packages"), names("packages_absent"));
    let checks = SHAPE
        .attributes
        .iter()
        .filter(|name| !["timeout", "env"].contains(name));
    let is_empty = !checks.clone().any(|name| section.has(name))
        && SHAPE
            .blocks
            .iter()
            .all(|block| section.blocks(block.name).next().is_none());
    if is_empty {
        reader.report(
            Problem::Missing {
                place: section.place.clone(),
                name: "check".to_owned(),
            },
            labelled.header.clone(),
            "it checks nothing",
            "add `run = [\"COMMAND\"]`, `http { path = \"/\" }`, `ports`, `file`, `present`, `absent` or `packages`",
        );
    }
    Some(TestDraft {
        spec: TestSpec {
            name: printable.then_some(name)?,
            timeout: timeout.map_or(TIMEOUT, |at| at.value),
            env,
            port: None,
            tmpfs: BTreeMap::new(),
            commands,
            http,
            ports,
            files,
            present,
            absent,
            packages,
            packages_absent,
        },
        header: labelled.header.clone(),
    })
}

fn shell(line: &str) -> Vec<String> {
    ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
}

fn command(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Option<CommandCheck> {
    let section = Section::read(
        reader,
        &COMMAND,
        &labelled.block.body,
        "`command`".to_owned(),
        labelled.header.clone(),
    );
    let line = section.string(reader, "run");
    let argv = section.strings(reader, "argv");
    if section.has("run") == section.has("argv") {
        let (problem, help) = if section.has("run") {
            let what = "`command` has both `run` and `argv`".to_owned();
            (Problem::Contradiction { what }, "remove one of the two")
        } else {
            let (place, name) = (section.place.clone(), "run".to_owned());
            let help = "add `run = \"SHELL COMMAND\"`, or `argv = [\"PROGRAM\", \"ARGUMENT\"]`";
            (Problem::Missing { place, name }, help)
        };
        reader.report(problem, labelled.header.clone(), "one command", help);
        return None;
    }
    let argv = match (line, argv) {
        (Some(line), _) => shell(&line.value),
        (None, Some(argv)) if argv.value.is_empty() => {
            reader.bad_value(
                &section.what("argv"),
                "an empty list",
                argv.span,
                "a program and its arguments",
                "write `argv = [\"PROGRAM\", \"ARGUMENT\"]`",
            );
            return None;
        }
        (None, argv) => plain(argv?),
    };
    let user = section
        .string(reader, "user")
        .filter(|user| user_name(reader, &section.what("user"), user));
    let exit = section.whole(reader, "exit", 0, 255);
    let mut stream = |name: &'static str| {
        let block = section.blocks(name).next()?;
        let section = Section::read(
            reader,
            &TEXT,
            &block.block.body,
            format!("`{name}`"),
            block.header.clone(),
        );
        Some(text(reader, &section))
    };
    Some(CommandCheck {
        argv,
        stdout: stream("stdout").unwrap_or_default(),
        stderr: stream("stderr").unwrap_or_default(),
        user: user.map(|at| at.value),
        exit: exit.map_or(0, |at| at.value as u8),
    })
}

fn http(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Option<HttpCheck> {
    let section = Section::read(
        reader,
        &HTTP,
        &labelled.block.body,
        "`http`".to_owned(),
        labelled.header.clone(),
    );
    section.require(reader, "path", "path = \"/\"");
    let path = section.request_path(reader, "path");
    let port = section.whole(reader, "port", 1, 65_535);
    let status = section.whole(reader, "status", 100, 599);
    let headers = section.map(reader, "headers").into_iter();
    Some(HttpCheck {
        headers: headers.map(|(name, at)| (name, at.value)).collect(),
        body: text(reader, &section),
        path: path?.value,
        port: port.map(|at| at.value as u16),
        status: status.map_or(200, |at| at.value as u16),
    })
}

fn file(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Option<(String, FileCheck)> {
    let section = Section::read(
        reader,
        &FILE,
        &labelled.block.body,
        format!("`file \"{}\"`", labelled.label.value),
        labelled.header.clone(),
    );
    let good = absolute(reader, "the path of a file", &labelled.label);
    let mut who = |who: &str| {
        let name = section.string(reader, who)?;
        user_name(reader, &section.what(who), &name).then_some(name.value)
    };
    let (owner, group) = (who("owner"), who("group"));
    let mode = section.string(reader, "mode").and_then(|mode| {
        let bits = u32::from_str_radix(&mode.value, 8).ok();
        let good = bits.filter(|bits| *bits <= 0o7777);
        if good.is_none() {
            reader.bad_value(
                &section.what("mode"),
                format!("`{}`", mode.value),
                mode.span,
                "a mode in octal digits",
                "write a mode such as \"0644\"",
            );
        }
        good
    });
    let content = text(reader, &section);
    let check = FileCheck {
        owner,
        group,
        mode,
        content,
    };
    good.then(|| (labelled.label.value.clone(), check))
}

fn text(reader: &mut Reader<'_>, section: &Section<'_>) -> TextCheck {
    let contains = section.one_or_more(reader, "contains");
    let matches = section.one_or_more(reader, "matches").into_iter();
    let matches = matches
        .filter(|pattern| match regex::Regex::new(&pattern.value) {
            Ok(_) => true,
            Err(error) => {
                let why = error.to_string();
                let why = why.lines().last().unwrap_or_default().trim();
                reader.bad_value(
                    &section.what("matches"),
                    format!(
                        "`{}` ({})",
                        pattern.value,
                        why.trim_start_matches("error: ")
                    ),
                    pattern.span.clone(),
                    "a regular expression",
                    "mend it, or write `contains` for what is meant literally",
                );
                false
            }
        })
        .collect::<Vec<_>>();
    TextCheck {
        contains: contains.into_iter().map(|at| at.value).collect(),
        matches: matches.into_iter().map(|at| at.value).collect(),
        equals: section.string(reader, "equals").map(|at| at.value),
    }
}

fn ports(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<u16> {
    let Some(At { value, span }) = section.value("ports") else {
        return Vec::new();
    };
    let what = section.what("ports");
    let Value::List(items) = value else {
        reader.wrong_type(&what, &value, span, "a list of numbers");
        return Vec::new();
    };
    let mut ports = Vec::new();
    for At { value, span } in items {
        let what = format!("an item of {what}");
        let Value::Number(number) = value else {
            reader.wrong_type(&what, &value, span, "a number");
            continue;
        };
        if number.fract() == 0.0 && (1.0..=65_535.0).contains(&number) {
            ports.push(number as u16);
        } else {
            reader.bad_value(
                &what,
                number_text(number),
                span,
                "a whole number from 1 to 65535",
                "write a port such as 3000",
            );
        }
    }
    ports
}

/// What tests have of the services that run their image: the port, and what can be written to.
pub(crate) fn settle(
    reader: &mut Reader<'_>,
    images: &mut BTreeMap<ImageName, ImageSpec>,
    services: &BTreeMap<ServiceName, ServiceDefinition>,
    places: &Places,
) {
    for (name, image) in images {
        let runs = || services.values().filter(|service| service.image == *name);
        let mut ports: Vec<u16> = runs().filter_map(|service| service.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let has_command =
            image.dockerfile.is_some() || !(image.cmd.is_empty() && image.entrypoint.is_empty());
        for test in &mut image.tests {
            test.tmpfs = runs().flat_map(|service| service.tmpfs.clone()).collect();
            test.port = match ports.as_slice() {
                [one] => Some(*one),
                _ => None,
            };
            let Some(place) = places.get(&(name.clone(), test.name.clone())) else {
                continue;
            };
            let asks = !test.http.is_empty() || !test.ports.is_empty();
            if asks && !has_command {
                let what = format!(
                    "`test \"{}\"` asks what the image runs, and `image \"{name}\"` has no `cmd`",
                    test.name
                );
                reader.report(
                    Problem::Contradiction { what },
                    place.clone(),
                    "an image with a command",
                    "add `cmd = [\"PROGRAM\"]` to the image",
                );
            }
            if test.http.iter().any(|http| http.port.is_none()) && test.port.is_none() {
                let help = match ports.first() {
                    Some(port) => format!("add `port = {port}` to its `http`"),
                    None => {
                        "add `port = 3000` to its `http`, or to a service of the image".to_owned()
                    }
                };
                reader.report(
                    Problem::Missing {
                        place: format!("`http` in `test \"{}\"`", test.name),
                        name: "port".to_owned(),
                    },
                    place.clone(),
                    "the one port of the services that run the image, or one that is written here",
                    help,
                );
            }
        }
    }
}
