//! Secrets that would leave with an image: private keys, well-known tokens and passwords, in the files of every layer (also those
//! that a later layer deletes), in the environment, the commands and the history.
//!
//! Layers are searched once each, in one pass for all rules, with a bounded buffer: what a rule begins with is searched for, and
//! the rest is only looked at there. What was found is remembered by rule and place, never the secret itself.

mod names;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, Match, packed};
use kiln_model::{CanonicalError, Digest, canonical_json};
use kiln_oci::{Content, ImageConfig, Kind, Layer, Prepared, Store, Tree};
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use crate::error::BakeError;
pub(crate) use names::{is_secret, is_secret_name};

/// Changed whenever the rules are: what older ones found is then not relied on.
pub(crate) const RULES_VERSION: u32 = 3;

/// What is read of a file at a time.
const CHUNK: usize = 256 << 10;
/// As much of a chunk is looked at again with the next one: no secret's beginning is longer.
const OVERLAP: usize = 4 << 10;
/// Files whose name alone makes them interesting are small.
const NAMED_MAX: u64 = 1 << 20;
/// A package of a hundred thousand files has a list of some ten megabytes.
const SUMS_MAX: u64 = 64 << 20;
/// Fewer different characters than this are somebody's `xxxxxxxx`.
const DISTINCT: usize = 8;

/// A secret that has a beginning of its own, and so many characters of a kind behind it.
struct Token {
    rule: &'static str,
    begins: &'static str,
    rest: usize,
    kind: fn(u8) -> bool,
}

const fn token(
    rule: &'static str,
    begins: &'static str,
    rest: usize,
    kind: fn(u8) -> bool,
) -> Token {
    Token {
        rule,
        begins,
        rest,
        kind,
    }
}

fn alnum(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn upper(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

fn dotted(byte: u8) -> bool {
    word(byte) || byte == b'.'
}

fn base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)
}

const KEY: &str = "-----BEGIN ";

/// As their issuers document them.
const TOKENS: &[Token] = &[
    token("age-key", "AGE-SECRET-KEY-1", 58, upper),
    token("anthropic-key", "sk-ant-", 80, word),
    token("aws-access-key", "AKIA", 16, upper),
    token("aws-access-key", "ASIA", 16, upper),
    token("digitalocean-token", "dop_v1_", 64, alnum),
    token("docker-token", "dckr_pat_", 27, word),
    token("github-token", "ghp_", 36, alnum),
    token("github-token", "gho_", 36, alnum),
    token("github-token", "ghu_", 36, alnum),
    token("github-token", "ghs_", 36, alnum),
    token("github-token", "ghr_", 36, alnum),
    token("github-token", "github_pat_", 82, word),
    token("gitlab-token", "glpat-", 20, word),
    token("google-api-key", "AIza", 35, word),
    token("npm-token", "npm_", 36, alnum),
    token("openai-key", "sk-proj-", 48, word),
    token("pypi-token", "pypi-AgEIcHlwaS5vcmc", 50, word),
    token("sendgrid-key", "SG.", 66, dotted),
    token("slack-token", "xoxb-", 24, word),
    token("slack-token", "xoxp-", 24, word),
    token("slack-token", "xapp-", 24, word),
    token("stripe-key", "sk_live_", 24, alnum),
    token("stripe-key", "rk_live_", 24, alnum),
    token("vault-token", "hvs.", 24, word),
];

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

/// Searches for all beginnings at once.
enum Beginnings {
    /// With the processor's vector instructions: ten times as fast on what layers hold.
    Packed(packed::Searcher),
    Plain(AhoCorasick),
}

static BEGINNINGS: LazyLock<Beginnings> = LazyLock::new(|| {
    let patterns = || TOKENS.iter().map(|token| token.begins).chain([KEY]);
    match packed::Searcher::new(patterns()) {
        Some(searcher) => Beginnings::Packed(searcher),
        None => {
            let plain = AhoCorasick::builder().prefilter(false).build(patterns());
            Beginnings::Plain(plain.expect("some thirty short patterns make a small automaton"))
        }
    }
});

