//! `.gitmodules`: which repository a submodule is (gitmodules(5)), in the form of Git's configuration (git-config(1), "Syntax").

use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) url: String,
    /// `update = none`: nobody gets it who does not ask for it.
    pub(crate) is_left_out: bool,
}

/// Those that have a path, by it. None: it is not what Git writes.
pub(crate) fn parse(text: &str) -> Option<BTreeMap<String, Module>> {
    let mut modules: Vec<Module> = Vec::new();
    let mut is_module = false;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut line = line.trim().to_owned();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(head) = line.strip_prefix('[') {
            let (kind, name) = section(head)?;
            is_module = kind.eq_ignore_ascii_case("submodule");
            if is_module {
                modules.push(Module {
                    name,
                    ..Module::default()
                });
            }
            continue;
        }
        while line.ends_with('\\') && !line.ends_with("\\\\") {
            line.pop();
            line.push_str(lines.next()?.trim_end());
        }
        let (key, value) = line.split_once('=').unwrap_or((&line, ""));
        let value = value_of(value.trim())?;
        let Some(module) = modules.last_mut().filter(|_| is_module) else {
            continue;
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "path" => module.path = value,
            "url" => module.url = value,
            "update" => module.is_left_out = value == "none",
            _ => {}
        }
    }
    let with_path = modules.into_iter().filter(|module| !module.path.is_empty());
    Some(
        with_path
            .map(|module| (module.path.clone(), module))
            .collect(),
    )
}

/// `KIND "NAME"]`
fn section(head: &str) -> Option<(&str, String)> {
    let Some((kind, rest)) = head.split_once('"') else {
        return Some((head.split(']').next()?.trim(), String::new()));
    };
    let mut name = String::new();
    let mut rest = rest.chars();
    loop {
        match rest.next()? {
            '"' => return Some((kind.trim(), name)),
            '\\' => name.push(rest.next()?),
            other => name.push(other),
        }
    }
}

fn value_of(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut is_quoted = false;
    // Blanks at the end are none of it, unless they are quoted.
    let mut length = 0;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' => {
                is_quoted = !is_quoted;
                length = value.len();
                continue;
            }
            '#' | ';' if !is_quoted => break,
            '\\' => value.push(match rest.next()? {
                'n' => '\n',
                't' => '\t',
                'b' => '\u{8}',
                other @ ('"' | '\\') => other,
                _ => return None,
            }),
            other => value.push(other),
        }
        if is_quoted || !c.is_whitespace() {
            length = value.len();
        }
    }
    value.truncate(length);
    (!is_quoted).then_some(value)
}

/// Where a submodule's repository is: `./` and `../` go from its superproject's address on. None: above its server, or where parts of an
/// address are that no repository's has.
pub(crate) fn address(superproject: &str, url: &str) -> Option<String> {
    if url.contains(|c: char| c.is_control() || matches!(c, '?' | '#')) {
        return None;
    }
    let mut rest = url;
    if !(rest.starts_with("./") || rest.starts_with("../")) {
        return Some(url.to_owned());
    }
    let mut base = superproject.trim_end_matches('/');
    loop {
        if let Some(after) = rest.strip_prefix("../") {
            let Some(end) = base.rfind('/') else {
                // In `user@host:path` the path begins behind the colon.
                let colon = base.rfind(':').filter(|_| !after.starts_with("../"))?;
                return Some(format!(
                    "{}{}",
                    &base[..=colon],
                    after.trim_end_matches('/')
                ));
            };
            base = &base[..end];
            // Above the server's name there is nothing.
            if base.ends_with('/') || base.ends_with(':') {
                return None;
            }
            rest = after;
        } else if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else {
            let address = format!("{base}/{rest}");
            return Some(address.trim_end_matches('/').to_owned());
        }
    }
}

/// Whether a folder of `.git/modules` may have that name.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte >= b' ')
        && name
            .split('/')
            .all(|part| !part.is_empty() && !matches!(part, "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_read_as_git_writes_them() {
        let text = "# of old\n[submodule \"a b\\\"c\"]\n\tpath = lib/a ; here\n\turl = \"../a # b.git\"\n[core]\n\
                    \turl = x\n[Submodule \"d\"]\n\tURL=https://x.io/\\\nd.git\n\tpath=d\n\tupdate = none\n\tshallow\n";
        let module = |name: &str, path: &str, url: &str, is_left_out| Module {
            name: name.to_owned(),
            path: path.to_owned(),
            url: url.to_owned(),
            is_left_out,
        };
        assert_eq!(
            parse(text).unwrap().into_values().collect::<Vec<_>>(),
            [
                module("d", "d", "https://x.io/d.git", true),
                module("a b\"c", "lib/a", "../a # b.git", false),
            ]
        );
        assert_eq!(parse("[submodule \"a"), None);
        assert_eq!(parse("[submodule \"a\"]\nurl = \"x"), None);
    }

    #[test]
    fn addresses_go_from_the_superprojects_on() {
        let base = "https://x.io/g/a.git";
        for (url, expected) in [
            ("../b.git", Some("https://x.io/g/b.git")),
            ("../../h/b.git", Some("https://x.io/h/b.git")),
            ("./b", Some("https://x.io/g/a.git/b")),
            ("../../../b", None),
            ("git://y.io/b", Some("git://y.io/b")),
            ("https://evil.test?@x.io/b", None),
            ("../b#c", None),
            ("git://127.0.0.1:6379/x\nSET a b\n", None),
        ] {
            assert_eq!(address(base, url).as_deref(), expected, "{url}");
        }
        let base = "git@x.io:g/a.git";
        for (url, expected) in [
            ("../b.git", Some("git@x.io:g/b.git")),
            ("../../b.git", Some("git@x.io:b.git")),
            ("../../../b.git", None),
            ("./../../../b.git", None),
            ("./b", Some("git@x.io:g/a.git/b")),
        ] {
            assert_eq!(address(base, url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn names_of_modules_lead_nowhere() {
        assert!(is_name("lib/a b"));
        for name in ["", "..", "a/../b", "/a", "a/", "a\nb"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
