//! Where the archive is: the machine's own apt sources, in both of their forms (sources.list(5)), or the definition's `mirror`.

use std::fs;
use std::path::Path;

use kiln_model::{DebianOrigin, DebianSpec};

use crate::debian::control;

/// One suite of one archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Without a `/` at the end.
    pub(crate) uri: String,
    pub(crate) suite: String,
    pub(crate) components: Vec<String>,
    /// A suite that the definition did not name and that may be absent.
    pub(crate) optional: bool,
    /// As it was at a time: never out of date.
    pub(crate) frozen: bool,
}

/// Debian's own, which every mirror is one of.
pub(crate) const PUBLIC: &str = "http://deb.debian.org/debian";

/// The sources of a suite, its updates and its security fixes.
pub(crate) fn find(debian: &DebianSpec) -> Vec<Source> {
    match &debian.origin {
        DebianOrigin::Machine => of_machine(debian, machine(Path::new("/etc/apt"))),
        DebianOrigin::Mirror { url, security } => {
            let beside = beside(url);
            let named = security.as_deref().map(|url| (url, true));
            let fixes = named.or(beside.as_deref().map(|url| (url, false)));
            of_archive(debian, url, fixes, false)
        }
        DebianOrigin::Snapshot { url, security } => {
            of_archive(debian, url, Some((security, false)), true)
        }
    }
}

/// `fixes`: the archive of security fixes, and whether the definition names it.
fn of_archive(
    debian: &DebianSpec,
    url: &str,
    fixes: Option<(&str, bool)>,
    frozen: bool,
) -> Vec<Source> {
    let source = |uri: &str, suite: &str, optional| Source {
        uri: uri.trim_end_matches('/').to_owned(),
        suite: suite.to_owned(),
        components: debian.components.clone(),
        optional,
        frozen,
    };
    let mut all = vec![source(url, &debian.suite, false)];
    let updates = updates_suite(debian);
    all.extend(updates.iter().map(|suite| source(url, suite, true)));
    if let (Some((url, is_named)), Some(suite)) = (fixes, debian.security_suite()) {
        all.push(source(url, &suite, !is_named));
    }
    all
}

/// What the machine's apt sources say of the suite. A machine of another suite, or of another distribution, says where an archive is at most:
/// every archive of Debian's has all suites.
fn of_machine(debian: &DebianSpec, there: Vec<Source>) -> Vec<Source> {
    let suite = &debian.suite;
    let (updates, security) = (updates_suite(debian), debian.security_suite());
    let wanted: Vec<&String> = [suite]
        .into_iter()
        .chain(&updates)
        .chain(&security)
        .collect();
    let mut archives = there.iter().map(|source| source.uri.as_str());
    let archive = archives.find(|uri| uri.ends_with("/debian"));
    let archive = archive.unwrap_or(PUBLIC).to_owned();
    let mut all = of_suites(there, &wanted, &debian.components);
    let own = all.iter().find(|source| source.suite == *suite);
    let Some(own) = own.map(|source| source.uri.clone()) else {
        let fixes = beside(&archive);
        return of_archive(
            debian,
            &archive,
            fixes.as_deref().map(|url| (url, false)),
            false,
        );
    };
    // One that has no fixes of the suite gets them from beside its archive.
    if let Some(suite) = security
        && !all.iter().any(|source| source.suite == suite)
    {
        let public = beside(PUBLIC);
        all.extend(beside(&own).or(public).map(|uri| Source {
            uri,
            suite,
            components: debian.components.clone(),
            optional: true,
            frozen: false,
        }));
    }
    all
}

fn updates_suite(debian: &DebianSpec) -> Option<String> {
    let has = debian.updates && !debian.is_rolling();
    has.then(|| format!("{}-updates", debian.suite))
}

/// Where mirrors have the archive of security fixes.
fn beside(url: &str) -> Option<String> {
    let host = url.trim_end_matches('/').strip_suffix("/debian")?;
    Some(format!("{host}/debian-security"))
}

