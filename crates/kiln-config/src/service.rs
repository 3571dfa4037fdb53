//! `service "name" { … }`, at the top and inside an `environment`, where it changes only what it names.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use kiln_model::{
    BlueGreen, Policy, Resources, SecretSpec, ServiceDefinition, ServiceName, Strategy, Tmpfs,
    UnknownFields,
};

use crate::checks::absolute;
use crate::environment::environment_names;
use crate::probe::ProbeDraft;
use crate::reader::Reader;
use crate::section::{BlockShape, Labelled, Section, Shape};
use crate::value::{At, Value};
use crate::{Problem, secret, suggest};

const KEEP_WARM: Duration = Duration::from_secs(15 * 60);
const PROGRESS_DEADLINE: Duration = Duration::from_secs(60);
const SOAK: Duration = Duration::from_millis(500);
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Below it not even the init of an instance runs.
const LEAST_MEMORY: u64 = 4 << 20;

const SHAPE: Shape = Shape {
    attributes: &[
        "image",
        "replicas",
        "port",
        "listen",
        "env",
        "command",
        "egress",
        "progress_deadline",
        "soak",
        "stop_grace",
        "for_each",
    ],
    blocks: &[
        BlockShape {
            name: "tmpfs",
            label: Some("/path"),
        },
        BlockShape {
            name: "resources",
            label: None,
        },
        BlockShape {
            name: "probe",
            label: Some("ready"),
        },
        BlockShape {
            name: "strategy",
            label: Some("blue-green"),
        },
        BlockShape {
            name: "drain",
            label: None,
        },
        BlockShape {
            name: "secret",
            label: Some("NAME"),
        },
    ],
    later: &[
        (
            "volume",
            "leave it out; a `tmpfs` is writable, but does not outlive its instance",
        ),
        (
            "rotation",
            "leave it out; instances are replaced by `kiln apply` alone",
        ),
        ("route", "give the service a port of the host with `listen`"),
        ("migration", "leave it out"),
        (
            "count",
            "use `replicas` for more instances, `for_each` for more services",
        ),
    ],
};
const RESOURCES: Shape = Shape {
    attributes: &["memory", "cpus", "pids"],
    blocks: &[],
    later: &[],
};
const TMPFS: Shape = Shape {
    attributes: &["size"],
    blocks: &[],
    later: &[],
};
const STRATEGY: Shape = Shape {
    attributes: &["keep_warm"],
    blocks: &[],
    later: &[],
};
const DRAIN: Shape = Shape {
    attributes: &["deadline"],
    blocks: &[],
    later: &[],
};

/// A service as written. An environment's lies over the one at the top.
#[derive(Clone, Default)]
pub(crate) struct ServiceDraft {
    header: std::ops::Range<usize>,
    image: Option<At<String>>,
    has_image: bool,
    replicas: Option<u32>,
    port: Option<At<u16>>,
    has_port: bool,
    listen: Option<At<SocketAddr>>,
    env: BTreeMap<String, String>,
    command: Option<Vec<String>>,
    secrets: BTreeMap<String, At<SecretSpec>>,
    tmpfs: BTreeMap<String, Tmpfs>,
    memory: Option<u64>,
    cpu_millis: Option<u64>,
    pids: Option<u64>,
    egress: Option<bool>,
    ready: Option<ProbeDraft>,
    live: Option<ProbeDraft>,
    keep_warm: Option<Duration>,
    drain_deadline: Option<Duration>,
    progress_deadline: Option<Duration>,
    soak: Option<Duration>,
    stop_grace: Option<Duration>,
}

