//! What a bake gave, in a form that can be compared and kept: the files of all layers together, and the configuration.
//!
//! The archive is read with a tar reader that is not kiln's own.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A file's text is kept as it is up to this many bytes, and as its digest beyond.
const TEXT_MAX: usize = 1500;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// What was said, for whoever reads the record; never compared.
    Refused { says: String },
    Image {
        /// The configuration's `config`, members that are empty left out.
        config: BTreeMap<String, Value>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        author: Option<String>,
        /// For each instruction its keyword, with `(no layer)`.
        history: Vec<String>,
        /// Path → what is there. For an image on one of the bases only what is another than in it, `gone` where nothing is.
        files: BTreeMap<String, String>,
    },
}

#[derive(Clone, PartialEq, Eq)]
struct Node {
    kind: String,
    is_folder: bool,
    mode: u32,
    uid: u64,
    gid: u64,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Equal for all names of one file.
    file: Option<usize>,
}

impl Node {
    fn root() -> Self {
        Self {
            kind: "folder".to_owned(),
            is_folder: true,
            mode: 0o755,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            file: None,
        }
    }
}

type Nodes = BTreeMap<String, Node>;

/// The member of a docker archive, by name.
fn members(path: &Path) -> std::io::Result<HashMap<String, Vec<u8>>> {
    let mut members = HashMap::new();
    let mut archive = tar::Archive::new(File::open(path)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        members.insert(name, bytes);
    }
    Ok(members)
}

fn below<'a>(nodes: &'a Nodes, path: &str) -> Vec<&'a String> {
    let start = if path.is_empty() {
        String::new()
    } else {
        format!("{path}/")
    };
    nodes
        .keys()
        .filter(|other| !other.is_empty() && other.starts_with(&start))
        .collect()
}

fn remove_below(nodes: &mut Nodes, path: &str) {
    for gone in below(nodes, path).into_iter().cloned().collect::<Vec<_>>() {
        nodes.remove(&gone);
    }
}

fn read_layer(bytes: &[u8], nodes: &mut Nodes, files: &mut usize) -> std::io::Result<()> {
    let mut new: Vec<(String, Node)> = Vec::new();
    let mut gone = Vec::new();
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./").trim_matches('/').to_owned();
        let name = if name == "." { String::new() } else { name };
        let (folder, last) = name.rsplit_once('/').unwrap_or(("", &name));
        if last == ".wh..wh..opq" {
            remove_below(nodes, folder);
            continue;
        }
        if let Some(last) = last.strip_prefix(".wh.") {
            gone.push(if folder.is_empty() {
                last.to_owned()
            } else {
                format!("{folder}/{last}")
            });
            continue;
        }
        let mut xattrs = BTreeMap::new();
        if let Some(records) = entry.pax_extensions()? {
            for record in records {
                let record = record?;
                if let Ok(key) = record.key()
                    && let Some(key) = key.strip_prefix("SCHILY.xattr.")
                {
                    xattrs.insert(key.to_owned(), record.value_bytes().to_vec());
                }
            }
        }
        let header = entry.header();
        let (mode, uid, gid) = (header.mode()? & 0o7777, header.uid()?, header.gid()?);
        let device = (header.device_major()?, header.device_minor()?);
        let device = format!("{}:{}", device.0.unwrap_or(0), device.1.unwrap_or(0));
        let kind = header.entry_type();
        let link = entry
            .link_name_bytes()
            .map(|link| String::from_utf8_lossy(&link).into_owned())
            .unwrap_or_default();
        *files += 1;
        let mut node = Node {
            kind: String::new(),
            is_folder: kind.is_dir(),
            mode,
            uid,
            gid,
            xattrs,
            file: (!kind.is_dir()).then_some(*files),
        };
        if kind.is_hard_link() {
            let link = link.trim_start_matches("./").trim_start_matches('/');
            let target = new
                .iter()
                .rev()
                .find(|(name, _)| name == link)
                .map(|(_, node)| node.clone())
                .or_else(|| nodes.get(link).cloned());
            node = target.ok_or_else(|| {
                std::io::Error::other(format!("{name} is a hard link to {link}, which is nowhere"))
            })?;
        } else {
            node.kind = if kind.is_dir() {
                "folder".to_owned()
            } else if kind.is_symlink() {
                format!("link -> {link}")
            } else if kind.is_fifo() {
                "pipe".to_owned()
            } else if kind.is_character_special() {
                format!("character device {device}")
            } else if kind.is_block_special() {
                format!("block device {device}")
            } else {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                content(&bytes)
            };
        }
        new.push((name, node));
    }
    for path in gone {
        remove_below(nodes, &path);
        nodes.remove(&path);
    }
    for (name, node) in new {
        if !node.is_folder {
            remove_below(nodes, &name);
        }
        nodes.insert(name, node);
    }
    Ok(())
}

