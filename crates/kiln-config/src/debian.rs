//! `debian { … }`.

use std::ops::Range;

use kiln_model::{DebianOrigin, DebianSpec};

use crate::checks::inside;
use crate::reader::Reader;
use crate::section::{Labelled, Section, Shape};
use crate::value::At;
use crate::{Problem, suggest};

const SHAPE: Shape = Shape {
    attributes: &[
        "suite",
        "packages",
        "components",
        "mirror",
        "security_mirror",
        "snapshot",
        "arch",
        "recommends",
        "updates",
        "security",
        "slim",
        "essential",
        "keyring",
    ],
    blocks: &[],
    later: &[],
};

/// Debian's own archive of every day.
const SNAPSHOTS: &str = "https://snapshot.debian.org/archive";

/// The release architectures of Debian since bookworm.
const ARCHITECTURES: [&str; 10] = [
    "amd64", "arm64", "armel", "armhf", "i386", "mips64el", "mipsel", "ppc64el", "riscv64", "s390x",
];

pub(crate) fn read(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Option<DebianSpec> {
    let section = Section::read(
        reader,
        &SHAPE,
        &labelled.block.body,
        "`debian`".to_owned(),
        labelled.header.clone(),
    );
    section.require(reader, "suite", "suite = \"bookworm\"");
    let suite = section.string_where(
        reader,
        "suite",
        |suite| {
            let mut bytes = suite.bytes();
            let fits = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            fits && !suite.is_empty()
        },
        "the code name of a Debian release",
        |suite| {
            let suite = suite.to_ascii_lowercase();
            let known = ["bookworm", "trixie", "bullseye", "sid"];
            let near = suggest::nearest(&suite, known).unwrap_or("bookworm");
            format!("write \"{near}\"")
        },
    );
    let packages = section
        .strings(reader, "packages")
        .map(|list| list.value)
        .unwrap_or_default();
    let mut names = Vec::new();
    for package in packages {
        // Debian policy 5.6.1.
        let good = package.value.len() >= 2
            && package
                .value
                .starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && package
                .value
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+.-".contains(&b));
        if !good {
            let help = match package.value.split_once(['=', ' ', '/']) {
                Some((name, _)) => format!("write \"{name}\": kiln.lock holds the versions"),
                None => "write the name of a Debian package, such as \"python3\"".to_owned(),
            };
            reader.bad_value(
                "a package name",
                format!("`{}`", package.value),
                package.span,
                "lower-case letters, digits, `+`, `.` and `-`",
                help,
            );
        } else if names.contains(&package.value) {
            let what = format!("the package `{}`", package.value);
            reader.report(
                Problem::Duplicate { what },
                package.span,
                "once",
                "remove one of the two",
            );
        } else {
            names.push(package.value);
        }
    }
    let usual = DebianSpec::of("");
    let components = components(reader, &section, usual.components);
    let arch = section.string_where(
        reader,
        "arch",
        |arch| ARCHITECTURES.contains(&arch),
        "Debian's name of a processor",
        |arch| {
            let near = match arch {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => suggest::nearest(other, ARCHITECTURES).unwrap_or("amd64"),
            };
            format!("write \"{near}\"")
        },
    );
    let keyring = section
        .string(reader, "keyring")
        .filter(|keyring| inside(reader, &section.what("keyring"), keyring));
    let mut switch = |name, unsaid| section.boolean(reader, name).unwrap_or(unsaid);
    let recommends = switch("recommends", usual.recommends);
    let updates = switch("updates", usual.updates);
    let security = switch("security", usual.security);
    let slim = switch("slim", usual.slim);
    let essential = switch("essential", usual.essential);
    let (origin, fixes_unknown) = origin(reader, &section, security);
    if !essential && names.is_empty() {
        reader.bad_value(
            "the packages of an image without the essential ones",
            "none",
            labelled.header.clone(),
            "at least one package",
            "name some in `packages`, or start from nothing with `from = \"scratch\"`",
        );
    }
    let debian = DebianSpec {
        suite: suite?.value,
        packages: names,
        components,
        arch: arch.map(|at| at.value),
        recommends,
        updates,
        security,
        slim,
        essential,
        origin,
        keyring: keyring.map(|at| at.value),
    };
    if let Some(place) = fixes_unknown
        && debian.security
        && !debian.is_rolling()
    {
        reader.report(
            Problem::Missing {
                place: section.place.clone(),
                name: "security_mirror".to_owned(),
            },
            place,
            "expected where security fixes are: that is known of addresses alone that have `/debian` at their end",
            "write security_mirror = \"https://HOST/debian-security\", or security = false",
        );
    }
    Some(debian)
}

fn components(reader: &mut Reader<'_>, section: &Section<'_>, usual: Vec<String>) -> Vec<String> {
    let Some(list) = section.strings(reader, "components") else {
        return usual;
    };
    let mut names: Vec<String> = Vec::new();
    if list.value.is_empty() {
        reader.bad_value(
            &section.what("components"),
            "an empty list",
            list.span.clone(),
            "at least one component of the archive",
            "write [\"main\"]",
        );
    }
    for component in list.value {
        let good = component
            .value
            .starts_with(|c: char| c.is_ascii_lowercase())
            && component
                .value
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-/".contains(&b));
        if !good {
            reader.bad_value(
                "a component",
                format!("`{}`", component.value),
                component.span,
                "the name of a component of the archive",
                "write \"main\", \"contrib\", \"non-free\" or \"non-free-firmware\"",
            );
        } else if names.contains(&component.value) {
            reader.report(
                Problem::Duplicate {
                    what: format!("the component `{}`", component.value),
                },
                component.span,
                "once",
                "remove one of the two",
            );
        } else {
            names.push(component.value);
        }
    }
    names
}

/// Where the archive is. Also the place of an address that does not say where security fixes are.
fn origin(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    security: bool,
) -> (DebianOrigin, Option<Range<usize>>) {
    let expected = "an http or https address without a password";
    let mirror = section.string_where(
        reader,
        "mirror",
        is_address,
        expected,
        |_| "write it as \"https://HOST/debian\"",
    );
    let fixes = section.string_where(
        reader,
        "security_mirror",
        is_address,
        expected,
        |_| "write it as \"https://HOST/debian-security\"",
    );
    let snapshot = section.string(reader, "snapshot");
    if let Some(fixes) = &fixes {
        let contradiction = if !security {
            Some(("`security = false`", "remove one of the two"))
        } else if mirror.is_none() && snapshot.is_none() {
            Some((
                "no `mirror`",
                "name both archives, or none: this machine's apt sources name theirs",
            ))
        } else {
            None
        };
        if let Some((what, help)) = contradiction {
            let what = format!("{} has `security_mirror` and {what}", section.place);
            let problem = Problem::Contradiction { what };
            reader.report(problem, fixes.span.clone(), "one of the two", help);
        }
    }
    let fixes = fixes.map(|fixes| fixes.value);
    match (mirror, snapshot) {
        (Some(_), Some(snapshot)) => {
            reader.report(
                Problem::Contradiction {
                    what: format!("{} has both `mirror` and `snapshot`", section.place),
                },
                snapshot.span,
                "one archive",
                "write the whole address as `snapshot`, without `mirror`",
            );
            (DebianOrigin::Machine, None)
        }
        (Some(mirror), None) => {
            let is_known =
                fixes.is_some() || mirror.value.trim_end_matches('/').ends_with("/debian");
            let origin = DebianOrigin::Mirror {
                url: mirror.value,
                security: fixes,
            };
            (origin, (!is_known).then_some(mirror.span))
        }
        (None, Some(snapshot)) => self::snapshot(reader, section, &snapshot, fixes),
        (None, None) => (DebianOrigin::Machine, None),
    }
}

/// A day, a time, or the whole address of an archive as it was.
fn snapshot(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    at: &At<String>,
    fixes: Option<String>,
) -> (DebianOrigin, Option<Range<usize>>) {
    if is_address(&at.value) {
        let url = at.value.trim_end_matches('/').to_owned();
        // The archive of security fixes is beside the other, below the same time.
        let beside = match url.rfind("/debian/") {
            Some(place) => {
                let (before, rest) = url.split_at(place);
                Some(format!(
                    "{before}/debian-security{}",
                    &rest["/debian".len()..]
                ))
            }
            None => url
                .strip_suffix("/debian")
                .map(|before| format!("{before}/debian-security")),
        };
        let security = fixes.or(beside);
        let unknown = security.is_none().then(|| at.span.clone());
        let security = security.unwrap_or_else(|| url.clone());
        return (DebianOrigin::Snapshot { url, security }, unknown);
    }
    let Some(time) = time(&at.value) else {
        reader.bad_value(
            &section.what("snapshot"),
            format!("`{}`", at.value),
            at.span.clone(),
            "a day, a time in UTC, or the http or https address of a snapshot",
            "write \"2026-09-01\", \"20260901T143000Z\" or \"https://HOST/archive/debian/20260901T143000Z\"",
        );
        return (DebianOrigin::Machine, None);
    };
    let security = fixes.unwrap_or_else(|| format!("{SNAPSHOTS}/debian-security/{time}"));
    let url = format!("{SNAPSHOTS}/debian/{time}");
    (DebianOrigin::Snapshot { url, security }, None)
}

fn is_address(text: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        text.strip_prefix(scheme)
            .is_some_and(|rest| !rest.is_empty() && !rest.contains([' ', '@', '?', '#']))
    })
}