/// Those of the suites. Another vendor's source of the same suite has components of its own (`stable`), and is none of Debian's.
fn of_suites(all: Vec<Source>, wanted: &[&String], components: &[String]) -> Vec<Source> {
    all.into_iter()
        .filter(|source| wanted.contains(&&source.suite))
        .filter(|source| source.components.iter().any(|one| components.contains(one)))
        .map(|source| Source {
            components: components.to_vec(),
            ..source
        })
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
                frozen: false,
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
                    frozen: false,
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
        let wanted = ["trixie", "trixie-updates", "trixie-security"].map(str::to_owned);
        let wanted: Vec<&String> = wanted.iter().collect();
        let components = ["main".to_owned(), "contrib".to_owned()];
        let mut all = deb822(sources);
        all.extend(one_line("deb http://vendor.test trixie stable\n"));
        let found = of_suites(all, &wanted, &components);
        let suites: Vec<_> = found.iter().map(|source| &*source.suite).collect();
        assert_eq!(suites, ["trixie", "trixie-updates"]);
        assert!(found.iter().all(|source| source.components == components));
    }

    #[test]
    fn a_machine_of_another_suite_says_where_the_archive_is() {
        let debian = DebianSpec::of("bookworm");
        let found = |text: &str| -> Vec<String> {
            let one = |source: Source| format!("{} {}", source.uri, source.suite);
            let all = of_machine(&debian, one_line(text));
            all.into_iter().map(one).collect()
        };
        let all = |host: &str| {
            [
                format!("http://{host}/debian bookworm"),
                format!("http://{host}/debian bookworm-updates"),
                format!("http://{host}/debian-security bookworm-security"),
            ]
        };
        let other = "deb http://v.test/x bookworm stable\ndeb http://m.test/debian/ trixie main\n";
        assert_eq!(found(other), all("m.test"));
        let elsewhere = "deb http://archive.test/ubuntu noble main\n";
        assert_eq!(found(elsewhere), all("deb.debian.org"));
        assert_eq!(found(""), all("deb.debian.org"));
        // What the machine says of the suite is what counts.
        let own = "deb http://m.test/debian bookworm main\n";
        assert_eq!(
            found(own),
            [&all("m.test")[0], &all("m.test")[2]].map(String::clone)
        );
        let named = format!("{own}deb http://f.test/fixes bookworm-security main\n");
        assert_eq!(found(&named)[1], "http://f.test/fixes bookworm-security");
        let odd = "deb http://m.test/d bookworm main\n";
        assert_eq!(
            found(odd)[1],
            "http://deb.debian.org/debian-security bookworm-security"
        );
    }

    #[test]
    fn the_archive_of_fixes_is_beside_a_mirror_and_below_the_same_time_of_a_snapshot() {
        let mut debian = DebianSpec {
            origin: DebianOrigin::Mirror {
                url: "http://m.test/debian/".into(),
                security: None,
            },
            ..DebianSpec::of("trixie")
        };
        let found = |debian: &DebianSpec| -> Vec<String> {
            let one = |source: Source| format!("{} {} {}", source.uri, source.suite, source.frozen);
            find(debian).into_iter().map(one).collect()
        };
        let all = [
            "http://m.test/debian trixie false",
            "http://m.test/debian trixie-updates false",
            "http://m.test/debian-security trixie-security false",
        ];
        assert_eq!(found(&debian), all);
        debian.updates = false;
        assert_eq!(found(&debian), [all[0], all[2]]);
        debian.security = false;
        assert_eq!(found(&debian), all[..1]);
        debian.security = true;
        debian.origin = DebianOrigin::Mirror {
            url: "http://m.test/other".into(),
            security: Some("http://fixes.test/d".into()),
        };
        let named = find(&debian);
        assert_eq!(
            found(&debian)[1],
            "http://fixes.test/d trixie-security false"
        );
        assert!(!named[1].optional, "what is named has to be there");
        debian.suite = "sid".into();
        assert_eq!(found(&debian), ["http://m.test/other sid false"]);
        debian.suite = "trixie".into();
        debian.origin = DebianOrigin::Snapshot {
            url: "http://s.test/debian/1".into(),
            security: "http://s.test/debian-security/1".into(),
        };
        let all = [
            "http://s.test/debian/1 trixie true",
            "http://s.test/debian-security/1 trixie-security true",
        ];
        assert_eq!(found(&debian), all);
    }
}
