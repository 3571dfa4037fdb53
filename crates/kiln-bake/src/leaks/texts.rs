//! Secrets that are known by the name of their file, or by what a line says.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::finding::{CREDENTIALS, PASSWORD_HASH};
use super::names::is_secret_name;
use super::tokens::word;

pub(super) fn name_of(path: &Path) -> &'static str {
    if path.starts_with("etc") {
        PASSWORD_HASH
    } else {
        CREDENTIALS
    }
}

/// What makes a file of this name a leak.
pub(super) fn named(path: &Path) -> Option<fn(&str) -> bool> {
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
pub(super) fn has_url_password(text: &str) -> bool {
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
pub(super) fn is_said(value: &str) -> bool {
    let value = value.trim().trim_matches(['"', '\'']);
    let is_reference = value.starts_with(['$', '/', '{', '<', '%']) || value.contains("${");
    !value.is_empty() && !is_reference && value.chars().any(|c| !"*x".contains(c))
}

/// `NAME=value` or `--name=value` for a name that is a secret's.
pub(super) fn has_assignment(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, value)| {
        let name = name.trim_start_matches('-');
        let is_name = name.bytes().all(word);
        is_name && is_secret_name(name) && is_said(value)
    })
}
