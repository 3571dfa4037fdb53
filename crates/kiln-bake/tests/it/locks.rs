//! What becomes of a lock while the definition and the archive change. Packages here are only chosen, none is installed.

use std::io::Read;

use kiln_bake::{BakeError, Lock, LockRequest, PackageChange, Update, lock};
use kiln_model::{DebianOrigin, ImageSpec, Timestamp};

use crate::archive::{Archive, arch};
use crate::world::{World, debian, image, mirror, told};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_lock_is_extended_without_moving_it_and_updated_when_that_is_asked_for",
        moves,
    ),
    (
        "a_snapshot_is_never_out_of_date_and_another_architecture_is_only_locked",
        elsewhere,
    ),
];

const FIRST: &str = "Fri, 20 Nov 2026 00:00:00 UTC";
const SECOND: &str = "Sat, 21 Nov 2026 00:00:00 UTC";

/// A package in the archive; what the index says of it.
fn package(archive: &Archive, name: &str, version: &str, fields: &str, mended: &str) -> String {
    let said = format!("Package: {name}\nVersion: {version}\nArchitecture: all\n{fields}");
    let tar = |path: String, body: &[u8]| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, body).unwrap();
        tar.into_inner().unwrap()
    };
    let changelog = format!("{name} ({version}) s; urgency=high\n\n  * {mended}\n");
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(changelog.as_bytes(), flate2::Compression::fast())
        .read_to_end(&mut packed)
        .unwrap();
    let mut deb = b"!<arch>\n".to_vec();
    for (member, body) in [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar", tar("control".into(), said.as_bytes())),
        (
            "data.tar",
            tar(format!("usr/share/doc/{name}/changelog.Debian.gz"), &packed),
        ),
    ] {
        let size = body.len();
        deb.extend(format!("{member:<16}0           0     0     100644  {size:<10}`\n").bytes());
        deb.extend(body);
        if size % 2 == 1 {
            deb.push(b'\n');
        }
    }
    let path = format!("pool/{name}_{version}.deb");
    let digest = kiln_model::Digest::of(&deb).hex();
    let text = format!(
        "{said}Filename: {path}\nSize: {}\nSHA256: {digest}\n\n",
        deb.len()
    );
    for root in ["debian", "debian-security"] {
        archive.set(&format!("/{root}/{path}"), deb.clone());
    }
    text
}

struct Locking {
    archive: Archive,
    world: World,
    lock: Lock,
}

impl Locking {
    fn image(&self, packages: &[&str]) -> ImageSpec {
        self.world.write("archive.asc", &self.archive.keyring());
        let mut wanted = image();
        mirror(&mut wanted, self.archive.url());
        debian(&mut wanted).keyring = Some("archive.asc".into());
        debian(&mut wanted).packages = packages.iter().map(|name| (*name).to_owned()).collect();
        wanted
    }

    fn try_lock(
        &self,
        image: &ImageSpec,
        update: &Update,
    ) -> Result<(Lock, Vec<PackageChange>), BakeError> {
        let request = LockRequest {
            image,
            context: &self.world.context,
            lock: Some(&self.lock),
            update,
            now: Timestamp(0),
        };
        let locked = lock(&self.world.store, &request, &mut |_| {})?;
        Ok((locked.lock, locked.changes))
    }

    /// What changed, a word each; the lock goes on from there.
    fn lock(&mut self, packages: &[&str], update: &Update) -> String {
        let image = self.image(packages);
        let (lock, changes) = self
            .try_lock(&image, update)
            .unwrap_or_else(|error| panic!("{}", told(&error)));
        let date = |lock: &Lock| {
            let text = lock.to_string();
            text.lines()
                .find(|line| line.contains("\"date\":"))
                .map(str::to_owned)
        };
        let is_kept = date(&lock) == date(&self.lock);
        self.lock = Lock::parse(&lock.to_string()).unwrap();
        let word = |change: PackageChange| {
            let version = |version: Option<String>| version.unwrap_or_default();
            let mut word = format!(
                "{}:{}>{}",
                change.name,
                version(change.from),
                version(change.to)
            );
            if change.security {
                word.push_str(&format!("!{}", change.cves.join("!")));
            }
            word
        };
        let words: Vec<String> = changes.into_iter().map(word).collect();
        format!(
            "{}{}",
            words.join(" "),
            if is_kept { "" } else { " (date)" }
        )
    }
}

