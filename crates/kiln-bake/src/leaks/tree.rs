//! The search of a layer's files.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use kiln_model::Digest;
use kiln_oci::{Content, Kind, Tree};

use super::content::{CHUNK, in_file};
use super::finding::{Finding, PRIVATE_KEY};
use super::published::{is_published, published};
use super::texts::{name_of, named};
use super::tokens::is_token_rule;
use crate::error::BakeError;

/// Files whose name alone makes them interesting are small.
const NAMED_MAX: u64 = 1 << 20;
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
