//! Secrets that would leave with an image: private keys, well-known tokens and passwords, in the files of every layer (also those
//! that a later layer deletes), in the environment, the commands and the history.
//!
//! Layers are searched once each, in one pass for all rules, with a bounded buffer: what a rule begins with is searched for, and
//! the rest is only looked at there. What was found is remembered by rule and place, never the secret itself.

mod given;
mod names;
mod published;
mod texts;
mod tokens;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;

use kiln_model::{CanonicalError, Digest, canonical_json};
use kiln_oci::{Content, ImageConfig, Kind, Layer, Prepared, Store, Tree};
use serde::{Deserialize, Serialize};

use crate::error::BakeError;
pub(crate) use given::given;
pub(crate) use names::{is_secret, is_secret_name};
use published::{is_published, published};
use texts::{has_assignment, has_url_password, is_said, name_of, named};
use tokens::{TOKENS, in_bytes, is_token_rule};

/// Changed whenever the rules are: what older ones found is then not relied on.
pub(crate) const RULES_VERSION: u32 = 3;

/// What is read of a file at a time.
const CHUNK: usize = 256 << 10;
/// As much of a chunk is looked at again with the next one: no secret's beginning is longer.
const OVERLAP: usize = 4 << 10;
/// Files whose name alone makes them interesting are small.
const NAMED_MAX: u64 = 1 << 20;
const PRIVATE_KEY: &str = "private-key";
const PASSWORD_HASH: &str = "password-hash";
const CREDENTIALS: &str = "credentials";
const URL_PASSWORD: &str = "url-password";
const PASSWORD: &str = "password";
/// One that the bake itself was given.
const GIVEN: &str = "given-secret";

/// Every rule, by the name that excuses it.
pub(crate) fn rules() -> BTreeSet<&'static str> {
    let others = [
        PRIVATE_KEY,
        PASSWORD_HASH,
        CREDENTIALS,
        URL_PASSWORD,
        PASSWORD,
        GIVEN,
    ];
    TOKENS
        .iter()
        .map(|token| token.rule)
        .chain(others)
        .collect()
}

/// A rule, and where it found something: an absolute path, or `env.NAME`, `label.NAME`, `entrypoint`, `cmd`, `run.N`, `history.N`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) rule: String,
    pub(crate) place: String,
}

impl Finding {
    fn new(rule: &str, place: impl Into<String>) -> Self {
        Self {
            rule: rule.to_owned(),
            place: place.into(),
        }
    }

    /// As `allow_leak` names it.
    pub(crate) fn excuse(&self) -> String {
        format!("{}:{}", self.rule, self.place)
    }
}

/// What the layer holds that is secret: as remembered, or searched for now.
pub(crate) fn of_layer(store: &Store, layer: &Layer) -> Result<Vec<Finding>, BakeError> {
    if let Some(bytes) = store.cache_get(&record(&layer.diff_id)?)
        && let Ok(known) = serde_json::from_slice(&bytes)
    {
        return Ok(known);
    }
    let found = in_tree(&store.layer_tree(layer)?)?;
    remember(store, &layer.diff_id, &found)?;
    Ok(found)
}

/// Stores what a step made, and searches it while it is at hand, but for the contents that are `clean`. Answers which others are.
pub(crate) fn add(
    store: &Store,
    tree: &Tree,
    clean: &HashSet<Digest>,
) -> Result<(Layer, HashSet<Digest>), BakeError> {
    add_prepared(store, tree, &Prepared::default(), clean)
}

/// As `add`, with what was compressed before.
pub(crate) fn add_prepared(
    store: &Store,
    tree: &Tree,
    prepared: &Prepared,
    clean: &HashSet<Digest>,
) -> Result<(Layer, HashSet<Digest>), BakeError> {
    let (layer, searched) = std::thread::scope(|scope| {
        let searching = scope.spawn(|| search(tree, clean));
        let layer = store.add_prepared_layer(tree, prepared);
        let searched = searching
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (layer, searched)
    });
    // What can't be read is told by whoever wanted all of it.
    let layer = layer?;
    let Searched { findings, clean } = searched?;
    remember(store, &layer.diff_id, &findings)?;
    Ok((layer, clean))
}

