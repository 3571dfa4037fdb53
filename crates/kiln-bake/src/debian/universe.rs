//! The packages of an archive as choosing sees them: the newest version of each name, who provides what, who excludes whom.

use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::debian::archive::Package;
use crate::debian::control::{Relation, relations};

pub(crate) struct Universe<'a> {
    arch: &'a str,
    pub(crate) packages: &'a [Package],
    /// The newest version of each name.
    pub(crate) newest: BTreeMap<&'a str, usize>,
    providers: BTreeMap<String, Vec<(usize, Option<String>)>>,
    /// Where the indexes first name each.
    named: BTreeMap<&'a str, usize>,
    /// An index has some tens of thousands of packages, and few of them are looked at.
    read: Vec<OnceCell<Relations>>,
}

/// What a package says of others.
pub(crate) struct Relations {
    pub(crate) depends: Vec<Vec<Relation>>,
    pub(crate) recommends: Vec<Vec<Relation>>,
    /// With the field's name.
    excludes: Vec<(&'static str, Relation)>,
    provides: Vec<(String, Option<String>)>,
}

/// Why two packages are not installed together.
#[derive(Clone, Debug)]
pub(crate) struct Exclusion {
    pub(crate) package: usize,
    pub(crate) other: usize,
    pub(crate) field: &'static str,
    pub(crate) relation: Relation,
}

impl<'a> Universe<'a> {
    pub(crate) fn new(packages: &'a [Package], arch: &'a str) -> Self {
        let mut newest: BTreeMap<&str, usize> = BTreeMap::new();
        let mut named: BTreeMap<&str, usize> = BTreeMap::new();
        for package in packages {
            let first = named.entry(&package.name).or_insert(package.named);
            *first = package.named.min(*first);
        }
        for (index, package) in packages.iter().enumerate() {
            let best = newest.entry(&package.name).or_insert(index);
            if crate::debian::version::compare(&package.version, &packages[*best].version).is_gt() {
                *best = index;
            }
        }
        let mut providers: BTreeMap<String, Vec<(usize, Option<String>)>> = BTreeMap::new();
        for index in newest.values() {
            for (name, version) in provides(&packages[*index], arch) {
                providers.entry(name).or_default().push((*index, version));
            }
        }
        Self {
            arch,
            packages,
            newest,
            providers,
            named,
            read: packages.iter().map(|_| OnceCell::new()).collect(),
        }
    }

    pub(crate) fn relations(&self, index: usize) -> &Relations {
        self.read[index].get_or_init(|| {
            let package = &self.packages[index];
            let fields = [
                ("Conflicts", &package.conflicts),
                ("Breaks", &package.breaks),
            ];
            Relations {
                depends: relations(&package.depends, self.arch),
                recommends: relations(&package.recommends, self.arch),
                excludes: fields
                    .into_iter()
                    .flat_map(|(field, text)| {
                        let all = relations(text, self.arch).into_iter().flatten();
                        all.map(move |relation| (field, relation))
                    })
                    .collect(),
                provides: provides(package, self.arch),
            }
        })
    }

    pub(crate) fn real(&self, relation: &Relation) -> Option<usize> {
        let index = *self.newest.get(relation.name.as_str())?;
        relation
            .admits(&self.packages[index].version)
            .then_some(index)
    }

    /// All that satisfy it, the one that apt would take first: the package of that name, then providers, the essential ones first,
    /// then by priority. Between equals Debian's own default (`default-mta`) is taken, else the name that the index has last.
    pub(crate) fn candidates(&self, relation: &Relation) -> Vec<usize> {
        self.providing(relation, |package| {
            Reverse(self.named.get(package.name.as_str()).copied())
        })
    }

    /// The same for what apt would not choose for anybody: a name that was asked for and that several packages provide. Between equals the
    /// name that sorts first is taken.
    pub(crate) fn asked_for(&self, relation: &Relation) -> Vec<usize> {
        self.providing(relation, |_| ())
    }

    fn providing<T: Ord>(
        &self,
        relation: &Relation,
        between_equals: impl Fn(&Package) -> T,
    ) -> Vec<usize> {
        let mut all: Vec<usize> = self
            .providers
            .get(&relation.name)
            .into_iter()
            .flatten()
            .filter(|(_, version)| provided(relation, version.as_deref()))
            .map(|(index, _)| *index)
            .collect();
        all.sort_by_key(|index| {
            let package = &self.packages[*index];
            let provides = &self.relations(*index).provides;
            let is_default = provides
                .iter()
                .any(|(name, _)| name.starts_with("default-"));
            (
                !package.essential,
                package.priority,
                !is_default,
                between_equals(package),
                package.name.as_str(),
            )
        });
        let mut all: Vec<usize> = self.real(relation).into_iter().chain(all).collect();
        let mut seen = BTreeSet::new();
        all.retain(|index| seen.insert(*index));
        all
    }

