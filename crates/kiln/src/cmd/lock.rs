//! `kiln lock`: the packages of images, and what became of them.

use std::path::PathBuf;

use kiln_bake::{PackageChange, Update};
use kiln_model::ImageName;
use serde::Serialize;

use crate::baking::Baking;
use crate::failure::{Exit, Failure};
use crate::locks::ImageChanges;
use crate::output::{self, Audience};
use crate::{args, definition, settings};

#[derive(Serialize)]
struct Answer {
    lock: PathBuf,
    changed: bool,
    images: Vec<Image>,
}

#[derive(Serialize)]
struct Image {
    name: ImageName,
    packages: Vec<PackageChange>,
}

pub(crate) fn run(args: args::Lock) -> Result<Exit, Failure> {
    let root = settings::root(args.root)?;
    let definition = definition::read(args.definition.into())?;
    let audience = Audience::of(args.json.json);
    let names = definition.images(&args.images)?;
    let update = match args.update {
        None => Update::Nothing,
        Some(packages) if packages.is_empty() => Update::All,
        Some(packages) => Update::Packages(packages.into_iter().collect()),
    };
    let baking = Baking::new(&root, &definition, audience)?;
    let mut relocked = baking.lock(&names, &update)?;
    relocked.lock = relocked.lock.by_this_version();
    let changed = relocked.is_changed();
    if audience == Audience::Person {
        for image in &relocked.images {
            for line in lines(image) {
                output::line(&line)?;
            }
        }
        if !changed {
            output::line("nothing changes")?;
        } else if relocked.images.is_empty() {
            output::line("no package changes, but the version of kiln that writes the images")?;
        }
    }
    if !args.check {
        baking.write_lock(&relocked)?;
    }
    if audience == Audience::Program {
        let one = |ImageChanges { image, changes }| Image {
            name: image,
            packages: changes,
        };
        output::json(&Answer {
            lock: relocked.path,
            changed,
            images: relocked.images.into_iter().map(one).collect(),
        })?;
    }
    Ok(if args.check && changed {
        Exit::Changes
    } else {
        Exit::Done
    })
}

fn lines(ImageChanges { image, changes }: &ImageChanges) -> Vec<String> {
    // The first time everything is new, and the file itself lists it.
    if changes.iter().all(|change| change.from.is_none()) && changes.len() > FEW {
        return vec![format!("{image}: {} packages", changes.len())];
    }
    let mut lines = vec![format!("{image}: {} packages change", changes.len())];
    for change in changes {
        let PackageChange {
            name,
            from,
            to,
            security,
            cves,
        } = change;
        let mut line = match (from, to) {
            (None, to) => format!("  + {name}  {}", to.as_deref().unwrap_or_default()),
            (Some(from), None) => format!("  - {name}  {from}"),
            (Some(from), Some(to)) => format!("  ~ {name}  {from} → {to}"),
        };
        if *security {
            line.push_str("  security");
            if !cves.is_empty() {
                line.push_str(&format!(": {}", cves.join(", ")));
            }
        }
        lines.push(line);
    }
    lines
}

/// New packages that are listed one by one.
const FEW: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &str, from: Option<&str>, to: Option<&str>, cves: &[&str]) -> PackageChange {
        PackageChange {
            name: name.into(),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
            security: !cves.is_empty(),
            cves: cves.iter().map(|cve| (*cve).to_owned()).collect(),
        }
    }

    #[test]
    fn what_changes_is_a_line_each_and_a_new_lock_is_one() {
        let changes = vec![
            change("a", None, Some("1"), &[]),
            change(
                "b",
                Some("1"),
                Some("2"),
                &["CVE-2026-0001", "CVE-2026-0002"],
            ),
            change("c", Some("1"), None, &[]),
        ];
        let image: ImageName = "api".parse().unwrap();
        let changed = ImageChanges {
            image: image.clone(),
            changes,
        };
        assert_eq!(
            lines(&changed),
            [
                "api: 3 packages change",
                "  + a  1",
                "  ~ b  1 → 2  security: CVE-2026-0001, CVE-2026-0002",
                "  - c  1",
            ]
        );
        let new = (0..80).map(|n| change(&n.to_string(), None, Some("1"), &[]));
        let changed = ImageChanges {
            image,
            changes: new.collect(),
        };
        assert_eq!(lines(&changed), ["api: 80 packages"]);
    }
}