impl Beginnings {
    fn each(&self, bytes: &[u8], found: impl FnMut(Match)) {
        match self {
            Self::Packed(searcher) => searcher.find_iter(bytes).for_each(found),
            Self::Plain(searcher) => searcher.find_iter(bytes).for_each(found),
        }
    }
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

/// Shorter ones would be found in anything.
const GIVEN_MIN: usize = 8;

/// Searches the files of a layer for what a step was given as a secret.
pub(crate) fn given<'a>(
    tree: &Tree,
    secrets: impl Iterator<Item = &'a Vec<u8>>,
) -> Result<Vec<Finding>, BakeError> {
    // Often there is a line's end in the file that it was read from, which a step drops.
    let secrets: Vec<&[u8]> = secrets
        .map(|secret| secret.trim_ascii())
        .filter(|secret| secret.len() >= GIVEN_MIN)
        .collect();
    let mut found = Vec::new();
    if secrets.is_empty() {
        return Ok(found);
    }
    let search =
        AhoCorasick::new(&secrets).map_err(|error| BakeError::View(io::Error::other(error)))?;
    for (path, entry) in tree.iter() {
        let Kind::File { content, size } = &entry.kind else {
            continue;
        };
        let mut bytes = vec![0; CHUNK];
        let overlap = secrets.iter().map(|secret| secret.len()).max().unwrap_or(0);
        bytes.resize(CHUNK.max(overlap * 2), 0);
        let file = content.open().map_err(BakeError::io(path))?;
        let mut at = 0;
        while at < *size {
            let read = file
                .read_within(*size, &mut bytes, at)
                .map_err(BakeError::io(path))?;
            if search.is_match(&bytes[..read]) {
                let place = Path::new("/").join(path).to_string_lossy().into_owned();
                found.push(Finding::new(GIVEN, place));
                break;
            }
            let end = at + read as u64;
            if end == *size {
                break;
            }
            // Shorter than it is said to be: its end would go out unseen.
            if read < bytes.len() {
                return Err(BakeError::io(path)(io::ErrorKind::UnexpectedEof.into()));
            }
            at = end - overlap as u64;
        }
    }
    Ok(found)
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

fn is_token_rule(rule: &str) -> bool {
    TOKENS.iter().any(|token| token.rule == rule)
}

/// The MD5 sums of the files that the layer's packages brought, by path. What everybody can fetch from Debian is no secret: the keys
/// that libraries test themselves with are in many a package.
fn published(tree: &Tree) -> Result<BTreeMap<PathBuf, String>, BakeError> {
    let mut sums = BTreeMap::new();
    for (path, entry) in tree.iter() {
        let is_list = path.starts_with("var/lib/dpkg/info")
            && path
                .extension()
                .is_some_and(|extension| extension == "md5sums");
        let Kind::File { content, size } = &entry.kind else {
            continue;
        };
        if !is_list || *size > SUMS_MAX {
            continue;
        }
        let mut text = vec![0; usize::try_from(*size).unwrap_or(0)];
        let count = content
            .open()
            .and_then(|file| file.read_within(*size, &mut text, 0))
            .map_err(BakeError::io(path))?;
        for line in String::from_utf8_lossy(&text[..count]).lines() {
            if let Some((sum, path)) = line.split_once("  ") {
                sums.insert(PathBuf::from(path), sum.to_owned());
            }
        }
    }
    Ok(sums)
}

/// Whether the file is, byte for byte, one that a package brought.
fn is_published(
    tree: &Tree,
    published: &BTreeMap<PathBuf, String>,
    finding: &Finding,
    buffer: &mut [u8],
) -> Result<bool, BakeError> {
    let path = Path::new(finding.place.trim_start_matches('/'));
    // Packages from before /usr was merged name what is in /usr/lib as /lib.
    let before = path.strip_prefix("usr").unwrap_or(path);
    let Some(sum) = published.get(path).or_else(|| published.get(before)) else {
        return Ok(false);
    };
    let Some(Kind::File { content, size }) = tree.get(path).map(|entry| &entry.kind) else {
        return Ok(false);
    };
    let file = content.open().map_err(BakeError::io(path))?;
    let (mut hasher, mut at) = (Md5::new(), 0);
    loop {
        let count = file
            .read_within(*size, buffer, at)
            .map_err(BakeError::io(path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        at += count as u64;
    }
    let hex: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(hex == *sum)
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

/// Adds the rules that find something in `bytes`.
fn in_bytes(bytes: &[u8], found: &mut BTreeSet<&'static str>) {
    BEGINNINGS.each(bytes, |hit| {
        let rest = &bytes[hit.end()..];
        match TOKENS.get(hit.pattern().as_usize()) {
            None => {
                if is_private_key(rest) {
                    found.insert(PRIVATE_KEY);
                }
            }
            Some(token) => {
                let before = hit.start().checked_sub(1).map(|at| bytes[at]);
                if before.is_none_or(|byte| !word(byte)) && is_token(token, rest) {
                    found.insert(token.rule);
                }
            }
        }
    });
}

fn is_token(token: &Token, rest: &[u8]) -> bool {
    let length = rest.iter().take_while(|byte| (token.kind)(**byte)).count();
    let text = &rest[..length];
    // A fixed length says more than a least one where the alphabet is small.
    let fits = if token.rest <= 16 {
        length == token.rest
    } else {
        length >= token.rest
    };
    let distinct: BTreeSet<u8> = text.iter().take(token.rest).copied().collect();
    // The example of many a manual is `AKIAIOSFODNN7EXAMPLE`.
    fits && distinct.len() >= DISTINCT && !text.windows(7).any(|part| part == b"EXAMPLE")
}

/// Behind `-----BEGIN `: the rest of the heading, and the key itself and not only talk of one.
fn is_private_key(rest: &[u8]) -> bool {
    let heading = &rest[..rest.len().min(48)];
    let Some(end) = heading.windows(5).position(|part| part == b"-----") else {
        return false;
    };
    let name = &heading[..end];
    if !name.ends_with(b"PRIVATE KEY") && !name.ends_with(b"PRIVATE KEY BLOCK") {
        return false;
    }
    let body = &rest[end + 5..rest.len().min(end + 5 + 1024)];
    body.split(|byte| !base64(*byte))
        .any(|run| run.len() >= 40 && run.iter().collect::<BTreeSet<_>>().len() >= DISTINCT)
}

fn name_of(path: &Path) -> &'static str {
    if path.starts_with("etc") {
        PASSWORD_HASH
    } else {
        CREDENTIALS
    }
}

/// What makes a file of this name a leak.
fn named(path: &Path) -> Option<fn(&str) -> bool> {
    if ["etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-"]
        .iter()
        .any(|name| path == Path::new(name))
    {
        return Some(has_hash);
    }
    let name = path.file_name()?.as_bytes();
    let folder = path
        .parent()
        .and_then(Path::file_name)
        .map(OsStrExt::as_bytes);
    match (folder, name) {
        (_, b".netrc" | b"_netrc") => Some(|text| text.contains("password ")),
        (_, b".git-credentials") => Some(has_url_password),
        (_, b".pgpass") => Some(|text| text.lines().any(|line| line.split(':').count() >= 5)),
        (_, b".npmrc") => Some(|text| {
            let mut lines = text.lines();
            lines.any(|line| {
                line.split_once("_authToken=")
                    .is_some_and(|(_, v)| is_said(v))
            })
        }),
        (_, b".pypirc") => Some(|text| text.lines().any(|line| is_setting(line, "password"))),
        (Some(b".docker"), b"config.json") | (_, b".dockercfg") => {
            Some(|text| text.contains("\"auth\""))
        }
        (Some(b".aws"), b"credentials") => Some(|text| {
            text.lines()
                .any(|line| is_setting(line, "aws_secret_access_key"))
        }),
        (_, name) if name == b".env" || name.starts_with(b".env.") => Some(|text| {
            let mut lines = text.lines();
            lines.any(|line| has_assignment(line.trim_start_matches("export ")))
                || has_url_password(text)
        }),
        _ => None,
    }
}

fn is_setting(line: &str, name: &str) -> bool {
    line.split_once('=')
        .is_some_and(|(key, value)| key.trim() == name && is_said(value))
}

/// `!` and `*` are no password at all (shadow(5)); an empty one is not secret.
fn has_hash(text: &str) -> bool {
    text.lines()
        .filter_map(|line| line.split(':').nth(1))
        .any(|field| !field.is_empty() && !field.starts_with(['!', '*']) && field.len() > 1)
}

/// `scheme://user:password@host`, where the password is written out.
fn has_url_password(text: &str) -> bool {
    text.match_indices("://").any(|(at, _)| {
        let rest = &text[at + 3..];
        let end = rest
            .find(|c: char| c.is_whitespace() || "/\"'`<>?#".contains(c))
            .unwrap_or(rest.len());
        let Some((user, _)) = rest[..end].rsplit_once('@') else {
            return false;
        };
        user.split_once(':')
            .is_some_and(|(_, password)| is_said(password))
    })
}

/// Whether a value is written out: not empty, no reference to another and no mask.
fn is_said(value: &str) -> bool {
    let value = value.trim().trim_matches(['"', '\'']);
    let is_reference = value.starts_with(['$', '/', '{', '<', '%']) || value.contains("${");
    !value.is_empty() && !is_reference && value.chars().any(|c| !"*x".contains(c))
}

/// `NAME=value` or `--name=value` for a name that is a secret's.
fn has_assignment(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, value)| {
        let name = name.trim_start_matches('-');
        let is_name = name.bytes().all(word);
        is_name && is_secret_name(name) && is_said(value)
    })
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
    use super::*;
    use kiln_oci::Entry;

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
            "{0}  usr/lib/a.so\n{0}  lib/b.so\n{0}  usr/lib/c.so\n",
            sum(&key())
        );
        let mut tree = Tree::new();
        let entry = |text: String| Entry::bytes(text.into_bytes(), 0o644);
        tree.insert("var/lib/dpkg/info/a.md5sums", entry(list))
            .unwrap();
        for path in ["usr/lib/a.so", "usr/lib/b.so", "usr/lib/mine.so"] {
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
            ["private-key:/usr/lib/c.so", "private-key:/usr/lib/mine.so"]
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
