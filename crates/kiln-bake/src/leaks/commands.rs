//! Secrets in texts that are no files: commands, variables, labels.

use std::collections::BTreeSet;

use super::finding::{Finding, PASSWORD, URL_PASSWORD};
use super::texts::{has_assignment, has_url_password};
use super::tokens::in_bytes;

pub(super) fn in_command(command: &str, place: &str, found: &mut BTreeSet<Finding>) {
    in_text(command, place, found);
    if command
        .split(|c: char| c.is_whitespace() || ";&|()'\"".contains(c))
        .any(has_assignment)
    {
        found.insert(Finding::new(PASSWORD, place));
    }
}

pub(super) fn in_text(text: &str, place: &str, found: &mut BTreeSet<Finding>) {
    let mut rules = BTreeSet::new();
    in_bytes(text.as_bytes(), &mut rules);
    if has_url_password(text) {
        rules.insert(URL_PASSWORD);
    }
    found.extend(rules.into_iter().map(|rule| Finding::new(rule, place)));
}
