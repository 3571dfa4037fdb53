//! Which packages an image gets: those asked for, the essential ones, and what they need, chosen in apt's order: an alternative that
//! is already there, then the first that a real package gives, then a provider.

use std::collections::{BTreeMap, VecDeque};

use kiln_model::ImageName;

use crate::archive::{Package, arch};
use crate::control::{Relation, relations};
use crate::error::BakeError;
use crate::version;

struct Universe<'a> {
    packages: &'a [Package],
    /// The newest version of each name.
    newest: BTreeMap<&'a str, usize>,
    providers: BTreeMap<String, Vec<(usize, Option<String>)>>,
}

impl<'a> Universe<'a> {
    fn new(packages: &'a [Package]) -> Self {
        let mut newest: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, package) in packages.iter().enumerate() {
            let best = newest.entry(&package.name).or_insert(index);
            if version::compare(&package.version, &packages[*best].version).is_gt() {
                *best = index;
            }
        }
        let mut providers: BTreeMap<String, Vec<(usize, Option<String>)>> = BTreeMap::new();
        for index in newest.values() {
            for group in relations(&packages[*index].provides, arch()) {
                for relation in group {
                    let version = relation.version.map(|(_, version)| version);
                    providers
                        .entry(relation.name)
                        .or_default()
                        .push((*index, version));
                }
            }
        }
        Self {
            packages,
            newest,
            providers,
        }
    }

    fn real(&self, relation: &Relation) -> Option<usize> {
        let index = *self.newest.get(relation.name.as_str())?;
        relation
            .admits(&self.packages[index].version)
            .then_some(index)
    }

    /// Packages that provide it, in the order of their names.
    fn virtually(&self, relation: &Relation) -> impl Iterator<Item = usize> {
        let all = self
            .providers
            .get(&relation.name)
            .map_or(&[][..], Vec::as_slice);
        all.iter()
            .filter(|(_, version)| match version {
                Some(version) => relation.admits(version),
                None => relation.version.is_none(),
            })
            .map(|(index, _)| *index)
    }
}

/// The packages, ordered so that what is needed comes before what needs it where that is possible.
pub(crate) fn resolve(
    image: &ImageName,
    suite: &str,
    packages: &[Package],
    requested: &[String],
) -> Result<Vec<Package>, BakeError> {
    let universe = Universe::new(packages);
    let mut chosen: BTreeMap<usize, ()> = BTreeMap::new();
    let mut queue: VecDeque<usize> = VecDeque::new();
    let add = |index: usize, chosen: &mut BTreeMap<usize, ()>, queue: &mut VecDeque<usize>| {
        if chosen.insert(index, ()).is_none() {
            queue.push_back(index);
        }
    };
    for name in requested {
        let wanted = Relation {
            name: name.clone(),
            version: None,
        };
        let found = universe
            .real(&wanted)
            .or_else(|| universe.virtually(&wanted).next());
        let Some(index) = found else {
            return Err(BakeError::NoPackage {
                image: image.to_string(),
                suite: suite.to_owned(),
                package: name.clone(),
                nearest: nearest(name, universe.newest.keys().copied()),
            });
        };
        add(index, &mut chosen, &mut queue);
    }
    for index in universe
        .newest
        .values()
        .filter(|index| packages[**index].essential)
    {
        add(*index, &mut chosen, &mut queue);
    }
    while let Some(index) = queue.pop_front() {
        for group in relations(&packages[index].depends, arch()) {
            let there = group.iter().any(|relation| {
                universe
                    .real(relation)
                    .is_some_and(|found| chosen.contains_key(&found))
                    || universe
                        .virtually(relation)
                        .any(|found| chosen.contains_key(&found))
            });
            if there {
                continue;
            }
            let found = group
                .iter()
                .find_map(|relation| universe.real(relation))
                .or_else(|| {
                    group
                        .iter()
                        .find_map(|relation| universe.virtually(relation).next())
                });
            let Some(found) = found else {
                let text = group
                    .iter()
                    .map(Relation::to_string)
                    .collect::<Vec<_>>()
                    .join(" | ");
                return Err(BakeError::Unsatisfied {
                    image: image.to_string(),
                    package: packages[index].name.clone(),
                    dependency: text,
                });
            };
            add(found, &mut chosen, &mut queue);
        }
    }
    check_conflicts(image, &universe, &chosen)?;
    Ok(ordered(&universe, &chosen))
}

