//! Texts that people write.

use std::collections::BTreeMap;

use kiln_config::dockerfile::{Dockerfile, Ignore, LintInputs, PathPattern};
use kiln_config::{Inputs, Outside, Source};

fn source(name: &str, data: &[u8]) -> Option<Source> {
    Some(Source {
        name: name.to_owned(),
        text: std::str::from_utf8(data).ok()?.to_owned(),
    })
}

/// Whatever is wrong can be shown, and so can every warning.
pub(crate) fn dockerfile(data: &[u8]) -> bool {
    match Dockerfile::parse_bytes("Dockerfile".to_owned(), data.to_vec(), None) {
        Ok(file) => {
            assert!(!file.stages.is_empty());
            let ignore = Ignore::default();
            let warnings = file.lint(&LintInputs {
                build_args: &BTreeMap::new(),
                target: None,
                arch: "amd64",
                ignore: &ignore,
                base: Some(&|_| None),
            });
            for warning in &warnings {
                assert!(!warning.render(&file.file).is_empty());
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// Nothing is outside of the definition.
struct Nothing;

impl Outside for Nothing {
    fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        // One that a definition may name, so that what files say is reached.
        match path {
            "kiln.hcl" => Ok(b"project = \"${1 + 1}\"".to_vec()),
            _ => Err("it is not there".to_owned()),
        }
    }

    fn files(&self, _: &str) -> Result<Vec<String>, String> {
        Ok(vec!["kiln.hcl".to_owned()])
    }

    fn variable(&self, name: &str) -> Option<String> {
        (name == "HOME").then(|| "/root".to_owned())
    }

    fn date(&self) -> Option<i64> {
        Some(1_700_000_000)
    }
}

/// It is read or refused, and laid out it is laid out for good.
pub(crate) fn definition(data: &[u8]) -> bool {
    let Some(source) = source("kiln.hcl", data) else {
        return false;
    };
    let inputs = Inputs {
        environment: "dev".parse().expect("it is the default"),
        variables: BTreeMap::new(),
    };
    let loaded = kiln_config::load(vec![source.clone()], &inputs, &Nothing);
    if let Err(error) = &loaded {
        assert!(!error.to_string().is_empty());
    }
    if let Ok(text) = kiln_config::format(&source) {
        let again = kiln_config::format(&Source {
            text: text.clone(),
            ..source
        });
        assert_eq!(again.ok().as_ref(), Some(&text), "laid out twice");
    }
    loaded.is_ok()
}

/// A path a line after an empty one, and the rules before it.
pub(crate) fn ignore(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let (rules, paths) = text.split_once("\n\n").unwrap_or((text, "a/b/c"));
    let Ok(ignore) = Ignore::parse(rules) else {
        return false;
    };
    for path in paths.lines().take(20) {
        ignore.ignores(path);
        for pattern in [PathPattern::deep(path), PathPattern::flat(path)] {
            let _ = pattern.is_some_and(|pattern| pattern.fits(path));
        }
    }
    true
}
