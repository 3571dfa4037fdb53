//! Which packages an image gets: those asked for, the essential ones, and what they need, chosen as apt does ([`mark`]).
//!
//! For the base alone, and where apt's order leads to packages that exclude each other, what only one package gives is taken first, then an
//! alternative that is already there, then the first that goes with what is there; where that leads nowhere, the next one is tried.

use std::collections::{BTreeSet, VecDeque};

use kiln_model::ImageName;

use crate::debian::archive::Package;
use crate::debian::control::Relation;
use crate::debian::mark_install::mark;
use crate::debian::universe::{Chosen, Exclusion, Universe};
use crate::error::BakeError;

/// Choices that are tried before the first contradiction is told. Debian's own packages need few.
const TRIES: usize = 2000;

/// Every suite since bookworm has `/bin` and the like below `/usr`, and kiln lays its images out so from the start: nothing has to
/// be converted, which the package `usrmerge` is for.
const MERGED: &str = "usr-is-merged";

/// What is asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) image: &'a ImageName,
    pub(crate) suite: &'a str,
    pub(crate) arch: &'a str,
    pub(crate) packages: &'a [String],
    pub(crate) recommends: bool,
}

/// The packages of an image, each group ordered so that what is needed comes before what needs it where that is possible.
pub(crate) struct Resolved {
    /// The essential ones and what they need.
    pub(crate) base: Vec<Package>,
    pub(crate) rest: Vec<Package>,
}

#[derive(Clone, Default)]
struct State {
    chosen: Chosen,
    /// Whose dependencies are still to be looked at.
    queue: VecDeque<usize>,
    /// Dependencies with alternatives, in the order in which they were met.
    choices: VecDeque<Vec<usize>>,
    /// Of the queue, in its order: whose recommendations are still to be looked at.
    added: Vec<usize>,
}

enum Contradiction {
    Excluded(Exclusion),
    Unsatisfied {
        package: usize,
        dependency: Vec<Relation>,
    },
}

struct Resolver<'a> {
    universe: Universe<'a>,
    tries: usize,
}

/// Why there is no such set of packages.
pub(crate) struct Unresolved {
    pub(crate) error: Box<BakeError>,
    /// The names of packages that other versions of may help.
    pub(crate) involved: Vec<String>,
}

pub(crate) fn resolve(wanted: &Wanted<'_>, packages: &[Package]) -> Result<Resolved, Unresolved> {
    let universe = Universe::new(packages, wanted.arch);
    let mut requested = Vec::new();
    let mut virtuals = Vec::new();
    for name in wanted.packages {
        let relation = Relation {
            name: name.clone(),
            version: None,
        };
        match universe.real(&relation) {
            Some(index) => requested.push(index),
            None => match universe.asked_for(&relation) {
                none if none.is_empty() => {
                    return Err(Unresolved {
                        error: Box::new(BakeError::NoPackage {
                            image: wanted.image.to_string(),
                            suite: wanted.suite.to_owned(),
                            package: name.clone(),
                            nearest: nearest(name, universe.newest.keys().copied()),
                        }),
                        involved: Vec::new(),
                    });
                }
                candidates => virtuals.push(candidates),
            },
        }
    }
    let by_converting = wanted.packages.iter().any(|name| name == "usrmerge");
    let merged = universe
        .newest
        .get(MERGED)
        .copied()
        .filter(|_| !by_converting);
    let essential: Vec<usize> = universe
        .newest
        .values()
        .copied()
        .filter(|index| packages[*index].essential)
        .chain(merged)
        .collect();
    let mut resolver = Resolver {
        universe,
        tries: TRIES,
    };
    resolver
        .all(&essential, &requested, &virtuals, wanted.recommends)
        .map(|(base, all)| {
            let mut rest = resolver.ordered(&all);
            rest.retain(|index| !base.contains(index));
            let packages = |indices: Vec<usize>| {
                let package = |index: usize| packages[index].clone();
                indices.into_iter().map(package).collect()
            };
            Resolved {
                // By itself: the order too is the same whatever is asked for.
                base: packages(resolver.ordered(&base)),
                rest: packages(rest),
            }
        })
        .map_err(|contradiction| {
            let image = wanted.image.to_string();
            match contradiction {
                Contradiction::Excluded(Exclusion {
                    package,
                    other,
                    field,
                    relation,
                }) => {
                    let [package, other] = [package, other].map(|i| packages[i].name.clone());
                    Unresolved {
                        involved: vec![package.clone(), other.clone()],
                        error: Box::new(BakeError::Conflict {
                            image,
                            package,
                            other,
                            field,
                            relation: relation.to_string(),
                        }),
                    }
                }
                Contradiction::Unsatisfied {
                    package,
                    dependency,
                } => {
                    let package = packages[package].name.clone();
                    let names = dependency.iter().map(|relation| relation.name.clone());
                    let texts: Vec<_> = dependency.iter().map(Relation::to_string).collect();
                    Unresolved {
                        involved: names.chain([package.clone()]).collect(),
                        error: Box::new(BakeError::Unsatisfied {
                            image,
                            package,
                            dependency: texts.join(" | "),
                        }),
                    }
                }
            }
        })
}

