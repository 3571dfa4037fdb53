use std::collections::BTreeSet;

use kiln_oci::{Content, Entry, ImageConfig, Kind, Store, Tree};
use md5::{Digest as _, Md5};

use super::content::{CHUNK, OVERLAP, in_file};
use super::finding::{CREDENTIALS, GIVEN, PASSWORD_HASH, PRIVATE_KEY};
use super::layers::of_layer;
use super::tokens::{KEY, TOKENS, in_bytes};
use super::tree::in_tree;
use super::*;
use crate::error::BakeError;

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