impl ServiceDraft {
    pub(crate) fn read(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Self {
        let place = format!("`service \"{}\"`", labelled.label.value);
        let section = Section::read_lazily(
            reader,
            &SHAPE,
            &labelled.block.body,
            place,
            labelled.header.clone(),
            &["for_each"],
        );
        let image = match section.value("image") {
            Some(At {
                value: Value::Image(name),
                span,
            }) => Some(At { value: name, span }),
            Some(At { value, span }) => {
                reader.wrong_type(&section.what("image"), &value, span, "an image");
                None
            }
            None => None,
        };
        let none = Duration::ZERO;
        let mut draft = Self {
            header: section.header.clone(),
            image,
            has_image: section.has("image"),
            replicas: section
                .whole(reader, "replicas", 1, 1000)
                .map(|at| at.value),
            port: section
                .whole(reader, "port", 1, 65_535)
                .map(|at| at.map(|port| port as u16)),
            has_port: section.has("port"),
            listen: listen(reader, &section),
            env: environment_names(reader, &section, true),
            command: section.strings(reader, "command").map(plain),
            egress: section.boolean(reader, "egress"),
            progress_deadline: section
                .duration(reader, "progress_deadline", Duration::from_secs(1))
                .map(|at| at.value),
            soak: section.duration(reader, "soak", none).map(|at| at.value),
            stop_grace: section
                .duration(reader, "stop_grace", none)
                .map(|at| at.value),
            ..Self::default()
        };
        for block in section.blocks("tmpfs") {
            draft.read_tmpfs(reader, block);
        }
        for block in section.blocks("probe") {
            match block.label.value.as_str() {
                "ready" => draft.ready = Some(ProbeDraft::read(reader, block)),
                "live" => draft.live = Some(ProbeDraft::read(reader, block)),
                other => {
                    let near = suggest::nearest(other, ["ready", "live"]).unwrap_or("ready");
                    reader.bad_value(
                        "the kind of a probe",
                        format!("`{other}`"),
                        block.label.span.clone(),
                        "\"ready\" or \"live\"",
                        format!("write `probe \"{near}\"`"),
                    );
                }
            }
        }
        for block in section.blocks("secret") {
            if let Some((name, value)) = secret::read(reader, block) {
                let span = block.header.clone();
                draft.secrets.insert(name, At { value, span });
            }
        }
        if let Some(block) = section.blocks("resources").next() {
            draft.read_resources(reader, block);
        }
        let mut strategies = section.blocks("strategy");
        if let Some(block) = strategies.next() {
            draft.read_strategy(reader, block);
        }
        if let Some(second) = strategies.next() {
            let problem = Problem::Duplicate {
                what: "`strategy`".to_owned(),
            };
            reader.report(
                problem,
                second.header.clone(),
                "once",
                "remove one of the two",
            );
        }
        if let Some(block) = section.blocks("drain").next() {
            let section = Section::read(
                reader,
                &DRAIN,
                &block.block.body,
                "`drain`".to_owned(),
                block.header.clone(),
            );
            draft.drain_deadline = section
                .duration(reader, "deadline", none)
                .map(|at| at.value);
        }
        draft
    }

    fn read_tmpfs(&mut self, reader: &mut Reader<'_>, block: &Labelled<'_>) {
        let place = format!("`tmpfs \"{}\"`", block.label.value);
        let section = Section::read(
            reader,
            &TMPFS,
            &block.block.body,
            place,
            block.header.clone(),
        );
        section.require(reader, "size", "size = \"64MiB\"");
        let size = section.size(reader, "size", 4096);
        if !absolute(reader, "the path of a tmpfs", &block.label) {
            return;
        }
        let path = block.label.value.trim_end_matches('/');
        let taken = ["", "/proc", "/sys", "/dev"];
        if taken
            .iter()
            .any(|own| path == *own || (!own.is_empty() && path.starts_with(&format!("{own}/"))))
        {
            reader.bad_value(
                "the path of a tmpfs",
                format!("`{}`", block.label.value),
                block.label.span.clone(),
                "a path below /, not in /proc, /sys or /dev",
                "name a folder of the application's own",
            );
            return;
        }
        if let Some(size) = size {
            self.tmpfs.insert(path.to_owned(), Tmpfs::of(size.value));
        }
    }

    fn read_resources(&mut self, reader: &mut Reader<'_>, block: &Labelled<'_>) {
        let section = Section::read(
            reader,
            &RESOURCES,
            &block.block.body,
            "`resources`".to_owned(),
            block.header.clone(),
        );
        self.memory = section
            .size(reader, "memory", LEAST_MEMORY)
            .map(|at| at.value);
        self.pids = section
            .whole(reader, "pids", 2, 4_194_304)
            .map(|at| u64::from(at.value));
        match section.value("cpus") {
            Some(At {
                value: Value::Number(cpus),
                span,
            }) => {
                let millis = (cpus * 1000.0).round();
                if (10.0..=1_024_000.0).contains(&millis) && (cpus * 1000.0 - millis).abs() < 1e-6 {
                    self.cpu_millis = Some(millis as u64);
                } else {
                    reader.bad_value(
                        &section.what("cpus"),
                        cpus.to_string(),
                        span,
                        "a number from 0.01 to 1024 with at most three decimals",
                        "write a number of processors such as 0.5",
                    );
                }
            }
            Some(At { value, span }) => {
                reader.wrong_type(&section.what("cpus"), &value, span, "a number")
            }
            None => {}
        }
    }

    fn read_strategy(&mut self, reader: &mut Reader<'_>, block: &Labelled<'_>) {
        let name = block.label.value.as_str();
        if name != "blue-green" {
            let what = format!("the strategy `{name}`");
            let problem = if ["rolling", "canary", "recreate", "promote"].contains(&name) {
                Problem::Unsupported { what }
            } else {
                Problem::BadValue {
                    what: "the strategy".to_owned(),
                    found: format!("`{name}`"),
                }
            };
            reader.report(
                problem,
                block.label.span.clone(),
                "expected \"blue-green\"",
                "write `strategy \"blue-green\" {}`",
            );
            return;
        }
        let section = Section::read(
            reader,
            &STRATEGY,
            &block.block.body,
            "`strategy \"blue-green\"`".to_owned(),
            block.header.clone(),
        );
        self.keep_warm = section
            .duration(reader, "keep_warm", Duration::ZERO)
            .map(|at| at.value);
    }

    /// This one with what `over` names changed: attributes replaced, maps and blocks joined.
    pub(crate) fn overlay(self, over: Self) -> Self {
        let Self {
            header: _,
            image,
            has_image,
            replicas,
            port,
            has_port,
            listen,
            env,
            command,
            secrets,
            tmpfs,
            memory,
            cpu_millis,
            pids,
            egress,
            ready,
            live,
            keep_warm,
            drain_deadline,
            progress_deadline,
            soak,
            stop_grace,
        } = over;
        let probe = |below: Option<ProbeDraft>, over: Option<ProbeDraft>| match (below, over) {
            (Some(below), Some(over)) => Some(below.overlay(over)),
            (below, over) => over.or(below),
        };
        Self {
            header: self.header,
            image: image.or(self.image),
            has_image: has_image || self.has_image,
            replicas: replicas.or(self.replicas),
            port: port.or(self.port),
            has_port: has_port || self.has_port,
            listen: listen.or(self.listen),
            env: joined(self.env, env),
            command: command.or(self.command),
            secrets: joined(self.secrets, secrets),
            tmpfs: joined(self.tmpfs, tmpfs),
            memory: memory.or(self.memory),
            cpu_millis: cpu_millis.or(self.cpu_millis),
            pids: pids.or(self.pids),
            egress: egress.or(self.egress),
            ready: probe(self.ready, ready),
            live: probe(self.live, live),
            keep_warm: keep_warm.or(self.keep_warm),
            drain_deadline: drain_deadline.or(self.drain_deadline),
            progress_deadline: progress_deadline.or(self.progress_deadline),
            soak: soak.or(self.soak),
            stop_grace: stop_grace.or(self.stop_grace),
        }
    }

    pub(crate) fn header(&self) -> std::ops::Range<usize> {
        self.header.clone()
    }

    pub(crate) fn listen(&self) -> Option<&At<SocketAddr>> {
        self.listen.as_ref()
    }

    /// Fills in the defaults and checks what depends on two attributes.
    pub(crate) fn resolve(
        self,
        reader: &mut Reader<'_>,
        name: &ServiceName,
    ) -> Option<ServiceDefinition> {
        let place = format!("`service \"{name}\"`");
        if !self.has_image {
            reader.report(
                Problem::Missing {
                    place: place.clone(),
                    name: "image".to_owned(),
                },
                self.header.clone(),
                "expected `image` in it",
                "add `image = image.NAME`",
            );
        }
        let needs_port = [
            self.listen.as_ref().map(|at| ("`listen`", at.span.clone())),
            self.ready
                .as_ref()
                .and_then(ProbeDraft::header)
                .map(|span| ("a probe", span)),
            self.live
                .as_ref()
                .and_then(ProbeDraft::header)
                .map(|span| ("a probe", span)),
        ];
        if !self.has_port {
            for (what, span) in needs_port.into_iter().flatten() {
                let what = format!("{place} has {what} and no `port`");
                reader.report(
                    Problem::Contradiction { what },
                    span,
                    "expected the port that the instance listens on",
                    "add `port = 3000`",
                );
            }
        }
        for (name, secret) in &self.secrets {
            if self.env.contains_key(name) {
                let what = format!("{place} has `{name}` both as a `secret` and in `env`");
                reader.report(
                    Problem::Contradiction { what },
                    secret.span.clone(),
                    "expected one of them",
                    "take it out of `env`: a secret is an environment variable too",
                );
            }
        }
        Some(ServiceDefinition {
            secrets: self
                .secrets
                .into_iter()
                .map(|(name, secret)| (name, secret.value))
                .collect(),
            image: self.image?.value.parse().ok()?,
            command: self.command.unwrap_or_default(),
            env: self.env,
            port: self.port.map(|at| at.value),
            tmpfs: self.tmpfs,
            resources: Resources {
                memory: self.memory,
                cpu_millis: self.cpu_millis,
                pids: self.pids,
                ..Resources::default()
            },
            egress: self.egress.unwrap_or(true),
            policy: Policy {
                replicas: self.replicas.unwrap_or(1),
                strategy: Strategy::BlueGreen(BlueGreen {
                    keep_warm: self.keep_warm.unwrap_or(KEEP_WARM),
                }),
                ready: self.ready.and_then(|probe| probe.resolve(reader, "ready")),
                live: self.live.and_then(|probe| probe.resolve(reader, "live")),
                progress_deadline: self.progress_deadline.unwrap_or(PROGRESS_DEADLINE),
                soak: self.soak.unwrap_or(SOAK),
                drain_deadline: self.drain_deadline.unwrap_or(DRAIN_DEADLINE),
                stop_grace: self.stop_grace.unwrap_or(STOP_GRACE),
                listen: self.listen.map(|at| at.value),
                unknown: UnknownFields::default(),
            },
        })
    }
}

fn joined<V>(mut below: BTreeMap<String, V>, over: BTreeMap<String, V>) -> BTreeMap<String, V> {
    below.extend(over);
    below
}

/// A port alone is every address of the host's, as with any other server.
fn listen(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<At<SocketAddr>> {
    match section.value("listen")? {
        At {
            value: Value::Number(_),
            ..
        } => section.whole(reader, "listen", 1, 65_535).map(|at| {
            at.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port as u16))
        }),
        At {
            value: Value::String(text),
            span,
        } => match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(At {
                value: address,
                span,
            }),
            _ => {
                let help = match text.parse::<u16>() {
                    Ok(port) => format!("write {port}, without quotes"),
                    Err(_) => "write 8080 or \"127.0.0.1:8080\"".to_owned(),
                };
                reader.bad_value(
                    &section.what("listen"),
                    format!("`{text}`"),
                    span,
                    "a port, or a numeric address with a port",
                    help,
                );
                None
            }
        },
        At { value, span } => {
            reader.wrong_type(
                &section.what("listen"),
                &value,
                span,
                "a port, or an address with a port",
            );
            None
        }
    }
}

pub(crate) fn plain(list: At<Vec<At<String>>>) -> Vec<String> {
    list.value.into_iter().map(|at| at.value).collect()
}
