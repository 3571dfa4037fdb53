//! Where the archive is: the machine's own apt sources, in both of their forms (sources.list(5)), or the definition's `mirror`.

use std::fs;
use std::path::Path;

use crate::control;

/// One suite of one archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Without a `/` at the end.
    pub(crate) uri: String,
    pub(crate) suite: String,
    pub(crate) components: Vec<String>,
    /// A suite that the definition did not name and that may be absent.
    pub(crate) optional: bool,
}

/// The sources of `suite`, its updates and its security fixes.
pub(crate) fn find(suite: &str, mirror: Option<&str>) -> Vec<Source> {
    let Some(mirror) = mirror else {
        return of_suite(machine(Path::new("/etc/apt")), suite);
    };
    let uri = mirror.trim_end_matches('/').to_owned();
    let source = |uri: String, suite: String, optional| Source {
        uri,
        suite,
        components: vec!["main".to_owned()],
        optional,
    };
    let mut all = vec![
        source(uri.clone(), suite.to_owned(), false),
        source(uri.clone(), format!("{suite}-updates"), true),
    ];
    if let Some(host) = uri.strip_suffix("/debian") {
        all.push(source(
            format!("{host}/debian-security"),
            format!("{suite}-security"),
            true,
        ));
    }
    all
}

fn of_suite(all: Vec<Source>, suite: &str) -> Vec<Source> {
    let related = [
        suite.to_owned(),
        format!("{suite}-updates"),
        format!("{suite}-security"),
    ];
    all.into_iter()
        .filter(|source| related.contains(&source.suite))
        .collect()
}

fn machine(etc: &Path) -> Vec<Source> {
    let mut all = Vec::new();
    if let Ok(text) = fs::read_to_string(etc.join("sources.list")) {
        all.extend(one_line(&text));
    }
    let mut files: Vec<_> = fs::read_dir(etc.join("sources.list.d"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    files.sort();
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => all.extend(one_line(&text)),
            Some("sources") => all.extend(deb822(&text)),
            _ => {}
        }
    }
    let mut unique = Vec::new();
    for source in all {
        if !unique.contains(&source) {
            unique.push(source);
        }
    }
    unique
}

fn usable(uri: &str) -> bool {
    uri.starts_with("http://") || uri.starts_with("https://")
}

/// `deb [options] uri suite component…`. Options that would weaken the check of signatures have no effect here.
fn one_line(text: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next()?.trim().strip_prefix("deb ")?.trim();
            let line = match line.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?.1,
                None => line,
            };
            let mut words = line.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            Some(Source {
                uri: uri.trim_end_matches('/').to_owned(),
                suite: suite.to_owned(),
                components: words.map(str::to_owned).collect(),
                optional: false,
            })
        })
        .filter(|source| usable(&source.uri))
        .collect()
}

fn deb822(text: &str) -> Vec<Source> {
    let mut all = Vec::new();
    for paragraph in control::paragraphs(text) {
        let words = |name: &str| -> Vec<String> {
            paragraph
                .get(name)
                .unwrap_or("")
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        let off = paragraph
            .get("Enabled")
            .is_some_and(|v| v.eq_ignore_ascii_case("no"));
        if off || !words("Types").contains(&"deb".to_owned()) {
            continue;
        }
        for uri in words("URIs").iter().filter(|uri| usable(uri)) {
            for suite in words("Suites") {
                all.push(Source {
                    uri: uri.trim_end_matches('/').to_owned(),
                    suite,
                    components: words("Components"),
                    optional: false,
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_only_the_suites_that_belong_are_taken() {
        let list = "# deb http://no x main\ndeb [arch=amd64 trusted=yes] http://a.test/debian/ trixie main contrib\ndeb-src http://a.test/debian trixie main\ndeb cdrom:[x]/ trixie main\n";
        let all = one_line(list);
        assert_eq!(all.len(), 1);
        assert_eq!(
            (all[0].uri.as_str(), all[0].components.len()),
            ("http://a.test/debian", 2)
        );
        let sources = "Types: deb deb-src\nURIs: https://b.test/debian\nSuites: trixie trixie-updates sid\nComponents: main\n\nTypes: deb\nEnabled: no\nURIs: http://c.test\nSuites: trixie\n";
        let suites: Vec<_> = of_suite(deb822(sources), "trixie")
            .into_iter()
            .map(|s| s.suite)
            .collect();
        assert_eq!(suites, ["trixie", "trixie-updates"]);
        assert_eq!(find("trixie", Some("http://m.test/debian/")).len(), 3);
    }
}
