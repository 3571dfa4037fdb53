//! Packages that are hard to install, from the machine's own archive: afterwards the image's own dpkg and apt have nothing to say.

use kiln_model::{CommandCheck, ImageSpec, TextCheck};

use crate::around::attached;
use crate::image_tests::test;
use crate::world::{World, debian, image, told};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "packages_with_scripts_diversions_and_triggers_are_as_if_apt_had_installed_them",
        hard,
    ),
    ("packages_that_exclude_each_other_are_told", excluded),
    (
        "a_slim_image_has_no_manuals_and_dpkg_knows_what_is_not_there",
        slim,
    ),
    (
        "an_image_without_the_essential_packages_has_what_its_own_need_and_their_scripts_made",
        minimal,
    ),
];

fn with(packages: &[&str]) -> ImageSpec {
    let mut wanted = image();
    debian(&mut wanted).packages = packages.iter().map(|name| (*name).to_owned()).collect();
    wanted
}

/// What a shell line inside has to say for itself is the bake's error.
fn silent(command: &str) -> String {
    format!("said=$({command} 2>&1) || true; test -z \"$said\" || {{ echo \"$said\"; exit 1; }}")
}

fn hard() {
    let world = World::empty();
    let mut wanted = with(&[
        // Its own check, and Conflicts with `awk`'s other providers beside it.
        "apt",
        "gawk",
        // A script that needs the base configured, and file triggers of another package.
        "locales",
        "man-db",
        // A virtual package, and a default among its providers.
        "mail-transport-agent",
        // It diverts a file of the base (`bash`'s, below /usr/share/man), and Pre-Depends on what its preinst uses.
        "bash-completion",
        "molly-guard",
        // Registers users and sets modes by dpkg-statoverride.
        "cron",
        "ssl-cert",
        // Multi-Arch: same, with libraries that ldconfig has to hear of.
        "libssl3",
        "systemd-sysv",
    ]);
    wanted.run = [
        silent("dpkg --audit"),
        silent("dpkg --verify"),
        silent("apt-get check | grep -v -e '^Reading' -e '^Building'"),
        // What molly-guard and systemd-sysv both want to be /sbin/shutdown.
        "test \"$(readlink -f /sbin/shutdown)\" = /usr/lib/molly-guard/molly-guard".into(),
        "test -e /usr/lib/molly-guard/shutdown && dpkg-divert --list molly-guard | grep -q shutdown"
            .into(),
        "test \"$(dpkg -S /sbin/shutdown | cut -d: -f1 | sort -u | head -n 1)\" != ''".into(),
        "test \"$(readlink /etc/alternatives/awk)\" = /usr/bin/gawk".into(),
        // The trigger of ldconfig ran after the libraries came.
        "ldconfig -p | grep -q libssl.so.3 && whatis ls | grep -q directory".into(),
        "dpkg-query -W -f '${Package} ${db:Status-Status}\\n' exim4-daemon-light | grep -q installed"
            .into(),
        // The base is converted already, and nothing is installed for it.
        "test -L /bin && ! dpkg -s usrmerge 2>/dev/null".into(),
        "stat -c '%G' /usr/bin/crontab | grep -q crontab".into(),
    ]
    .to_vec();
    let baked = world
        .bake_from(&wanted)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    assert!(
        baked
            .steps
            .iter()
            .any(|step| step.name.starts_with("packages apt"))
    );
}

fn excluded() {
    let world = World::empty();
    let error = world
        .bake_from(&with(&["postfix", "exim4-daemon-light"]))
        .err();
    let text = told(&error.expect("each of them is the only one of its kind"));
    for part in [
        "postfix",
        "exim4-daemon-light",
        "Conflicts",
        "Take one of them out",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

fn slim() {
    let world = World::fresh();
    let mut wanted = image();
    debian(&mut wanted).slim = true;
    wanted.run = [
        silent("dpkg --audit"),
        silent("dpkg --verify"),
        silent("find /usr/share/man /usr/share/locale -type f ! -name locale.alias"),
    ]
    .to_vec();
    if let Err(error) = world.bake(&wanted) {
        panic!("{}", told(&error));
    }
}

fn minimal() {
    let world = World::empty();
    let mut wanted = with(&["ca-certificates", "tzdata"]);
    debian(&mut wanted).essential = false;
    wanted.cmd = vec!["/usr/bin/openssl".into()];
    let mut holds = test("holds");
    holds.commands = vec![CommandCheck {
        argv: ["/usr/bin/openssl", "version"].map(str::to_owned).to_vec(),
        user: None,
        exit: 0,
        stdout: TextCheck {
            contains: vec!["OpenSSL 3".into()],
            ..TextCheck::default()
        },
        stderr: TextCheck::default(),
    }];
    holds.present = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/os-release",
        "/etc/passwd",
        "/usr/share/zoneinfo/Europe/Paris",
        "/tmp",
    ]
    .map(str::to_owned)
    .to_vec();
    holds.absent = [
        "/bin/sh",
        "/usr/bin/dpkg",
        "/usr/bin/apt",
        "/usr/bin/perl",
        "/usr/bin/env",
        "/var/cache/debconf",
        "/var/lib/dpkg/triggers",
    ]
    .map(str::to_owned)
    .to_vec();
    holds.packages = ["ca-certificates", "libc6", "libssl3", "openssl", "tzdata"]
        .map(str::to_owned)
        .to_vec();
    holds.packages_absent = ["bash", "debconf", "dpkg", "perl-base"]
        .map(str::to_owned)
        .to_vec();
    wanted.tests = vec![holds];
    let baked = world
        .bake_from(&wanted)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!(world.store.image(&baked.digest).unwrap().layers.len(), 1);
    let sbom = attached(&world, &baked, kiln_bake::MEDIA_SPDX);
    let sbom = sbom[0].to_string();
    for (part, is_there) in [
        ("pkg:deb/debian/openssl@", true),
        ("distro=debian-12", true),
        ("pkg:deb/debian/bash@", false),
    ] {
        assert_eq!(sbom.contains(part), is_there, "{part}");
    }
    // Another image of the same packages, with the essential ones, differs in those.
    debian(&mut wanted).essential = true;
    wanted.tests.clear();
    let other = world
        .bake_from(&wanted)
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    let cached = other.steps.iter().filter(|step| step.key.is_some());
    assert!(cached.clone().all(|step| step.cached), "{:?}", other.steps);
    let difference = kiln_bake::diff(&world.store, &baked.digest, &other.digest);
    let difference = difference.unwrap_or_else(|error| panic!("{}", told(&error)));
    assert!(
        difference
            .packages
            .iter()
            .any(|change| change.name == "bash")
    );
    assert!(
        difference
            .packages
            .iter()
            .all(|change| change.name != "openssl")
    );
}