fn check_conflicts(
    image: &ImageName,
    universe: &Universe<'_>,
    chosen: &BTreeMap<usize, ()>,
) -> Result<(), BakeError> {
    for index in chosen.keys() {
        let package = &universe.packages[*index];
        for (field, text) in [
            ("Conflicts", &package.conflicts),
            ("Breaks", &package.breaks),
        ] {
            for relation in relations(text, arch()).into_iter().flatten() {
                let real = universe.real(&relation).into_iter();
                let other = real
                    .chain(universe.virtually(&relation))
                    .find(|other| other != index && chosen.contains_key(other));
                if let Some(other) = other {
                    return Err(BakeError::Conflict {
                        image: image.to_string(),
                        package: package.name.clone(),
                        other: universe.packages[other].name.clone(),
                        field,
                        relation: relation.to_string(),
                    });
                }
            }
        }
    }
    Ok(())
}

/// Depth first by dependency, starting from names in their order: the same set always gives the same order.
fn ordered(universe: &Universe<'_>, chosen: &BTreeMap<usize, ()>) -> Vec<Package> {
    let mut by_name: Vec<_> = chosen.keys().copied().collect();
    by_name.sort_by_key(|index| &universe.packages[*index].name);
    let mut order = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for start in by_name {
        let mut stack = vec![(start, false)];
        while let Some((index, expanded)) = stack.pop() {
            if expanded {
                order.push(universe.packages[index].clone());
                continue;
            }
            if !seen.insert(index) {
                continue;
            }
            stack.push((index, true));
            for group in relations(&universe.packages[index].depends, arch())
                .into_iter()
                .rev()
            {
                let needed = group.iter().find_map(|relation| {
                    universe
                        .real(relation)
                        .into_iter()
                        .chain(universe.virtually(relation))
                        .find(|found| chosen.contains_key(found))
                });
                if let Some(needed) = needed.filter(|needed| !seen.contains(needed)) {
                    stack.push((needed, false));
                }
            }
        }
    }
    order
}

/// ` (did you mean …?)`, or nothing.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|other| (distance(name, other), other))
        .filter(|(distance, _)| *distance <= 1 + name.len() / 4)
        .min()
        .map_or(String::new(), |(_, other)| {
            format!(" (did you mean `{other}`?)")
        })
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > 4 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::Digest;

    fn package(name: &str, version: &str, depends: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            arch: "all".into(),
            essential: name == "base",
            depends: depends.into(),
            provides: String::new(),
            conflicts: String::new(),
            breaks: String::new(),
            path: String::new(),
            size: 0,
            sha256: Digest::of(name.as_bytes()),
        }
    }

    fn names(packages: &[Package], requested: &[&str]) -> Result<Vec<String>, BakeError> {
        let requested: Vec<_> = requested.iter().map(|name| (*name).to_owned()).collect();
        let all = resolve(&"x".parse().unwrap(), "s", packages, &requested)?;
        Ok(all
            .into_iter()
            .map(|package| format!("{}={}", package.name, package.version))
            .collect())
    }

    #[test]
    fn choices_are_apts() {
        let mut mail = package("mail-b", "1", "");
        mail.provides = "mta".into();
        let all = [
            package("base", "1", ""),
            package("app", "1", "lib (>= 2), other | tool, mta | nothing"),
            package("lib", "1", ""),
            package("lib", "2", "base"),
            package("tool", "1", ""),
            package("other", "1", ""),
            mail,
        ];
        assert_eq!(
            names(&all, &["app"]).unwrap(),
            ["base=1", "lib=2", "other=1", "mail-b=1", "app=1"]
        );
        assert_eq!(
            names(&all, &["app", "tool"]).unwrap().len(),
            6 - 1,
            "an alternative that is there is enough"
        );
        let missing = names(&all, &["tol"]).unwrap_err().to_string();
        assert!(missing.contains("did you mean `tool`"), "{missing}");
        let mut enemy = package("enemy", "1", "");
        enemy.conflicts = "tool".into();
        let with = [&all[..], &[enemy]].concat();
        assert!(matches!(
            names(&with, &["enemy", "tool"]),
            Err(BakeError::Conflict { .. })
        ));
        let unmet = [&all[..], &[package("needy", "1", "lib (>= 3)")]].concat();
        assert!(matches!(
            names(&unmet, &["needy"]),
            Err(BakeError::Unsatisfied { .. })
        ));
    }
}
