//! What the archive has: `InRelease` verified, the indices that it names compared with their digests, the packages in them.

use std::collections::HashMap;

use kiln_http::seconds_of;
use kiln_model::Digest;
use kiln_oci::Store;

use crate::debian::control::{self, Paragraph};
use crate::debian::fetch::{self, Client};
use crate::debian::signature::{self, Keys};
use crate::debian::sources::Source;
use crate::error::BakeError;

/// A package of an index, with what choosing needs of it.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) arch: String,
    pub(crate) essential: bool,
    pub(crate) priority: Priority,
    /// `Pre-Depends` and `Depends`.
    pub(crate) depends: String,
    pub(crate) recommends: String,
    pub(crate) provides: String,
    pub(crate) conflicts: String,
    pub(crate) breaks: String,
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) sha256: Digest,
    /// It comes from the suite of security fixes.
    pub(crate) security: bool,
    /// Where the index first names the package, in its own paragraph or in another's: by this apt decides between equals.
    pub(crate) named: usize,
}

/// How much a system is expected to have a package (Debian policy, section 2.5); the most expected first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    Required,
    Important,
    Standard,
    Optional,
    Extra,
}

impl Priority {
    pub(crate) fn of(text: &str) -> Self {
        match text {
            "required" => Self::Required,
            "important" => Self::Important,
            "standard" => Self::Standard,
            "extra" => Self::Extra,
            _ => Self::Optional,
        }
    }
}

pub(crate) struct Index {
    pub(crate) packages: Vec<Package>,
    /// Seconds since 1970: the newest date of the releases.
    pub(crate) date: i64,
    /// Suites that may be absent, and are.
    pub(crate) absent: Vec<String>,
    /// How many names there are in it.
    named: usize,
}

/// Reads every source, all at once. `now`: seconds since 1970. An index that the store has is not fetched again.
pub(crate) fn read(
    store: &Store,
    client: &Client,
    sources: &[Source],
    keys: &Keys,
    (arch, now): (&str, u64),
) -> Result<Index, BakeError> {
    let read = std::thread::scope(|scope| {
        let reading: Vec<_> = sources
            .iter()
            .map(|source| scope.spawn(move || read_one(store, client, source, keys, (arch, now))))
            .collect();
        reading
            .into_iter()
            .map(|one| {
                one.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect::<Vec<_>>()
    });
    let mut all = Index {
        packages: Vec::new(),
        date: 0,
        absent: Vec::new(),
        named: 0,
    };
    let mut named = 0;
    // In the sources' order, whichever was read first.
    for (source, index) in sources.iter().zip(read) {
        match index? {
            Some(mut index) => {
                for package in &mut index.packages {
                    package.named += named;
                }
                named += index.named;
                all.packages.extend(index.packages);
                all.date = all.date.max(index.date);
            }
            None => all.absent.push(source.suite.clone()),
        }
    }
    Ok(all)
}

fn read_one(
    store: &Store,
    client: &Client,
    source: &Source,
    keys: &Keys,
    (arch, now): (&str, u64),
) -> Result<Option<Index>, BakeError> {
    let base = format!("{}/dists/{}", source.uri, source.suite);
    let url = format!("{base}/InRelease");
    let text = match client.get_if_there(&url)? {
        Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        // Only what is not there: a suite of security fixes that can't be reached is no reason to do without.
        None if source.optional => return Ok(None),
        None => return Err(fetch::absent(&url)),
    };
    let signed = signature::verified(&text, now, keys).map_err(|reason| BakeError::Signature {
        url: url.clone(),
        reason,
    })?;
    let untrusted = |reason: String| BakeError::Release {
        url: url.clone(),
        reason,
    };
    let release = control::paragraphs(&signed)
        .into_iter()
        .next()
        .unwrap_or_default();
    let named = [release.get("Codename"), release.get("Suite")];
    if !named.contains(&Some(source.suite.as_str())) {
        return Err(untrusted(format!(
            "it is of the suite {named:?}, and `{}` was asked for",
            source.suite
        )));
    }
    let date = release
        .get("Date")
        .and_then(seconds_of)
        .ok_or_else(|| untrusted("it has no date".to_owned()))?;
    if !source.frozen
        && let Some(until) = release.get("Valid-Until").and_then(seconds_of)
        && until < i64::try_from(now).unwrap_or(i64::MAX)
    {
        let text = release.get("Valid-Until").unwrap_or_default();
        return Err(untrusted(format!(
            "it was valid until {text}: the mirror is no longer updated, or this machine's clock is wrong"
        )));
    }
    if !source.frozen {
        never_older(store, source, &release, date)?.map_err(untrusted)?;
    }
    let mut index = Index {
        packages: Vec::new(),
        date,
        absent: Vec::new(),
        named: 0,
    };
    for component in &source.components {
        let name = format!("{component}/binary-{arch}/Packages.xz");
        let (expected, size) = listed(&release, &name).ok_or_else(|| {
            untrusted(format!(
                "it does not name {name}: has it that component and architecture?"
            ))
        })?;
        let by_hash = release
            .get("Acquire-By-Hash")
            .is_some_and(|v| v.eq_ignore_ascii_case("yes"));
        let url = if by_hash {
            format!(
                "{base}/{component}/binary-{arch}/by-hash/SHA256/{}",
                expected.hex()
            )
        } else {
            format!("{base}/{name}")
        };
        // What is damaged in the store is fetched anew.
        let kept = store.read_blob(&expected, size).ok();
        let packed = match kept {
            Some(packed) => packed,
            None => {
                let packed = client.get(&url)?;
                let found = Digest::of(&packed);
                if found != expected || packed.len() as u64 != size {
                    return Err(BakeError::Mismatch {
                        url,
                        expected,
                        found,
                    });
                }
                store.put_bytes(&packed)?;
                packed
            }
        };
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut liblzma::read::XzDecoder::new(&packed[..]), &mut text)
            .map_err(|error| BakeError::Fetch {
                url,
                reason: error.to_string(),
            })?;
        let security = source.suite.ends_with("-security");
        let text = String::from_utf8_lossy(&text);
        index.named = packages(&text, security, index.named, &mut index.packages);
    }
    Ok(Some(index))
}

/// An old index is signed as well, and names packages whose faults have been mended since: none is taken that is older than the
/// newest that this store has seen of the suite.
fn never_older(
    store: &Store,
    source: &Source,
    release: &Paragraph,
    date: i64,
) -> Result<Result<(), String>, BakeError> {
    let Source { uri, suite, .. } = source;
    let key = Digest::of(format!("newest release\0{uri}\0{suite}").as_bytes());
    let text = release.get("Date").unwrap_or_default();
    let before = store
        .cache_get(&key)
        .and_then(|record| String::from_utf8(record).ok());
    match before.as_deref().and_then(seconds_of) {
        Some(newest) if newest > date => {
            let before = before.unwrap_or_default();
            return Ok(Err(format!(
                "it is of {text}, and one of {before} was seen before: the mirror is behind, or someone serves an old state of it; try again later, or name another with `debian {{ mirror = \"http://…\" }}`"
            )));
        }
        Some(newest) if newest == date => {}
        _ => store.cache_put(&key, text.as_bytes())?,
    }
    Ok(Ok(()))
}

fn listed(release: &Paragraph, name: &str) -> Option<(Digest, u64)> {
    release.get("SHA256")?.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (digest, size, path) = (words.next()?, words.next()?, words.next()?);
        (path == name).then(|| Some((Digest::from_hex(digest).ok()?, size.parse().ok()?)))?
    })
}

