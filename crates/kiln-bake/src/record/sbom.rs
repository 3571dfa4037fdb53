//! What is in an image, as an SPDX 2.3 document: the packages of its dpkg database, with their licences and sources.
//!
//! Made of the image alone, so that one image has one such document, whoever bakes it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use kiln_model::{CanonicalError, Digest, canonical_json};
use serde_json::{Value, json};

use crate::debian::licence;
use crate::debian::status::{Package, installed};
use crate::in_root;

pub const MEDIA_SPDX: &str = "application/spdx+json";

/// Who wrote it, before the version.
const TOOL: &str = "Tool: kiln-";
/// The longest of Debian's copyright files has some megabytes.
const COPYRIGHT_MAX: u64 = 32 << 20;

/// The document of the image `digest`, whose files are at `root`. `created` is the image's own date.
pub(crate) fn document(
    root: &Path,
    digest: &Digest,
    created: Option<&str>,
) -> Result<io::Result<Vec<u8>>, CanonicalError> {
    let installed = match installed(root) {
        Ok(installed) => installed,
        Err(error) => return Ok(Err(error)),
    };
    let distribution = match distribution(root) {
        Ok(distribution) => distribution,
        Err(error) => return Ok(Err(error)),
    };
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-Image",
        "name": digest.to_string(),
        "primaryPackagePurpose": "CONTAINER",
        "checksums": [{"algorithm": "SHA256", "checksumValue": digest.hex()}],
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
    })];
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")];
    let mut texts = BTreeMap::new();
    let mut sources = BTreeSet::new();
    for package in &installed {
        let Package {
            name,
            version,
            arch,
            source,
            maintainer,
        } = package;
        let copyright = Path::new("usr/share/doc").join(name).join("copyright");
        let declared = match in_root::text(root, &copyright, COPYRIGHT_MAX) {
            Ok(text) => text.and_then(|text| licence::read(name, &text)),
            Err(error) => return Ok(Err(error)),
        };
        let expression = declared.map(|declared| {
            texts.extend(declared.texts);
            declared.expression
        });
        let id = id("Package", &[name, version, arch]);
        packages.push(described(
            &id,
            (name, version),
            maintainer.as_deref(),
            expression.as_deref(),
            &purl(name, version, arch, distribution.as_deref()),
            "LIBRARY",
        ));
        relations.push(relation("SPDXRef-Image", "CONTAINS", &id));
        let (source, source_version) = source;
        let source_id = self::id("Source", &[source, source_version]);
        relations.push(relation(&id, "GENERATED_FROM", &source_id));
        sources.insert((source_id, source, source_version, maintainer.as_deref()));
    }
    let mut known = BTreeSet::new();
    for (id, name, version, maintainer) in sources {
        if known.insert(id.clone()) {
            let purl = purl(name, version, "source", distribution.as_deref());
            let who = (name.as_str(), version.as_str());
            packages.push(described(&id, who, maintainer, None, &purl, "SOURCE"));
        }
    }
    let extracted: Vec<Value> = texts
        .iter()
        .map(|(id, text)| json!({"licenseId": id, "extractedText": text}))
        .collect();
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": digest.to_string(),
        "documentNamespace": format!("{}/spdx/{}", env!("CARGO_PKG_REPOSITORY"), digest.hex()),
        "creationInfo": {
            "created": seconds(created.unwrap_or("1970-01-01T00:00:00Z")),
            "creators": [format!("{TOOL}{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relations,
        "hasExtractedLicensingInfos": extracted,
    });
    canonical_json(&document).map(Ok)
}

/// Whether kiln wrote the document: what others attach to an image may be of the same type.
pub fn is_own_sbom(document: &Value) -> bool {
    let creators = document["creationInfo"]["creators"].as_array();
    let mut names = creators.into_iter().flatten().filter_map(Value::as_str);
    names.any(|name| name.starts_with(TOOL))
}

/// SPDX takes no fractions of a second.
fn seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    }
}

fn described(
    id: &str,
    (name, version): (&str, &str),
    maintainer: Option<&str>,
    licence: Option<&str>,
    purl: &str,
    purpose: &str,
) -> Value {
    json!({
        "SPDXID": id,
        "name": name,
        "versionInfo": version,
        "supplier": supplier(maintainer),
        "primaryPackagePurpose": purpose,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": licence.unwrap_or("NOASSERTION"),
        "copyrightText": "NOASSERTION",
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }],
    })
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

/// `Name <address>` as SPDX writes it.
fn supplier(maintainer: Option<&str>) -> String {
    match maintainer.and_then(|text| text.trim_end_matches('>').split_once(" <")) {
        Some((name, address)) => format!("Organization: {} ({address})", name.trim_matches('"')),
        None => "NOASSERTION".to_owned(),
    }
}

/// Letters, digits, `.` and `-` (SPDX 2.3, "Package SPDX identifier"); anything else by its number, so that no two are one.
fn id(kind: &str, parts: &[&str]) -> String {
    let mut id = format!("SPDXRef-{kind}");
    for part in parts {
        id.push('-');
        for c in part.chars() {
            if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
                id.push(c);
            } else {
                id.push_str(&format!(".{:x}.", u32::from(c)));
            }
        }
    }
    id
}

/// A package's address (package-url specification, type `deb`).
pub(crate) fn purl(name: &str, version: &str, arch: &str, distribution: Option<&str>) -> String {
    let encoded = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' => {
                    char::from(byte).to_string()
                }
                byte => format!("%{byte:02X}"),
            })
            .collect()
    };
    let mut purl = format!(
        "pkg:deb/debian/{}@{}?arch={}",
        encoded(name),
        encoded(version),
        encoded(arch)
    );
    if let Some(distribution) = distribution {
        purl.push_str(&format!("&distro={}", encoded(distribution)));
    }
    purl
}

/// `debian-12`, as the image itself says.
fn distribution(root: &Path) -> io::Result<Option<String>> {
    let text = in_root::text(root, Path::new("etc/os-release"), 1 << 20)?.unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    Ok(match (field("ID"), field("VERSION_ID")) {
        (Some(id), Some(version)) => Some(format!("{id}-{version}")),
        (id, _) => id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_spelled_as_their_specifications_say() {
        assert_eq!(
            purl("libstdc++6", "12.2.0-14", "amd64", Some("debian-12")),
            "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14?arch=amd64&distro=debian-12"
        );
        let ids = [id("Package", &["a+b", "1"]), id("Package", &["a-b", "1"])];
        assert_ne!(ids[0], ids[1]);
        assert!(ids.iter().all(|id| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
            id.chars().all(allowed)
        }));
        assert_eq!(
            supplier(Some("Foo People <foo@example.org>")),
            "Organization: Foo People (foo@example.org)"
        );
    }
}
