//! `debian { … }` and `from = "scratch"`.

use kiln_config::Source;
use kiln_model::DebianOrigin;

use crate::accepted::{inputs, load};

#[test]
fn a_snapshot_is_a_day_a_time_or_an_address_and_scratch_is_no_debian() {
    let text = r#"
        project = "shop"
        image "day" {
          version = "1"
          debian {
            suite      = "trixie"
            components = ["main", "non-free-firmware"]
            snapshot   = "2026-09-01"
            arch       = "arm64"
            recommends = true
            updates    = false
            security   = false
            slim       = true
          }
        }
        image "address" {
          version = "1"
          debian {
            suite    = "trixie"
            snapshot = "http://snap.test/archive/debian/20260901T143000Z/"
          }
        }
        image "mirror" {
          version = "1"
          debian {
            suite           = "trixie"
            mirror          = "https://artifacts.test/api/remote"
            security_mirror = "https://artifacts.test/fixes"
          }
        }
        image "rolling" {
          version = "1"
          debian {
            suite  = "sid"
            mirror = "https://artifacts.test/api/remote"
          }
        }
        image "nothing" {
          version = "1"
          from    = "scratch"
        }
    "#;
    let source = Source {
        name: "kiln.hcl".into(),
        text: text.into(),
    };
    let images = load(&source, &inputs("dev")).unwrap().spec.images;
    let debian = |name: &str| images[&name.parse().unwrap()].debian.clone();
    let day = debian("day").unwrap();
    assert_eq!(day.components, ["main", "non-free-firmware"]);
    assert_eq!(day.arch.as_deref(), Some("arm64"));
    assert!(day.recommends && day.slim && !day.updates && !day.security);
    let snapshot = |url: &str, security: &str| DebianOrigin::Snapshot {
        url: url.into(),
        security: security.into(),
    };
    let archive = "https://snapshot.debian.org/archive";
    assert_eq!(
        day.origin,
        snapshot(
            &format!("{archive}/debian/20260901T000000Z"),
            &format!("{archive}/debian-security/20260901T000000Z"),
        )
    );
    assert_eq!(
        debian("address").unwrap().origin,
        snapshot(
            "http://snap.test/archive/debian/20260901T143000Z",
            "http://snap.test/archive/debian-security/20260901T143000Z",
        )
    );
    assert_eq!(debian("nothing"), None);
    let mirror = |url: &str, security: Option<&str>| DebianOrigin::Mirror {
        url: url.into(),
        security: security.map(str::to_owned),
    };
    assert_eq!(
        debian("mirror").unwrap().origin,
        mirror(
            "https://artifacts.test/api/remote",
            Some("https://artifacts.test/fixes")
        )
    );
    assert_eq!(
        debian("rolling").unwrap().origin,
        mirror("https://artifacts.test/api/remote", None),
        "it has no security fixes of its own"
    );
}
