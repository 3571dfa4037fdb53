//! What is a secret by the name that it has.

/// Words of names that are given to secrets, as docker's own lint has them (SecretsUsedInArgOrEnv).
pub(super) const WORDS: [&str; 10] = [
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

/// Whether a value of this name in an image is a leak.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    !is_place(&name)
        && (name.split('_').any(|word| WORDS.contains(&word))
            || ENDS.iter().any(|two| name.ends_with(two)))
}

pub(super) fn is_place(name: &str) -> bool {
    name.rsplit('_')
        .next()
        .is_some_and(|last| PLACES.contains(&last))
}