fn moves() {
    let archive = Archive::empty();
    let old = package(&archive, "base", "1", "Essential: yes\n", "")
        + &package(&archive, "app", "1", "Depends: lib\n", "");
    let lib = [
        package(&archive, "lib", "1", "", ""),
        package(&archive, "lib", "2", "", ""),
    ];
    let more = package(&archive, "more", "1", "Depends: lib\n", "")
        + &package(&archive, "needy", "1", "Depends: lib (>= 2)\n", "");
    archive.publish_with_fixes("debian", arch(), FIRST, &(old.clone() + &lib[0]));
    let mut locking = Locking {
        world: World::empty(),
        lock: Lock::default(),
        archive,
    };
    assert_eq!(
        locking.lock(&["app"], &Update::Nothing),
        "app:>1 base:>1 lib:>1 (date)"
    );
    // The archive goes on: a newer library, and a fix of the application.
    let archive = &locking.archive;
    let fixed = package(
        archive,
        "app",
        "1+deb1",
        "Depends: lib\n",
        "CVE-2026-12345, CVE-2026-0001",
    );
    archive.publish_with_fixes("debian", arch(), SECOND, &(old + &lib[1] + &more));
    archive.publish(
        "debian-security",
        "bookworm-security",
        arch(),
        SECOND,
        &fixed,
    );
    // What fits is not asked about: nobody would answer.
    let mut dead = locking.image(&["app"]);
    mirror(&mut dead, "http://127.0.0.1:1/debian");
    let (same, changes) = locking.try_lock(&dead, &Update::Nothing).unwrap();
    assert_eq!((&same, changes.len()), (&locking.lock, 0));
    // The library's version is only in the store by now; the fix is not taken in passing.
    let served = locking.archive.content("/debian/pool/lib_1.deb");
    locking.world.store.put_bytes(&served).unwrap();
    assert_eq!(locking.lock(&["app", "more"], &Update::Nothing), "more:>1");
    let only = |name: &str| Update::Packages([name.to_owned()].into());
    assert_eq!(
        locking.lock(&["app", "more"], &only("app")),
        "app:1>1+deb1!CVE-2026-0001!CVE-2026-12345 (date)"
    );
    // What is asked for can't be had with the version that is locked.
    assert_eq!(
        locking.lock(&["app", "needy"], &Update::Nothing),
        "lib:1>2 more:1> needy:>1"
    );
    assert_eq!(locking.lock(&["app", "needy"], &Update::All), "");
    assert_eq!(locking.lock(&["app"], &Update::All), "needy:1>");
}

/// An image without security fixes is one that somebody asked for.
fn without_fixes(locking: &mut Locking, wanted: &mut ImageSpec, lock: Lock) {
    let fixes = "debian-security/20260901T000000Z/dists/bookworm-security";
    locking.archive.remove(&format!("/{fixes}/InRelease"));
    let refused = |locking: &Locking, wanted: &ImageSpec| {
        let error = locking.try_lock(wanted, &Update::Nothing).err().unwrap();
        let text = told(&error);
        for part in [
            "no security fixes",
            "no bookworm-security at http://127.0.0.1:",
            "/debian-security/20260901T000000Z",
            "security_mirror",
            "security = false",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    };
    refused(locking, wanted);
    // What was locked with them needs nobody's answer; what an older kiln locked without them is no lock.
    locking.lock = lock.clone();
    locking.try_lock(wanted, &Update::Nothing).unwrap();
    let text = lock.to_string();
    let absent = "\"absent\": [\"bookworm-security\",";
    locking.lock = Lock::parse(&text.replace("\"absent\": [", absent)).unwrap();
    refused(locking, wanted);
    locking.lock = Lock::default();
    debian(wanted).security = false;
    locking.try_lock(wanted, &Update::Nothing).unwrap();
    debian(wanted).security = true;
}

fn elsewhere() {
    let archive = Archive::empty();
    let text = package(&archive, "base", "1", "Essential: yes\n", "");
    let date = format!("{FIRST}\nValid-Until: Sat, 21 Nov 2020 00:00:00 UTC");
    let other = ["amd64", "arm64"].into_iter().find(|one| *one != arch());
    let other = other.unwrap();
    archive.publish_with_fixes("debian", arch(), &date, &text);
    let old = "debian/20260901T000000Z";
    archive.publish_with_fixes(old, arch(), &date, &text);
    let mut locking = Locking {
        world: World::empty(),
        lock: Lock::default(),
        archive,
    };
    let mut wanted = locking.image(&[]);
    let error = locking.try_lock(&wanted, &Update::Nothing).err().unwrap();
    assert!(told(&error).contains("valid until"), "{}", told(&error));
    let url = format!("{}/20260901T000000Z", locking.archive.url());
    debian(&mut wanted).origin = DebianOrigin::Snapshot {
        security: url.replace("/debian/", "/debian-security/"),
        url,
    };
    let (lock, _) = locking.try_lock(&wanted, &Update::Nothing).unwrap();
    without_fixes(&mut locking, &mut wanted, lock.clone());
    let text = lock.to_string();
    assert!(
        text.contains("20260901T000000Z") && !text.contains("127.0.0.1"),
        "{text}"
    );

    locking
        .archive
        .publish_with_fixes("debian", other, FIRST, "");
    let said = package(&locking.archive, "base", "1", "Essential: yes\n", "");
    locking
        .archive
        .publish_with_fixes("debian", other, SECOND, &said);
    let mut foreign = locking.image(&[]);
    debian(&mut foreign).arch = Some(other.to_owned());
    let (lock, _) = locking.try_lock(&foreign, &Update::Nothing).unwrap();
    assert!(lock.to_string().contains(other));
    locking.lock = lock;
    let error = locking.world.bake_from(&foreign).err().unwrap();
    let text = told(&error);
    for part in ["is for", other, arch(), "kiln lock"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
