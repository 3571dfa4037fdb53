//! Secrets that are known by how they begin: tokens of services, and private keys.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, Match, packed};

use super::finding::PRIVATE_KEY;

/// Fewer different characters than this are somebody's `xxxxxxxx`.
const DISTINCT: usize = 8;

/// A secret that has a beginning of its own, and so many characters of a kind behind it.
pub(super) struct Token {
    pub(super) rule: &'static str,
    pub(super) begins: &'static str,
    pub(super) rest: usize,
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

pub(super) fn word(byte: u8) -> bool {
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

pub(super) const KEY: &str = "-----BEGIN ";

/// As their issuers document them.
pub(super) const TOKENS: &[Token] = &[
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

pub(super) fn is_token_rule(rule: &str) -> bool {
    TOKENS.iter().any(|token| token.rule == rule)
}

/// Adds the rules that find something in `bytes`.
pub(super) fn in_bytes(bytes: &[u8], found: &mut BTreeSet<&'static str>) {
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