fn content(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= TEXT_MAX && !text.contains('\0') => format!("file {text:?}"),
        _ => {
            let digest = Sha256::digest(bytes);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("file of {} bytes, sha256 {hex}", bytes.len())
        }
    }
}

/// Path → what is there, as text.
fn described(nodes: &Nodes) -> BTreeMap<String, String> {
    let mut first: HashMap<usize, &str> = HashMap::new();
    nodes
        .iter()
        .map(|(path, node)| {
            let mut text = format!("{:o} {}:{} {}", node.mode, node.uid, node.gid, node.kind);
            for (name, value) in &node.xattrs {
                let value: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                text.push_str(&format!(", {name}={value}"));
            }
            if let Some(file) = node.file {
                match first.get(&file) {
                    Some(other) => text.push_str(&format!(", the same file as /{other}")),
                    None => drop(first.insert(file, path)),
                }
            }
            (format!("/{path}"), text)
        })
        .collect()
}

fn parsed(bytes: &[u8]) -> std::io::Result<Value> {
    serde_json::from_slice(bytes).map_err(std::io::Error::other)
}

/// Reads `docker save`'s form.
pub(crate) fn read(path: &Path) -> std::io::Result<Outcome> {
    let members = members(path)?;
    let member = |name: &str| {
        members
            .get(name)
            .ok_or_else(|| std::io::Error::other(format!("the archive has no {name}")))
    };
    let manifest = parsed(member("manifest.json")?)?;
    let config = parsed(member(manifest[0]["Config"].as_str().unwrap_or_default())?)?;
    let mut nodes = Nodes::from([(String::new(), Node::root())]);
    let mut base = None;
    let mut files = 0;
    let none = Vec::new();
    for (index, name) in manifest[0]["Layers"]
        .as_array()
        .unwrap_or(&none)
        .iter()
        .enumerate()
    {
        let layer = member(name.as_str().unwrap_or_default())?;
        read_layer(layer, &mut nodes, &mut files)?;
        if index == 0 && nodes.contains_key("bin/busybox") {
            base = Some(described(&nodes));
        }
    }
    let mut now = described(&nodes);
    if let Some(base) = base {
        let gone: Vec<String> = base
            .keys()
            .filter(|path| !now.contains_key(*path))
            .cloned()
            .collect();
        now.retain(|path, text| base.get(path) != Some(text));
        now.extend(gone.into_iter().map(|path| (path, "gone".to_owned())));
    }
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Number(_) => false,
    };
    let history = config["history"].as_array().unwrap_or(&none);
    Ok(Outcome::Image {
        config: config["config"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| !empty(value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        author: config["author"]
            .as_str()
            .filter(|author| !author.is_empty())
            .map(str::to_owned),
        history: history.iter().map(keyword).collect(),
        files: now,
    })
}

fn keyword(entry: &Value) -> String {
    let by = entry["created_by"].as_str().unwrap_or_default();
    let word = by.split_whitespace().next().unwrap_or_default();
    let layer = if entry["empty_layer"].as_bool() == Some(true) {
        " (no layer)"
    } else {
        ""
    };
    format!("{word}{layer}")
}

/// Where two outcomes differ: what → (the peer's, kiln's).
pub(crate) fn differences(peer: &Outcome, kiln: &Outcome) -> BTreeMap<String, (String, String)> {
    let mut found = BTreeMap::new();
    let mut note = |what: String, peer: Option<String>, kiln: Option<String>| {
        if peer != kiln {
            let none = || "nothing".to_owned();
            found.insert(what, (peer.unwrap_or_else(none), kiln.unwrap_or_else(none)));
        }
    };
    match (peer, kiln) {
        (Outcome::Refused { .. }, Outcome::Refused { .. }) => {}
        (Outcome::Refused { says }, Outcome::Image { .. }) => note(
            "result".to_owned(),
            Some(format!("refused: {says}")),
            Some("an image".to_owned()),
        ),
        (Outcome::Image { .. }, Outcome::Refused { says }) => note(
            "result".to_owned(),
            Some("an image".to_owned()),
            Some(format!("refused: {says}")),
        ),
        (
            Outcome::Image {
                config,
                author,
                history,
                files,
            },
            Outcome::Image {
                config: config_of_kiln,
                author: author_of_kiln,
                history: history_of_kiln,
                files: files_of_kiln,
            },
        ) => {
            for name in config.keys().chain(config_of_kiln.keys()) {
                note(
                    format!("config {name}"),
                    config.get(name).map(Value::to_string),
                    config_of_kiln.get(name).map(Value::to_string),
                );
            }
            note("author".to_owned(), author.clone(), author_of_kiln.clone());
            note(
                "history".to_owned(),
                Some(history.join(", ")),
                Some(history_of_kiln.join(", ")),
            );
            for path in files.keys().chain(files_of_kiln.keys()) {
                note(
                    path.clone(),
                    files.get(path).cloned(),
                    files_of_kiln.get(path).cloned(),
                );
            }
        }
    }
    found
}
