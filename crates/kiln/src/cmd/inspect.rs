//! `kiln inspect`: all that is known of one image.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_model::api::History;
use kiln_model::{Digest, Timestamp};
use kiln_oci::{Image, ImageConfig, Referrer, Store};
use serde::Serialize;
use serde_json::Value;

use crate::client::Client;
use crate::documents::{self, Kind};
use crate::failure::{Exit, Failure};
use crate::{args, named, output, settings, table};

#[derive(Serialize)]
struct Answer {
    digest: Digest,
    tags: Vec<String>,
    /// RFC 3339: when it came into this store.
    created_at: Option<String>,
    /// RFC 3339, of its configuration: for Debian the date of the lock, which no file in it is younger than.
    date: Option<String>,
    platform: String,
    /// Bytes of its compressed layers.
    size: u64,
    config: Config,
    layers: Vec<Layer>,
    origin: Option<Origin>,
    /// `None`: it has no SBOM.
    packages: Option<usize>,
    referrers: Vec<Referrer>,
    /// `None`: kiln does not run here, so that nobody says it.
    releases: Option<Vec<Release>>,
}

#[derive(Serialize)]
struct Config {
    user: String,
    workdir: String,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    labels: BTreeMap<String, String>,
    stop_signal: Option<String>,
    ports: Vec<String>,
    volumes: Vec<String>,
}

#[derive(Serialize)]
struct Layer {
    diff_id: Digest,
    /// Compressed, in bytes.
    size: u64,
    /// The step that made it, where that is known.
    step: Option<String>,
}

/// What the newest provenance says.
#[derive(Serialize)]
struct Origin {
    commit: Option<String>,
    dirty: bool,
    definition: Option<String>,
    lock: Option<String>,
    tests: Vec<String>,
}

#[derive(Serialize)]
struct Release {
    release: String,
    created_at: String,
    current: bool,
}

pub(crate) fn run(args: args::Inspect) -> Result<Exit, Failure> {
    let root = settings::root(args.root)?;
    let store = Store::open_existing(&root)?;
    let digest = named::image(&store, &args.image)?;
    let answer = inspect(&store, &root, digest)?;
    if args.json.json {
        output::json(&answer)?;
    } else {
        output::line(&text(&answer).join("\n"))?;
    }
    Ok(Exit::Done)
}

fn texts(list: &Value, field: &str) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items
        .filter_map(|item| Some(item[field].as_str()?.to_owned()))
        .collect()
}