pub(crate) fn remember(
    store: &Store,
    diff_id: &Digest,
    found: &[Finding],
) -> Result<(), BakeError> {
    store.cache_put(&record(diff_id)?, &canonical_json(&found)?)?;
    Ok(())
}

fn record(diff_id: &Digest) -> Result<Digest, CanonicalError> {
    canonical_json(&("leaks", RULES_VERSION, diff_id)).map(|json| Digest::of(&json))
}

/// What a search found.
pub(crate) struct Searched {
    pub(crate) findings: Vec<Finding>,
    /// Contents that it went through, of those that are known, and that have nothing secret.
    pub(crate) clean: HashSet<Digest>,
}

/// Searches the files of a layer.
pub(crate) fn in_tree(tree: &Tree) -> Result<Vec<Finding>, BakeError> {
    Ok(search(tree, &HashSet::new())?.findings)
}

/// As `in_tree`, but for the contents of which is known that they are `clean`. A name that says more is looked at all the same.
pub(crate) fn search(tree: &Tree, clean: &HashSet<Digest>) -> Result<Searched, BakeError> {
    let mut newly_clean = HashSet::new();
    let mut found = BTreeSet::new();
    let mut buffer = vec![0; CHUNK];
    for (path, entry) in tree.iter() {
        let Kind::File { content, size } = &entry.kind else {
            continue;
        };
        let place = || Path::new("/").join(path).to_string_lossy().into_owned();
        let known = match content {
            Content::Known { file, .. } => Some(file.content()),
            _ => None,
        };
        if known.is_none_or(|known| !clean.contains(&known)) {
            let (rules, is_known) =
                in_file(content, *size, &mut buffer).map_err(BakeError::io(path))?;
            if let Some(known) = known.filter(|_| is_known && rules.is_empty()) {
                newly_clean.insert(known);
            }
            found.extend(rules.into_iter().map(|rule| Finding::new(rule, place())));
        }
        if *size <= NAMED_MAX
            && let Some(rule) = named(path)
        {
            let mut text = vec![0; usize::try_from(*size).unwrap_or(0)];
            let count = content
                .open()
                .and_then(|file| file.read_within(*size, &mut text, 0))
                .map_err(BakeError::io(path))?;
            if rule(&String::from_utf8_lossy(&text[..count])) {
                found.insert(Finding::new(name_of(path), place()));
            }
        }
    }
    if found
        .iter()
        .any(|finding| finding.rule == PRIVATE_KEY || is_token_rule(&finding.rule))
    {
        let published = published(tree)?;
        let mut kept = Vec::new();
        for finding in std::mem::take(&mut found) {
            if !is_published(tree, &published, &finding, &mut buffer)? {
                kept.push(finding);
            }
        }
        found = kept.into_iter().collect();
    }
    Ok(Searched {
        findings: found.into_iter().collect(),
        clean: newly_clean,
    })
}

/// Whether no rule finds something in a file, whatever its name is.
pub(crate) fn is_clean(content: &Content, size: u64, buffer: &mut [u8]) -> io::Result<bool> {
    Ok(in_file(content, size, buffer)?.0.is_empty())
}

/// The rules that find something, and whether what they went through is what the file is known to hold.
fn in_file(
    content: &Content,
    size: u64,
    buffer: &mut [u8],
) -> io::Result<(BTreeSet<&'static str>, bool)> {
    let file = content.open()?;
    let mut found = BTreeSet::new();
    let (mut kept, mut at) = (0, 0);
    loop {
        let count = file.read_within(size, &mut buffer[kept..], at)?;
        at += count as u64;
        let filled = kept + count;
        let is_end = filled < buffer.len();
        in_bytes(&buffer[..filled], &mut found);
        if is_end {
            let is_known = file.is_as_known()?;
            return Ok((found, is_known));
        }
        buffer.copy_within(filled - OVERLAP..filled, 0);
        kept = OVERLAP;
    }
}

