//! Licences of a Debian package: from its `copyright` file, where that is machine-readable (DEP-5), to SPDX's expressions. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::debian::control::{Paragraph, paragraphs};

/// What a package's licence is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Licence {
    /// An SPDX expression.
    pub(crate) expression: String,
    /// The texts of the licences in it that SPDX has no name for.
    pub(crate) texts: BTreeMap<String, String>,
}

/// DEP-5's short names that SPDX calls otherwise, without a version.
const RENAMED: &[(&str, &str)] = &[
    ("expat", "MIT"),
    ("apache-2", "Apache-2.0"),
    ("apache", "Apache-2.0"),
    ("bsd-2-clause", "BSD-2-Clause"),
    ("bsd-3-clause", "BSD-3-Clause"),
    ("bsd-4-clause", "BSD-4-Clause"),
    ("cc0", "CC0-1.0"),
    ("zlib", "Zlib"),
    ("boost-1.0", "BSL-1.0"),
    ("psf-2", "PSF-2.0"),
    ("artistic", "Artistic-1.0-Perl"),
    ("artistic-2", "Artistic-2.0"),
    ("artistic-2.0", "Artistic-2.0"),
];

/// Names that are SPDX's already (SPDX licence list 3.x), as far as Debian's base has them.
const SPDX: &[&str] = &[
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSD-4-Clause",
    "BSL-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "FSFAP",
    "FSFUL",
    "FSFULLR",
    "ISC",
    "MIT",
    "MPL-1.1",
    "MPL-2.0",
    "OFL-1.1",
    "OpenSSL",
    "PSF-2.0",
    "Unlicense",
    "WTFPL",
    "X11",
    "Zlib",
    "0BSD",
    "curl",
    "bzip2-1.0.6",
];

/// `None` where the file is not machine-readable or names no licence.
pub(crate) fn read(package: &str, copyright: &str) -> Option<Licence> {
    let paragraphs = paragraphs(copyright);
    let format = paragraphs.first()?.get("Format")?;
    if !format.contains("copyright-format") && !format.contains("dep5") {
        return None;
    }
    let mut licence = Licence {
        expression: String::new(),
        texts: BTreeMap::new(),
    };
    let mut expressions = BTreeSet::new();
    for paragraph in paragraphs.iter().filter(|one| one.get("Files").is_some()) {
        let named = paragraph.get("License")?.lines().next()?.trim();
        let text = |name: &str| text_of(&paragraphs, paragraph, name);
        expressions.insert(expression(package, named, &text, &mut licence.texts)?);
    }
    let several = expressions.len() > 1;
    let all: Vec<String> = expressions
        .into_iter()
        .map(|one| {
            if several && one.contains(" OR ") {
                format!("({one})")
            } else {
                one
            }
        })
        .collect();
    licence.expression = all.join(" AND ");
    (!licence.expression.is_empty()).then_some(licence)
}

/// The text that stands for `name`: below the files' own field, or in a paragraph of its own.
fn text_of(all: &[Paragraph], files: &Paragraph, name: &str) -> String {
    let own = files.get("License").into_iter();
    let others = all
        .iter()
        .filter(|one| one.get("Files").is_none())
        .filter_map(|one| one.get("License"));
    own.chain(others)
        .filter_map(|field| field.split_once('\n'))
        .find(|(first, _)| first.trim().eq_ignore_ascii_case(name))
        .map(|(_, text)| text.lines().map(str::trim).collect::<Vec<_>>().join("\n"))
        .unwrap_or_default()
}

/// DEP-5: `and` binds tighter than `or`, as in SPDX, and a comma before either makes it bind last.
fn expression(
    package: &str,
    text: &str,
    text_for: &dyn Fn(&str) -> String,
    texts: &mut BTreeMap<String, String>,
) -> Option<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let loose = words
        .iter()
        .enumerate()
        .skip(1)
        .position(|(at, word)| is_operator(word) && words[at - 1].ends_with(','));
    if let Some(at) = loose.map(|at| at + 1) {
        let left = words[..at].join(" ");
        let left = expression(package, left.trim_end_matches(','), text_for, texts)?;
        let right = expression(package, &words[at + 1..].join(" "), text_for, texts)?;
        let operator = words[at].to_ascii_uppercase();
        let group = |side: String| {
            if side.contains(" OR ") && operator == "AND" {
                format!("({side})")
            } else {
                side
            }
        };
        return Some(format!("{} {operator} {}", group(left), group(right)));
    }
    let mut out = Vec::new();
    let mut name: Vec<&str> = Vec::new();
    for word in words.iter().chain([&"and"]) {
        if is_operator(word) {
            if name.is_empty() {
                return None;
            }
            out.push(one(package, &name.join(" "), text_for, texts));
            out.push(word.to_ascii_uppercase());
            name.clear();
        } else {
            name.push(word);
        }
    }
    out.pop();
    Some(out.join(" "))
}