fn inspect(store: &Store, root: &Path, digest: Digest) -> Result<Answer, Failure> {
    let Image { config, layers, .. } = store.image(&digest)?;
    let entry = store
        .images()?
        .into_iter()
        .find(|entry| entry.digest == digest);
    let referrers = store.referrers(&digest)?;
    let newest = |kind| -> Result<Option<Value>, Failure> {
        let all = documents::of(store, &digest, kind)?;
        Ok(all.into_iter().next().map(|one| one.value))
    };
    let provenance = newest(Kind::Provenance)?;
    let definition = provenance
        .as_ref()
        .map(|one| &one["predicate"]["buildDefinition"]);
    let sbom = newest(Kind::Sbom)?;
    let packages = sbom.map(|sbom| {
        let all = sbom["packages"].as_array().into_iter().flatten();
        all.filter(|one| one["primaryPackagePurpose"] == "LIBRARY")
            .count()
    });
    let steps = definition.map(|one| &one["internalParameters"]["steps"]);
    let step = |diff_id: &Digest| {
        let all = steps.and_then(Value::as_array).into_iter().flatten();
        let mut made = all.filter(|step| step["layer"] == diff_id.to_string());
        Some(made.next()?["name"].as_str()?.to_owned())
    };
    let layers: Vec<Layer> = layers
        .iter()
        .map(|layer| Layer {
            diff_id: layer.diff_id,
            size: layer.blob.size,
            step: step(&layer.diff_id),
        })
        .collect();
    let origin = definition.map(|one| {
        let external = &one["externalParameters"];
        let internal = &one["internalParameters"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Origin {
            commit: text(&external["commit"]),
            dirty: external["dirty"].as_bool().unwrap_or(true),
            definition: text(&external["definition"]),
            lock: text(&internal["lock"]),
            tests: texts(&internal["tests"], "name"),
        }
    });
    let ImageConfig {
        architecture,
        os,
        created,
        config: run,
        ..
    } = config;
    Ok(Answer {
        digest,
        tags: entry
            .as_ref()
            .map(|entry| entry.tags.clone())
            .unwrap_or_default(),
        created_at: entry.map(|entry| Timestamp(entry.created_ms).rfc3339()),
        date: created,
        platform: format!("{os}/{architecture}"),
        size: layers.iter().map(|layer| layer.size).sum(),
        config: Config {
            user: run.user,
            workdir: run.working_dir,
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            env: run.env,
            labels: run.labels,
            stop_signal: run.stop_signal,
            ports: run.exposed_ports.into_keys().collect(),
            volumes: run.volumes.into_keys().collect(),
        },
        layers,
        origin,
        packages,
        referrers,
        releases: releases(root, &digest)?,
    })
}

fn releases(root: &Path, digest: &Digest) -> Result<Option<Vec<Release>>, Failure> {
    let history: History = match Client::new(root).get_slow("/v1/history?") {
        Ok(history) => history,
        Err(Failure::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let its = history
        .releases
        .into_iter()
        .filter(|one| one.image == *digest);
    Ok(Some(
        its.map(|one| Release {
            release: format!("{}/{}@{}", one.environment, one.service, one.number),
            created_at: one.created_at,
            current: one.current,
        })
        .collect(),
    ))
}

fn text(answer: &Answer) -> Vec<String> {
    let Answer {
        digest,
        tags,
        created_at,
        date,
        platform,
        size,
        config,
        layers,
        origin,
        packages,
        referrers,
        releases,
    } = answer;
    let mut lines = Vec::new();
    let mut say = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:<12}{value}"));
        }
    };
    say("digest", digest.to_string());
    say("tags", tags.join(", "));
    say("created", created_at.clone().unwrap_or_default());
    say("date", date.clone().unwrap_or_default());
    say("platform", platform.clone());
    if let Some(origin) = origin {
        let dirty = if origin.dirty { " (dirty)" } else { "" };
        let commit = origin.commit.as_deref().unwrap_or("none");
        say("commit", format!("{commit}{dirty}"));
        say("definition", origin.definition.clone().unwrap_or_default());
        say("lock", origin.lock.clone().unwrap_or_default());
        say("tests", origin.tests.join(", "));
    }
    say(
        "packages",
        packages.map(|count| count.to_string()).unwrap_or_default(),
    );
    let Config {
        user,
        workdir,
        entrypoint,
        cmd,
        env,
        labels,
        stop_signal,
        ports,
        volumes,
    } = config;
    let words = |words: &[String]| {
        if words.is_empty() {
            String::new()
        } else {
            format!("{words:?}")
        }
    };
    say("user", user.clone());
    say("workdir", workdir.clone());
    say("entrypoint", words(entrypoint));
    say("cmd", words(cmd));
    say("stop signal", stop_signal.clone().unwrap_or_default());
    say("ports", ports.join(", "));
    say("volumes", volumes.join(", "));
    for pair in env {
        say("env", pair.clone());
    }
    for (name, value) in labels {
        say("label", format!("{name}={value}"));
    }
    for referrer in referrers {
        say(
            "referrer",
            format!("{} {}", referrer.artifact_type, referrer.digest.short()),
        );
    }
    match releases {
        None => say("releases", "kiln is not running here".to_owned()),
        Some(releases) => {
            for one in releases {
                let current = if one.current { ", current" } else { "" };
                say(
                    "release",
                    format!("{}, {}{current}", one.release, one.created_at),
                );
            }
        }
    }
    lines.push(format!("\nlayers, {} in all:", table::size(*size)));
    let rows: Vec<Vec<String>> = layers
        .iter()
        .map(|layer| {
            let step = layer.step.clone().unwrap_or_else(|| "-".to_owned());
            vec![layer.diff_id.short(), table::size(layer.size), step]
        })
        .collect();
    lines.push(table::columns(&rows));
    lines
}
