//! What is a secret by the name that it has, and what of a value may be shown or kept.

use std::collections::BTreeSet;

use super::in_command;

/// Words of names that are given to secrets, as docker's own lint has them (SecretsUsedInArgOrEnv).
const WORDS: [&str; 10] = [
    "password",
    "passwd",
    "pword",
    "pswd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "credentials",
    "auth",
];

/// As a name's last words.
const ENDS: [&str; 4] = ["api_key", "access_key", "private_key", "secret_key"];

/// Names that end so say where the secret is.
const PLACES: [&str; 7] = ["file", "path", "dir", "url", "name", "id", "public"];

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

/// Whether a value of this name in an image is a leak.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    !is_place(&name)
        && (name.split('_').any(|word| WORDS.contains(&word))
            || ENDS.iter().any(|two| name.ends_with(two)))
}

fn is_place(name: &str) -> bool {
    name.rsplit('_')
        .next()
        .is_some_and(|last| PLACES.contains(&last))
}

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