/// Searches what is not in files: the configuration, and the commands of the steps.
pub(crate) fn in_config(config: &ImageConfig, commands: &[String]) -> Vec<Finding> {
    let mut found = BTreeSet::new();
    let run = &config.config;
    for pair in &run.env {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = format!("env.{name}");
        if is_secret_name(name) && is_said(value) {
            found.insert(Finding::new(PASSWORD, &*place));
        }
        in_text(value, &place, &mut found);
    }
    for (name, value) in &run.labels {
        in_text(value, &format!("label.{name}"), &mut found);
    }
    for (place, words) in [("entrypoint", &run.entrypoint), ("cmd", &run.cmd)] {
        in_command(&words.join(" "), place, &mut found);
    }
    for (number, command) in commands.iter().enumerate() {
        in_command(command, &format!("run.{}", number + 1), &mut found);
    }
    for (number, one) in config.history.iter().enumerate() {
        let place = format!("history.{}", number + 1);
        for text in one.created_by.iter().chain(&one.comment) {
            in_command(text, &place, &mut found);
        }
    }
    found.into_iter().collect()
}

fn in_command(command: &str, place: &str, found: &mut BTreeSet<Finding>) {
    in_text(command, place, found);
    if command
        .split(|c: char| c.is_whitespace() || ";&|()'\"".contains(c))
        .any(has_assignment)
    {
        found.insert(Finding::new(PASSWORD, place));
    }
}

fn in_text(text: &str, place: &str, found: &mut BTreeSet<Finding>) {
    let mut rules = BTreeSet::new();
    in_bytes(text.as_bytes(), &mut rules);
    if has_url_password(text) {
        rules.insert(URL_PASSWORD);
    }
    found.extend(rules.into_iter().map(|rule| Finding::new(rule, place)));
}

#[cfg(test)]
mod tests {
    use super::tokens::KEY;
    use super::*;
    use kiln_oci::Entry;
    use md5::{Digest as _, Md5};

    /// Put together here, so that no tool that searches this repository finds a secret in it.
    fn made(begins: &str, rest: usize) -> String {
        let letters = "A7B2C9D4E5F6G8H1J3K0";
        begins
            .chars()
            .chain(letters.chars().cycle().take(rest))
            .collect()
    }

    fn key() -> String {
        format!("{KEY}OPENSSH PRIVATE KEY-----\n{}\n", made("", 70))
    }

