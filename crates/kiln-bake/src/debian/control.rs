//! The control format of Debian (deb822): paragraphs of `Name: value`, continued on lines that begin with white space.

use std::collections::BTreeMap;

/// One paragraph. Names are compared without regard to case, as Debian policy says (section 5.1); they are kept as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paragraph {
    fields: BTreeMap<String, (String, String)>,
}

impl Paragraph {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .get(&name.to_ascii_lowercase())
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.fields.insert(
            name.to_ascii_lowercase(),
            (name.to_owned(), value.to_owned()),
        );
    }

    /// With `Package` first, as dpkg wants it, and the rest ordered by name.
    pub(crate) fn write(&self) -> String {
        let mut out = String::new();
        let first = self.fields.get("package").into_iter();
        let rest = self
            .fields
            .iter()
            .filter(|(key, _)| *key != "package")
            .map(|(_, field)| field);
        for (name, value) in first.chain(rest) {
            out.push_str(name);
            out.push(':');
            if !value.starts_with('\n') && !value.is_empty() {
                out.push(' ');
            }
            out.push_str(value);
            out.push('\n');
        }
        out
    }
}

pub(crate) fn paragraphs(text: &str) -> Vec<Paragraph> {
    let mut all = Vec::new();
    let mut current = Paragraph::default();
    let mut last: Option<String> = None;
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            if !current.fields.is_empty() {
                all.push(std::mem::take(&mut current));
            }
            last = None;
        } else if line.starts_with('#') {
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = last.as_ref().and_then(|name| current.fields.get_mut(name)) {
                value.push('\n');
                value.push_str(line.trim_end());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            current.set(name, value.trim());
            last = Some(name.to_ascii_lowercase());
        }
    }
    all
}

/// One of the alternatives of a dependency: `name [op version]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) name: String,
    pub(crate) version: Option<(String, String)>,
}

impl Relation {
    pub(crate) fn admits(&self, version: &str) -> bool {
        let Some((operator, wanted)) = &self.version else {
            return true;
        };
        let order = crate::debian::version::compare(version, wanted);
        match operator.as_str() {
            "<<" => order.is_lt(),
            "<=" | "<" => order.is_le(),
            "=" => order.is_eq(),
            ">=" | ">" => order.is_ge(),
            ">>" => order.is_gt(),
            _ => false,
        }
    }
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.version {
            Some((operator, version)) => write!(f, "{} ({operator} {version})", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// `a (>= 1) | b, c`: all of the outer, one of the inner. What is for other architectures is left out.
pub(crate) fn relations(field: &str, arch: &str) -> Vec<Vec<Relation>> {
    field
        .split(',')
        .map(|group| {
            group
                .split('|')
                .filter_map(|one| relation(one, arch))
                .collect::<Vec<_>>()
        })
        .filter(|group| !group.is_empty())
        .collect()
}

fn relation(text: &str, arch: &str) -> Option<Relation> {
    let text = text.trim();
    if let Some((_, only)) = text.split_once('[') {
        let only: Vec<_> = only.trim_end_matches(']').split_whitespace().collect();
        let excluded = only.iter().any(|a| a.strip_prefix('!') == Some(arch));
        let named = only.contains(&arch) || only.iter().all(|a| a.starts_with('!'));
        if excluded || !named {
            return None;
        }
    }
    let text = text.split('[').next()?.trim();
    let (name, version) = match text.split_once('(') {
        Some((name, version)) => {
            let version = version.trim_end_matches(')').trim();
            let split = version.find(|c: char| !"<>=".contains(c))?;
            let (operator, version) = version.split_at(split);
            (
                name.trim(),
                Some((operator.to_owned(), version.trim().to_owned())),
            )
        }
        None => (text, None),
    };
    let name = name.split(':').next()?;
    (!name.is_empty()).then(|| Relation {
        name: name.to_owned(),
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_go_on_over_lines_and_come_back_with_the_package_first() {
        let text = "# note\nA: 1\npackage: x\nDescription: short\n long\n .\n\nPackage: y\n";
        let all = paragraphs(text);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("Description"), Some("short\n long\n ."));
        assert_eq!(
            all[0].write(),
            "package: x\nA: 1\nDescription: short\n long\n .\n"
        );
    }

    #[test]
    fn relations_have_alternatives_versions_and_architectures() {
        let all = relations(
            "a (>= 1.0), b | c:any (<< 2~) , d [i386], e [!i386]",
            "amd64",
        );
        let text: Vec<String> = all
            .iter()
            .map(|g| {
                g.iter()
                    .map(Relation::to_string)
                    .collect::<Vec<_>>()
                    .join("|")
            })
            .collect();
        assert_eq!(text, ["a (>= 1.0)", "b|c (<< 2~)", "e"]);
        assert!(all[0][0].admits("1.0-1") && !all[0][0].admits("1.0~rc1"));
    }
}