fn is_operator(word: &str) -> bool {
    ["and", "or"]
        .iter()
        .any(|one| word.eq_ignore_ascii_case(one))
}

fn one(
    package: &str,
    name: &str,
    text_for: &dyn Fn(&str) -> String,
    texts: &mut BTreeMap<String, String>,
) -> String {
    if let Some(known) = known(name) {
        return known;
    }
    let clean: String = format!("{package}-{name}")
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || ".-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    let reference = format!("LicenseRef-{clean}");
    let text = text_for(name);
    let text = if text.trim().is_empty() {
        format!("{name}: see /usr/share/doc/{package}/copyright")
    } else {
        text
    };
    texts.insert(reference.clone(), text);
    reference
}

fn known(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if let Some((_, spdx)) = RENAMED.iter().find(|(debian, _)| *debian == lower) {
        return Some((*spdx).to_owned());
    }
    if let Some(spdx) = SPDX.iter().find(|spdx| spdx.eq_ignore_ascii_case(name)) {
        return Some((*spdx).to_owned());
    }
    let (family, version) = lower.split_once('-')?;
    let known: &[&str] = match family {
        "gpl" => &["1.0", "2.0", "3.0"],
        "lgpl" => &["2.0", "2.1", "3.0"],
        "agpl" => &["3.0"],
        "gfdl" => &["1.1", "1.2", "1.3"],
        _ => return None,
    };
    let (version, suffix) = match version.strip_suffix('+') {
        Some(version) => (version, "or-later"),
        None => (version, "only"),
    };
    let version = if version.contains('.') {
        version.to_owned()
    } else {
        format!("{version}.0")
    };
    known
        .contains(&version.as_str())
        .then(|| format!("{}-{version}-{suffix}", family.to_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(licences: &[&str]) -> Option<String> {
        let mut text =
            "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
                .to_owned();
        for licence in licences {
            text.push_str(&format!(
                "Files: *\nCopyright: someone\nLicense: {licence}\n\n"
            ));
        }
        read("pkg", &text).map(|licence| licence.expression)
    }

    #[test]
    fn debians_names_become_spdx_expressions() {
        for (debian, spdx) in [
            (&["GPL-2+"][..], "GPL-2.0-or-later"),
            (&["LGPL-2.1"], "LGPL-2.1-only"),
            (&["Expat", "BSD-3-clause"], "BSD-3-Clause AND MIT"),
            (
                &["GPL-1+ or Artistic"],
                "GPL-1.0-or-later OR Artistic-1.0-Perl",
            ),
            (&["GPL-2 or Expat", "ISC"], "(GPL-2.0-only OR MIT) AND ISC"),
            (
                &["GPL-2 or Expat, and ISC"],
                "(GPL-2.0-only OR MIT) AND ISC",
            ),
            (&["GPL-2 and Expat or ISC"], "GPL-2.0-only AND MIT OR ISC"),
            (&["GPL-9"], "LicenseRef-pkg-GPL-9"),
        ] {
            assert_eq!(of(debian).as_deref(), Some(spdx), "{debian:?}");
        }
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["or"]), None);
        assert_eq!(read("pkg", "This package is free software.\n"), None);
    }

    #[test]
    fn a_licence_without_a_name_of_spdx_keeps_its_text() {
        let text = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n\
                    Files: *\nLicense: public-domain\n\nFiles: b\nLicense: mine\n\n\
                    License: public-domain\n In the public\n domain.\n";
        let licence = read("a+b", text).unwrap();
        assert_eq!(
            licence.expression,
            "LicenseRef-a-b-mine AND LicenseRef-a-b-public-domain"
        );
        assert_eq!(
            licence.texts["LicenseRef-a-b-public-domain"],
            "In the public\ndomain."
        );
        assert!(licence.texts["LicenseRef-a-b-mine"].contains("/usr/share/doc/a+b/copyright"));
    }
}