    fn rules_in(text: &[u8]) -> Vec<&'static str> {
        let mut found = BTreeSet::new();
        in_bytes(text, &mut found);
        found.into_iter().collect()
    }

    #[test]
    fn every_token_is_found_and_nothing_that_only_looks_like_one() {
        for token in TOKENS {
            let secret = made(token.begins, token.rest);
            assert_eq!(rules_in(format!("x = '{secret}'").as_bytes()), [token.rule]);
            let short = &secret[..secret.len() - 1];
            assert!(rules_in(short.as_bytes()).is_empty(), "{short}");
            let mask = format!("{}{}", token.begins, "X".repeat(token.rest));
            assert!(rules_in(mask.as_bytes()).is_empty(), "{mask}");
            let inside = format!("a{secret}");
            assert!(rules_in(inside.as_bytes()).is_empty(), "{inside}");
        }
        assert!(rules_in(b"AKIAIOSFODNN7EXAMPLE").is_empty());
        assert_eq!(rules_in(key().as_bytes()), [PRIVATE_KEY]);
        let escaped = key().replace('\n', "\\n");
        assert_eq!(rules_in(escaped.as_bytes()), [PRIVATE_KEY]);
        let certificate = key().replace("OPENSSH PRIVATE KEY", "CERTIFICATE");
        assert!(rules_in(certificate.as_bytes()).is_empty());
        let talk = format!("the file begins with `{KEY}RSA PRIVATE KEY-----` and so on");
        assert!(rules_in(talk.as_bytes()).is_empty());
    }

    #[test]
    fn a_secret_is_found_wherever_a_chunk_ends() {
        let secret = key();
        for before in [
            0,
            CHUNK - OVERLAP - 40,
            CHUNK - 300,
            CHUNK - 20,
            CHUNK - 3,
            CHUNK,
            3 * CHUNK - 50,
        ] {
            let mut bytes = vec![b'\n'; before];
            bytes.extend_from_slice(secret.as_bytes());
            bytes.resize(bytes.len() + 1000, b'\n');
            let size = bytes.len() as u64;
            let found = in_file(&Content::Bytes(bytes.into()), size, &mut vec![0; CHUNK]).unwrap();
            assert_eq!(
                found.0.into_iter().collect::<Vec<_>>(),
                [PRIVATE_KEY],
                "{before}"
            );
        }
    }

    #[test]
    fn a_given_secret_is_found_across_chunks_and_a_short_file_is_an_error() {
        let secret = b"correct horse".to_vec();
        let searched = |bytes: Vec<u8>, size: u64| {
            let mut entry = Entry::bytes(bytes, 0o644);
            if let Kind::File { size: said, .. } = &mut entry.kind {
                *said = size;
            }
            let mut tree = Tree::new();
            tree.insert("a", entry).unwrap();
            given(&tree, [&secret].into_iter())
        };
        for before in [0, CHUNK - 5, CHUNK, 2 * CHUNK - 5] {
            let mut bytes = vec![b'.'; before];
            bytes.extend(&secret);
            bytes.extend(b"..");
            let size = bytes.len() as u64;
            let found = searched(bytes, size).unwrap();
            assert_eq!(found, [Finding::new(GIVEN, "/a")], "{before}");
        }
        assert!(
            searched(vec![b'.'; 3 * CHUNK], 3 * CHUNK as u64)
                .unwrap()
                .is_empty()
        );
        for length in [0, 5, CHUNK, CHUNK + 5] {
            let error = searched(vec![b'.'; length], 2 * CHUNK as u64).unwrap_err();
            assert!(matches!(error, BakeError::Io { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn files_are_known_by_their_names_and_what_they_say() {
        for (path, text, rule) in [
            (
                "etc/shadow",
                "root:$y$j9T$abc$def:1::::::\n",
                Some(PASSWORD_HASH),
            ),
            ("etc/shadow", "root:*:1::::::\nx:!:1::::::\ny::1:\n", None),
            (
                "root/.netrc",
                "machine h login me password hunter2",
                Some(CREDENTIALS),
            ),
            (
                "root/.git-credentials",
                "https://me:hunter2@example.org\n",
                Some(CREDENTIALS),
            ),
            (
                "root/.docker/config.json",
                "{\"auths\":{\"h\":{\"auth\":\"bTpo\"}}}",
                Some(CREDENTIALS),
            ),
            (
                "root/.docker/config.json",
                "{\"credsStore\":\"pass\"}",
                None,
            ),
            (
                "app/.env",
                "LEVEL=1\nDB_PASSWORD=hunter2\n",
                Some(CREDENTIALS),
            ),
            ("app/.env", "LEVEL=1\nDB_PASSWORD=${FROM_OUTSIDE}\n", None),
            ("root/.npmrc", "//r/:_authToken=${NPM_TOKEN}", None),
            ("root/.npmrc", "//r/:_authToken=a1b2c3", Some(CREDENTIALS)),
            ("app/.env.example", "DB_PASSWORD=change", Some(CREDENTIALS)),
            ("app/readme", "DB_PASSWORD=hunter2", None),
        ] {
            let mut tree = Tree::new();
            tree.insert(path, Entry::bytes(text.as_bytes(), 0o600))
                .unwrap();
            let found = in_tree(&tree).unwrap();
            let expected: Vec<_> = rule
                .iter()
                .map(|rule| Finding::new(rule, format!("/{path}")))
                .collect();
            assert_eq!(found, expected, "{path}: {text}");
        }
    }

    #[test]
    fn what_a_package_brought_is_no_secret_until_it_is_changed() {
        let sum = |text: &str| -> String {
            let sum = Md5::digest(text.as_bytes());
            sum.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let list = format!(
            "{0}  usr/lib/a.so\n{0}  lib/b.so\n{0}  usr/lib/c.so\n{0}  usr/lib/p/key.py\n",
            sum(&key())
        );
        let mut tree = Tree::new();
        let entry = |text: String| Entry::bytes(text.into_bytes(), 0o644);
        tree.insert("var/lib/dpkg/info/a.md5sums", entry(list))
            .unwrap();
        // Configuration files are in no list of sums.
        let status = format!(
            "Package: a\nConffiles:\n /etc/a.conf {0}\n /etc/changed {0}\n",
            sum(&key())
        );
        tree.insert("var/lib/dpkg/status", entry(status)).unwrap();
        tree.insert("etc/changed", entry(format!("{}changed", key())))
            .unwrap();
        for path in [
            "etc/a.conf",
            "usr/lib/a.so",
            "usr/lib/b.so",
            "usr/lib/mine.so",
            "usr/lib/p/key.py",
            "usr/lib/p/__pycache__/key.cpython-311.pyc",
            "usr/lib/p/__pycache__/mine.cpython-311.pyc",
        ] {
            tree.insert(path, entry(key())).unwrap();
        }
        tree.insert("usr/lib/c.so", entry(format!("{}changed", key())))
            .unwrap();
        let found: Vec<_> = in_tree(&tree)
            .unwrap()
            .iter()
            .map(Finding::excuse)
            .collect();
        // As a layer that is read back from its blob, whose files are ranges of one.
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layer = store.add_layer(&tree).unwrap();
        let again = of_layer(&store, &layer).unwrap();
        let again: Vec<_> = again.iter().map(Finding::excuse).collect();
        assert_eq!(again, found);
        assert_eq!(
            found,
            [
                "private-key:/etc/changed",
                "private-key:/usr/lib/c.so",
                "private-key:/usr/lib/mine.so",
                "private-key:/usr/lib/p/__pycache__/mine.cpython-311.pyc"
            ]
        );
    }

    #[test]
    fn environment_commands_and_history_are_searched() {
        let mut config = ImageConfig::default();
        config.config.env = [
            "DB_PASSWORD=hunter2",
            "DB_PASSWORD_FILE=/run/secrets/db",
            "API_KEY=",
            "TOKEN=$OTHER",
            "AUTHOR=somebody",
            "DATABASE_URL=postgres://me:hunter2@db/shop",
            "PLAIN_URL=http://db:5432/shop",
        ]
        .map(str::to_owned)
        .to_vec();
        config.config.cmd = vec!["app".into(), "--token=abc123".into()];
        config.history = vec![kiln_oci::History {
            created_by: Some(format!("RUN curl -H {}", made("ghp_", 36))),
            ..Default::default()
        }];
        let commands = ["true".to_owned(), "PASSWORD=hunter2 ./login".to_owned()];
        let found: Vec<String> = in_config(&config, &commands)
            .iter()
            .map(Finding::excuse)
            .collect();
        assert_eq!(
            found,
            [
                "github-token:history.1",
                "password:cmd",
                "password:env.DB_PASSWORD",
                "password:run.2",
                "url-password:env.DATABASE_URL",
            ]
        );
    }
}
