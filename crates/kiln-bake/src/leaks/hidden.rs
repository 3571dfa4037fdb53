//! What of a value may be shown or kept.

use std::collections::BTreeSet;

use super::commands::in_command;
use super::names::{WORDS, is_place};

/// What words end with whose values are not shown, beside those above. An image may have them: an index has a key as well.
const HIDDEN: [&str; 10] = [
    "password",
    "passwd",
    "pass",
    "pwd",
    "secret",
    "token",
    "key",
    "keys",
    "credential",
    "private",
];

/// Whether a value is to be shown nowhere and kept in no record: by its name, more names than are leaks, or by what it says.
pub(crate) fn is_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let hidden = |word: &str| WORDS.contains(&word) || HIDDEN.iter().any(|end| word.ends_with(end));
    let mut found = BTreeSet::new();
    in_command(value, "", &mut found);
    !found.is_empty() || !is_place(&name) && name.split('_').any(hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_hidden_by_their_names_and_by_what_they_say() {
        for (name, value) in [
            ("DEPLOY_KEY", "x"),
            ("SSH_KEY", "x"),
            ("KEY", "x"),
            ("signing-key", "x"),
            ("SSH_KEY_PEM", "x"),
            ("DBPASSWORD", "x"),
            ("DB_PASS", "x"),
            ("API_TOKEN", "x"),
            ("npm_config__auth", "x"),
            ("GITHUB_CREDENTIAL", "x"),
            ("DATABASE_URL", "postgres://u:p@h/db"),
            ("HTTPS_PROXY", "http://user:pass@proxy:3128"),
            ("OPTIONS", "--verbose --token=abc123"),
            ("PLAIN", &format!("{}{}", "glpat-", "A7B2C9D4E5F6G8H1J3K0")),
        ] {
            assert!(is_secret(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("VERSION", "1.2"),
            ("AUTHOR", "somebody"),
            ("KEYBOARD", "de"),
            ("PASSENGER_VERSION", "6"),
            ("TOKEN_FILE", "/run/secrets/token"),
            ("KEY_ID", "7"),
            ("DATABASE_URL", "postgres://h/db"),
            ("HTTPS_PROXY", "http://proxy:3128"),
            ("", "make all"),
        ] {
            assert!(!is_secret(name, value), "{name}={value}");
        }
    }
}