impl Resolver<'_> {
    /// The base, and all.
    fn all(
        &mut self,
        essential: &[usize],
        requested: &[usize],
        virtuals: &[Vec<usize>],
        recommends: bool,
    ) -> Result<(BTreeSet<usize>, BTreeSet<usize>), Contradiction> {
        // The base alone, as it is for other images too, where it goes with what is asked for.
        let base = self.solve(self.state(essential, &[])?);
        let more = |resolver: &mut Self, base: State| {
            let mut state = base;
            resolver.add(&mut state, requested)?;
            for candidates in virtuals {
                state.choices.push_back(candidates.clone());
            }
            resolver.solve(state)
        };
        let (base, mut state) = match base {
            Ok(base) => {
                let alone = base.chosen.all.clone();
                let chosen = &base.chosen;
                let marked = mark(&self.universe, chosen, requested, virtuals, recommends);
                if let Some(marked) = marked {
                    return Ok((alone, marked.all));
                }
                match more(self, base) {
                    Ok(state) => (Some(alone), state),
                    Err(_) => (None, more(self, self.state(essential, requested)?)?),
                }
            }
            Err(_) => (None, more(self, self.state(essential, requested)?)?),
        };
        let base = base.unwrap_or_else(|| self.closure(essential, &state.chosen.all));
        if recommends {
            // What came with the base alone was not asked for.
            let mut next = 0;
            while let Some(index) = state.added.get(next).copied() {
                next += 1;
                if base.contains(&index) && !requested.contains(&index) {
                    continue;
                }
                for group in self.universe.relations(index).recommends.clone() {
                    let candidates = self.universe.group(&group);
                    let known = candidates.iter().any(|c| state.chosen.all.contains(c));
                    if known || candidates.is_empty() {
                        continue;
                    }
                    let mut with = state.clone();
                    with.choices.push_back(candidates);
                    // One that can't be had is not asked for.
                    if let Ok(with) = self.solve(with) {
                        state = with;
                    }
                }
            }
        }
        Ok((base, state.chosen.all))
    }

    fn state(&self, first: &[usize], second: &[usize]) -> Result<State, Contradiction> {
        let mut state = State::default();
        self.add(&mut state, second)?;
        self.add(&mut state, first)?;
        Ok(state)
    }

    fn add(&self, state: &mut State, packages: &[usize]) -> Result<(), Contradiction> {
        for index in packages {
            let is_new = state
                .chosen
                .add(&self.universe, *index)
                .map_err(Contradiction::Excluded)?;
            if is_new {
                state.queue.push_back(*index);
                state.added.push(*index);
            }
        }
        Ok(())
    }

    /// Takes what has only one solution, until nothing has.
    fn propagate(&self, state: &mut State) -> Result<(), Contradiction> {
        while let Some(index) = state.queue.pop_front() {
            for group in &self.universe.relations(index).depends {
                let candidates = self.universe.group(group);
                if candidates.iter().any(|c| state.chosen.all.contains(c)) {
                    continue;
                }
                match candidates[..] {
                    [] => {
                        return Err(Contradiction::Unsatisfied {
                            package: index,
                            dependency: group.clone(),
                        });
                    }
                    [only] => self.add(state, &[only])?,
                    _ => state.choices.push_back(candidates),
                }
            }
        }
        Ok(())
    }

    fn solve(&mut self, mut state: State) -> Result<State, Contradiction> {
        self.propagate(&mut state)?;
        while let Some(candidates) = state.choices.pop_front() {
            if candidates.iter().any(|c| state.chosen.all.contains(c)) {
                continue;
            }
            let mut first = None;
            for candidate in candidates {
                self.tries = self.tries.saturating_sub(1);
                let mut with = state.clone();
                let solved = match self.add(&mut with, &[candidate]) {
                    Ok(()) => self.solve(with),
                    Err(contradiction) => Err(contradiction),
                };
                match solved {
                    Ok(solved) => return Ok(solved),
                    Err(contradiction) => {
                        first.get_or_insert(contradiction);
                    }
                }
                if self.tries == 0 {
                    break;
                }
            }
            if let Some(first) = first {
                return Err(first);
            }
        }
        Ok(state)
    }

    /// What of `all` the packages `roots` need.
    fn closure(&self, roots: &[usize], all: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut found: BTreeSet<usize> = roots.iter().copied().collect();
        let mut queue: Vec<usize> = roots.to_vec();
        while let Some(index) = queue.pop() {
            for needed in self.needs(index, all) {
                if found.insert(needed) {
                    queue.push(needed);
                }
            }
        }
        found
    }

    /// For each dependency of a package, the one of `all` that satisfies it.
    fn needs(&self, index: usize, all: &BTreeSet<usize>) -> Vec<usize> {
        let groups = self.universe.relations(index).depends.iter();
        groups
            .filter_map(|group| {
                self.universe
                    .group(group)
                    .into_iter()
                    .find(|c| all.contains(c))
            })
            .collect()
    }

    /// Depth first by dependency, starting from names in their order: the same set always gives the same order.
    fn ordered(&self, all: &BTreeSet<usize>) -> Vec<usize> {
        let mut by_name: Vec<_> = all.iter().copied().collect();
        by_name.sort_by_key(|index| &self.universe.packages[*index].name);
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for start in by_name {
            let mut stack = vec![(start, false)];
            while let Some((index, expanded)) = stack.pop() {
                if expanded {
                    order.push(index);
                    continue;
                }
                if !seen.insert(index) {
                    continue;
                }
                stack.push((index, true));
                for needed in self.needs(index, all).into_iter().rev() {
                    if !seen.contains(&needed) {
                        stack.push((needed, false));
                    }
                }
            }
        }
        order
    }
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
    use crate::debian::archive::Priority;
    use kiln_model::Digest;

    fn package(name: &str, depends: &str) -> Package {
        let (name, version) = name.split_once('=').unwrap_or((name, "1"));
        Package {
            name: name.into(),
            version: version.into(),
            arch: "all".into(),
            essential: name == "base",
            priority: Priority::Optional,
            depends: depends.into(),
            recommends: String::new(),
            provides: String::new(),
            conflicts: String::new(),
            breaks: String::new(),
            path: String::new(),
            size: 0,
            sha256: Digest::of(name.as_bytes()),
            security: false,
            named: 0,
        }
    }

    fn providing(name: &str, provides: &str) -> Package {
        Package {
            provides: provides.into(),
            ..package(name, "")
        }
    }

    fn excluding(name: &str, depends: &str, conflicts: &str) -> Package {
        Package {
            conflicts: conflicts.into(),
            ..package(name, depends)
        }
    }

    fn resolved(packages: &[Package], requested: &str) -> Result<Resolved, BakeError> {
        let requested: Vec<_> = requested.split_whitespace().map(str::to_owned).collect();
        let wanted = Wanted {
            image: &"x".parse().unwrap(),
            suite: "s",
            arch: "amd64",
            packages: &requested,
            recommends: requested.iter().any(|name| name == "recommending"),
        };
        resolve(&wanted, packages).map_err(|unresolved| *unresolved.error)
    }

    /// The base, `/` and the rest.
    fn names(packages: &[Package], requested: &str) -> String {
        let Resolved { base, rest } = resolved(packages, requested).unwrap();
        let names = |all: Vec<Package>| {
            let one = |package: Package| match package.version.as_str() {
                "1" => package.name,
                version => format!("{}={version}", package.name),
            };
            all.into_iter().map(one).collect::<Vec<_>>().join(" ")
        };
        format!("{} / {}", names(base), names(rest))
    }

    #[test]
    fn choices_are_apts() {
        let all = [
            package("base", ""),
            package("app", "lib (>= 2), other | tool, mta | nothing"),
            package("lib", ""),
            package("lib=2", "base"),
            package("tool", ""),
            package("other", ""),
            providing("mail-b", "mta"),
        ];
        assert_eq!(names(&all, "app"), "base / lib=2 other mail-b app");
        assert_eq!(
            names(&all, "app tool"),
            "base / lib=2 tool mail-b app",
            "an alternative that is there is enough"
        );
        let missing = resolved(&all, "tol").err().unwrap().to_string();
        assert!(missing.contains("did you mean `tool`"), "{missing}");
        let unmet = [&all[..], &[package("needy", "lib (>= 3)")]].concat();
        let unmet = resolved(&unmet, "needy").err();
        assert!(matches!(unmet, Some(BakeError::Unsatisfied { .. })));
    }

    #[test]
    fn each_dependency_is_followed_to_its_end_before_the_next() {
        let mut all = [
            package("base", ""),
            package("app", "early, late"),
            package("early", "first | second"),
            package("late", "second"),
            package("first", ""),
            package("second", ""),
            package("recommending", "late"),
        ];
        assert_eq!(names(&all, "app"), "base / first early second late app");
        assert_eq!(
            names(&all, "app second"),
            "base / second early late app",
            "what was asked for is there from the start"
        );
        all[6].recommends = "early".into();
        assert_eq!(
            names(&all, "recommending"),
            "base / second early late recommending"
        );
    }

    #[test]
    fn of_providers_the_expected_one_is_taken_then_debians_default_then_the_first() {
        let mut all = vec![
            package("base", "awk"),
            providing("a-awk", "awk"),
            providing("m-awk", "awk"),
            providing("a-mta", "mta"),
            providing("b-mta", "mta, default-mta"),
            providing("x-db", "db"),
            providing("w-db", "db"),
            providing("versioned", "lib (= 3)"),
            package("needs-2", "lib (>= 2)"),
            package("needs-4", "lib (>= 4)"),
            package("needs-mta", "mta"),
        ];
        all[2].priority = Priority::Required;
        assert_eq!(names(&all, "mta db"), "m-awk base / b-mta w-db");
        assert_eq!(names(&all, "a-awk"), "m-awk base / a-awk");
        assert_eq!(
            names(&all, "a-mta needs-mta"),
            "m-awk base / a-mta needs-mta"
        );
        all.push(package("needs-db", "db"));
        all[5].named = 7;
        assert_eq!(
            names(&all, "needs-db"),
            "m-awk base / x-db needs-db",
            "what nobody asked for is chosen as apt does"
        );
        assert_eq!(names(&all, "db"), "m-awk base / w-db");
        assert_eq!(names(&all, "needs-2"), "m-awk base / versioned needs-2");
        assert!(resolved(&all, "needs-4").is_err());
    }

    #[test]
    fn what_is_excluded_is_not_chosen_and_choices_are_taken_back() {
        let all = [
            package("base", ""),
            excluding("mta-a", "", "mta"),
            excluding("mta-b", "", "mta"),
            package("one", "first | second"),
            package("first", "deep"),
            excluding("deep", "", "guard (<< 2)"),
            package("second", ""),
            package("guard", ""),
            excluding("self", "", "virtual"),
        ]
        .map(|mut package| {
            if package.name.starts_with("mta-") {
                package.provides = "mta".into();
            }
            if package.name == "self" {
                package.provides = "virtual".into();
            }
            package
        });
        assert_eq!(names(&all, "one"), "base / deep first one");
        assert_eq!(names(&all, "one guard"), "base / guard second one");
        assert_eq!(names(&all, "mta-b self"), "base / mta-b self");
        let both = resolved(&all, "mta-a mta-b").err().unwrap().to_string();
        assert!(both.contains("mta-a") && both.contains("mta-b"), "{both}");
        let deep = resolved(&all, "first guard").err();
        assert!(matches!(deep, Some(BakeError::Conflict { .. })));
    }

    #[test]
    fn the_base_is_the_same_whatever_is_asked_for_unless_it_can_not_be() {
        let all = [
            package("base", "shell | other-shell"),
            package("shell", ""),
            package("other-shell", ""),
            excluding("enemy", "", "shell"),
            package("usr-is-merged", ""),
            package("usrmerge", ""),
        ];
        let usual = "shell base usr-is-merged";
        assert_eq!(names(&all, ""), format!("{usual} / "));
        assert_eq!(names(&all, "other-shell"), format!("{usual} / other-shell"));
        assert_eq!(
            names(&all, "enemy"),
            "other-shell base usr-is-merged / enemy"
        );
        assert_eq!(names(&all, "usrmerge"), "shell base / usrmerge");
    }

    #[test]
    fn recommendations_come_when_they_are_asked_for_and_can() {
        let mut all = [
            package("base", ""),
            package("recommending", ""),
            package("plain", ""),
            package("more", "even-more"),
            package("even-more", ""),
            excluding("enemy", "", "recommending"),
        ];
        all[1].recommends = "more, enemy, nothing".into();
        all[2].recommends = "more".into();
        assert_eq!(names(&all, "plain"), "base / plain");
        assert_eq!(
            names(&all, "recommending"),
            "base / even-more more recommending"
        );
    }
}
