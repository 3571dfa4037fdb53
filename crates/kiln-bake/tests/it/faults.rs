//! An archive that is wrong, and a disk that is full: one clear error, nothing of it kept, and the next bake is right.

use kiln_model::ImageSpec;

use crate::archive::{Archive, DATE, key};
use crate::world::{World, debian, image, mirror, told};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "whatever_is_wrong_with_an_archive_is_told_and_the_next_good_bake_works",
        archive,
    ),
    ("a_keyring_that_is_none_is_told", keyring),
    (
        "a_full_disk_is_told_and_with_space_again_the_bake_works",
        full,
    ),
];

fn from(archive: &Archive, world: &World) -> ImageSpec {
    world.write("keys/archive.asc", &archive.keyring());
    let mut wanted = image();
    mirror(&mut wanted, archive.url());
    debian(&mut wanted).keyring = Some("keys/archive.asc".into());
    // The archive has none.
    debian(&mut wanted).security = false;
    wanted
}

/// It fails, says `parts`, and leaves nothing behind.
fn fails(world: &World, wanted: &ImageSpec, parts: &[&str]) {
    let error = world.bake_from(wanted).err();
    let text = told(&error.unwrap_or_else(|| panic!("{parts:?} is refused")));
    assert!(
        parts.iter().all(|part| text.contains(part)),
        "{parts:?} in {text}"
    );
    nothing_left(world);
}

fn nothing_left(world: &World) {
    assert_eq!(world.store.tags().unwrap().len(), 0);
    let entries = |path: &str| {
        std::fs::read_dir(world.root.path().join(path))
            .unwrap()
            .count()
    };
    for folder in ["work", "store/tmp", "store/images", "store/erofs"] {
        assert_eq!(entries(folder), 0, "{folder}");
    }
    let blobs = std::fs::read_dir(world.store.dir().join("blobs/sha256")).unwrap();
    for blob in blobs {
        let digest = format!("sha256:{}", blob.unwrap().file_name().to_string_lossy());
        world.store.verify_blob(&digest.parse().unwrap()).unwrap();
    }
    let root = world.root.path().to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left = mounts
        .lines()
        .find(|line| line.contains(&format!("{root}/work")));
    assert_eq!(left, None);
}

fn archive() {
    let archive = Archive::start();
    let world = World::empty();
    let wanted = from(&archive, &world);
    let release = format!("{}/dists/bookworm/InRelease", archive.url());

    let mut nobody = wanted.clone();
    mirror(&mut nobody, "http://127.0.0.1:1/debian");
    fails(&world, &nobody, &["127.0.0.1:1", "refused"]);
    let mut debians = wanted.clone();
    debian(&mut debians).keyring = None;
    fails(
        &world,
        &debians,
        &[&release, "not signed", "Debian archive key"],
    );
    archive.signed_by(&key());
    fails(
        &world,
        &wanted,
        &[&release, "not signed", "key of the keyring"],
    );
    archive.says("oldstable", "oldstable");
    let before = archive.change("InRelease", |text| {
        let text = String::from_utf8(text).unwrap();
        Some(text.replacen("oldstable", "stable", 1).into_bytes())
    });
    fails(&world, &wanted, &[&release, "not signed"]);
    archive.restore(before);
    let valid = format!("{DATE}\nValid-Until: Sat, 21 Nov 2026 00:00:00 UTC");
    archive.says(DATE, &valid.replace("2026 ", "2020 "));
    fails(&world, &wanted, &[&release, "valid until Sat, 21 Nov 2020"]);

    archive.says(DATE, DATE);
    let flip = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(bytes)
    };
    let before = archive.change("Packages.xz", flip);
    fails(
        &world,
        &wanted,
        &["Packages.xz", "has the digest", "signed index"],
    );
    archive.restore(before);
    // The one before was signed and whole.
    archive.says(DATE, "Thu, 19 Nov 2026 00:00:00 UTC");
    fails(
        &world,
        &wanted,
        &[&release, "Thu, 19 Nov 2026", DATE, "try again later"],
    );
    archive.says(DATE, DATE);

    let package = archive.package.clone();
    let before = archive.change(&package, flip);
    fails(
        &world,
        &wanted,
        &[&package, "has the digest", "signed index"],
    );
    archive.restore(before);
    let before = archive.change(&package, |mut bytes| {
        bytes.truncate(bytes.len() - 100);
        Some(bytes)
    });
    fails(&world, &wanted, &[&package, "has the digest"]);
    archive.restore(before);
    let before = archive.change(&package, |_| None);
    fails(&world, &wanted, &[&package, "404"]);
    archive.restore(before);

    let baked = world
        .bake_from(&wanted)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!(world.store.resolve(&baked.tag).unwrap(), baked.digest);
}

fn keyring() {
    let archive = Archive::start();
    let world = World::empty();
    let mut wanted = from(&archive, &world);
    for (path, why) in [
        ("no", "can't be read"),
        ("link", "can't be read"),
        ("text", "keyring"),
    ] {
        debian(&mut wanted).keyring = Some(path.into());
        world.write("text", "no key");
        let _ = std::os::unix::fs::symlink("keys/archive.asc", world.context.join("link"));
        fails(
            &world,
            &wanted,
            &[&format!("keyring = \"{path}\""), why, "public keys"],
        );
    }
}

/// A file system of a test's own, gone with it.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(path: &std::path::Path, size: &str) -> Self {
        use rustix::mount::{MountFlags, mount};
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount(
            "tmpfs",
            path,
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        Self(path.to_owned())
    }

    fn again(&self, flags: rustix::mount::MountFlags, options: &str) {
        rustix::mount::mount_remount(&self.0, flags, options).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        // The folder's own owner could not remove what was a mount point.
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn full() {
    use rustix::mount::MountFlags;
    let archive = Archive::start();
    let root = tempfile::tempdir().unwrap();
    let disk = Disk::mount(root.path(), "60m");
    let mut world = World::at(root);
    let mut wanted = from(&archive, &world);
    // The kernel mounts no layer from a file of a tmpfs, and only for the command would one be mounted.
    wanted.cmd = Vec::new();
    let path = world.root.path().to_string_lossy().into_owned();
    // Full while packages come and are unpacked, and later.
    fails(&world, &wanted, &[&path, "space"]);
    // What it used is written down in a file that stays open.
    world.store = world.store.in_session();
    disk.again(MountFlags::RDONLY, "size=2g");
    let error = world
        .bake_from(&wanted)
        .err()
        .expect("nothing can be written");
    let text = told(&error);
    let read_only = text.to_lowercase().contains("read-only");
    assert!(text.contains(&path) && read_only, "{text}");
    disk.again(MountFlags::empty(), "size=2g");
    nothing_left(&world);
    let baked = world
        .bake_from(&wanted)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!(world.store.resolve(&baked.tag).unwrap(), baked.digest);
}