    /// All that satisfies one of the alternatives, in the order in which apt tries them.
    pub(crate) fn group(&self, group: &[Relation]) -> Vec<usize> {
        let mut all: Vec<usize> = Vec::new();
        for relation in group {
            for index in self.candidates(relation) {
                if !all.contains(&index) {
                    all.push(index);
                }
            }
        }
        all
    }

    /// The first of `chosen` that `index` is never installed beside.
    pub(crate) fn exclusion(&self, index: usize, chosen: &Chosen) -> Option<Exclusion> {
        for (field, relation) in &self.relations(index).excludes {
            let named = chosen.names.get(&relation.name).into_iter().flatten();
            let other = named
                .filter(|(other, _)| *other != index)
                .find(|(other, version)| self.is_meant(relation, *other, version.as_deref()));
            if let Some((other, _)) = other {
                return Some(Exclusion {
                    package: index,
                    other: *other,
                    field,
                    relation: relation.clone(),
                });
            }
        }
        let package = &self.packages[index];
        let own = std::iter::once((package.name.clone(), None));
        for (name, version) in own.chain(self.relations(index).provides.clone()) {
            let enemies = chosen.enemies.get(&name).into_iter().flatten();
            for (by, field, relation) in enemies {
                if *by != index && self.is_meant(relation, index, version.as_deref()) {
                    return Some(Exclusion {
                        package: *by,
                        other: index,
                        field,
                        relation: relation.clone(),
                    });
                }
            }
        }
        None
    }

    /// Whether `relation` names the package by its own name or, with `version`, by one that it provides.
    fn is_meant(&self, relation: &Relation, index: usize, version: Option<&str>) -> bool {
        let package = &self.packages[index];
        if package.name == relation.name {
            relation.admits(&package.version)
        } else {
            provided(relation, version)
        }
    }
}

/// A name that is provided without a version satisfies no relation with one (Debian policy, section 7.5).
fn provided(relation: &Relation, version: Option<&str>) -> bool {
    match version {
        Some(version) => relation.admits(version),
        None => relation.version.is_none(),
    }
}

fn provides(package: &Package, arch: &str) -> Vec<(String, Option<String>)> {
    relations(&package.provides, arch)
        .into_iter()
        .flatten()
        .map(|relation| (relation.name, relation.version.map(|(_, version)| version)))
        .collect()
}

/// Packages that go together.
#[derive(Clone, Default)]
pub(crate) struct Chosen {
    pub(crate) all: BTreeSet<usize>,
    /// By each name that they have or provide, with the provided version.
    names: BTreeMap<String, Vec<(usize, Option<String>)>>,
    /// By the name that they exclude.
    enemies: BTreeMap<String, Vec<(usize, &'static str, Relation)>>,
}

impl Chosen {
    pub(crate) fn add(&mut self, universe: &Universe<'_>, index: usize) -> Result<bool, Exclusion> {
        if self.all.contains(&index) {
            return Ok(false);
        }
        if let Some(exclusion) = universe.exclusion(index, self) {
            return Err(exclusion);
        }
        self.all.insert(index);
        let Relations {
            provides, excludes, ..
        } = universe.relations(index);
        let own = (universe.packages[index].name.clone(), None);
        for (name, version) in std::iter::once(own).chain(provides.iter().cloned()) {
            self.names.entry(name).or_default().push((index, version));
        }
        for (field, relation) in excludes {
            let all = self.enemies.entry(relation.name.clone()).or_default();
            all.push((index, field, relation.clone()));
        }
        Ok(true)
    }

    /// Takes back what was added.
    pub(crate) fn remove(&mut self, universe: &Universe<'_>, index: usize) {
        if !self.all.remove(&index) {
            return;
        }
        let Relations {
            provides, excludes, ..
        } = universe.relations(index);
        let own = std::iter::once(&universe.packages[index].name);
        for name in own.chain(provides.iter().map(|(name, _)| name)) {
            if let Some(all) = self.names.get_mut(name) {
                all.retain(|(other, _)| *other != index);
            }
        }
        for (_, relation) in excludes {
            if let Some(all) = self.enemies.get_mut(&relation.name) {
                all.retain(|(other, ..)| *other != index);
            }
        }
    }
}