/// The fields that choosing needs, read in one pass: an index has some tens of thousands of paragraphs. `before`: how many names there
/// are in the components before; gives how many there are with these.
fn packages(text: &str, security: bool, before: usize, all: &mut Vec<Package>) -> usize {
    let mut named: HashMap<&str, usize> = HashMap::new();
    let first = all.len();
    for paragraph in text.split("\n\n") {
        let mut fields: [&str; 17] = [""; 17];
        const NAMES: [&str; 17] = [
            "Package",
            "Version",
            "Architecture",
            "Essential",
            "Priority",
            "Depends",
            "Pre-Depends",
            "Recommends",
            "Provides",
            "Conflicts",
            "Breaks",
            "Filename",
            "Size",
            "SHA256",
            "Suggests",
            "Replaces",
            "Enhances",
        ];
        for line in paragraph.lines() {
            if let Some((name, value)) = line.split_once(':')
                && let Some(index) = NAMES.iter().position(|known| *known == name)
            {
                fields[index] = value.trim();
            }
        }
        let [
            name,
            version,
            arch,
            essential,
            priority,
            depends,
            pre,
            recommends,
            provides,
            conflicts,
            breaks,
            path,
            size,
            sha256,
            suggests,
            replaces,
            enhances,
        ] = fields;
        // In the order in which apt reads them. Names with an architecture are others to it.
        for field in [
            name, pre, depends, conflicts, breaks, recommends, suggests, replaces, enhances,
            provides,
        ] {
            for relation in field.split([',', '|']) {
                let name = relation.split_whitespace().next().unwrap_or_default();
                if !name.is_empty() && !name.contains(':') {
                    let next = before + named.len();
                    named.entry(name).or_insert(next);
                }
            }
        }
        let (Ok(size), Ok(sha256)) = (size.parse(), Digest::from_hex(sha256)) else {
            continue;
        };
        let both = [pre, depends]
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join(", ");
        all.push(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            arch: arch.to_owned(),
            essential: essential == "yes",
            priority: Priority::of(priority),
            depends: both,
            recommends: recommends.to_owned(),
            provides: provides.to_owned(),
            conflicts: conflicts.to_owned(),
            breaks: breaks.to_owned(),
            path: path.to_owned(),
            size,
            sha256,
            security,
            named: 0,
        });
    }
    for package in &mut all[first..] {
        package.named = named
            .get(package.name.as_str())
            .copied()
            .unwrap_or_default();
    }
    before + named.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_with_both_kinds_of_dependency() {
        let digest = Digest::of(b"x").hex();
        let text = format!(
            "Package: a\nVersion: 1\nArchitecture: amd64\nEssential: yes\nPre-Depends: b\nDepends: c\nFilename: pool/a.deb\nSize: 3\nSHA256: {digest}\n\nPackage: broken\n"
        );
        let mut all = Vec::new();
        // `b` and `c` are named besides.
        assert_eq!(packages(&text, false, 5, &mut all), 9);
        assert_eq!((all.len(), all[0].named), (1, 5));
        assert!(all[0].essential && all[0].depends == "b, c");
    }
}