/// `2026-09-01`, `2026-09-01T14:30:00Z` or `20260901T143000Z` in the last of these forms.
fn time(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| !"-:".contains(*c)).collect();
    let (day, clock) = match digits.split_once('T') {
        Some((day, clock)) => (day, clock.strip_suffix('Z')?),
        None => (digits.as_str(), "000000"),
    };
    let number = |text: &str, range: std::ops::Range<usize>, most: u32| {
        let part = text.get(range)?;
        let all_digits = part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse::<u32>()
            .ok()
            .filter(|number| all_digits && *number <= most)
    };
    let fits = day.len() == 8 && clock.len() == 6;
    let (month, date) = (number(day, 4..6, 12)?, number(day, 6..8, 31)?);
    number(day, 0..4, 9999)?;
    number(clock, 0..2, 23)?;
    number(clock, 2..4, 59)?;
    number(clock, 4..6, 59)?;
    let dashes = text.matches('-').count();
    (fits && month > 0 && date > 0 && [0, 2].contains(&dashes)).then(|| format!("{day}T{clock}Z"))
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_of_snapshots_have_three_forms() {
        for (written, meant) in [
            ("2026-09-01", Some("20260901T000000Z")),
            ("20260901", Some("20260901T000000Z")),
            ("2026-09-01T14:30:00Z", Some("20260901T143000Z")),
            ("20260901T143000Z", Some("20260901T143000Z")),
            ("2026-13-01", None),
            ("2026-09-00", None),
            ("2026-09", None),
            ("20260901T243000Z", None),
            ("20260901T143000", None),
            ("yesterday", None),
            ("+0260901", None),
        ] {
            assert_eq!(time(written).as_deref(), meant, "{written}");
        }
    }
}
