//! Maintainer scripts: the image's own dpkg configures what was unpacked, in a sealed container; then everything that two bakes on two
//! days would have differently is taken away.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::BakeError;
use crate::step::container::{Container, environment, run};

/// What dpkg tells its scripts, and no service started.
const BEGIN: &str = r#"
set -e
umask 022
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true DPKG_ROOT= DPKG_ADMINDIR=/var/lib/dpkg
export DPKG_MAINTSCRIPT_ARCH="$ARCH" DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
if [ ! -e /etc/hosts ]; then
    # Scripts ask for their host's full name.
    printf '127.0.0.1 localhost\n127.0.1.1 kiln.localdomain kiln\n' > /etc/hosts
    own_hosts=1
fi
# There is no init that scripts could tell of new libraries: libc6's would wait a second for it.
printf '#!/bin/sh\nexit 0\n' > /usr/sbin/ischroot
chmod 755 /usr/sbin/ischroot
"#;

/// The first packages: preinst of each in order, with all of them unpacked, then dpkg's own order for the rest.
const BASE: &str = r#"
for package in $PACKAGES; do
    script=/var/lib/dpkg/info/$package.preinst
    if [ -x "$script" ]; then
        DPKG_MAINTSCRIPT_PACKAGE=${package%%:*} DPKG_MAINTSCRIPT_NAME=preinst "$script" install
    fi
done
dpkg --force-unsafe-io --configure -a
"#;

/// A round over a configured base: what the round's preinsts rely on is configured, then they are run. As with dpkg, each finds its
/// package's control files beside it.
const ROUND: &str = r#"
if [ -n "$CONFIGURE" ]; then
    dpkg --force-unsafe-io --no-triggers --configure $CONFIGURE
fi
for folder in /var/lib/dpkg/tmp.kiln/*; do
    [ -d "$folder" ] || continue
    package=${folder##*/}
    mv "$folder" /var/lib/dpkg/tmp.ci
    DPKG_MAINTSCRIPT_PACKAGE=${package#*.} DPKG_MAINTSCRIPT_NAME=preinst /var/lib/dpkg/tmp.ci/preinst install
    rm -rf /var/lib/dpkg/tmp.ci
done
rm -rf /var/lib/dpkg/tmp.kiln
"#;

/// Where a round's control files wait, below the root.
pub(crate) const WAITING: &str = "var/lib/dpkg/tmp.kiln";

const REST: &str = "dpkg --force-unsafe-io --configure -a";

const END: &str = "
rm -f /usr/sbin/policy-rc.d /usr/sbin/ischroot
if [ -n \"$own_hosts\" ]; then
    rm -f /etc/hosts
fi
";

fn scripts(
    container: &Container<'_>,
    script: &str,
    more: [(&str, String); 2],
    date: i64,
    said: &mut dyn FnMut(&str),
) -> Result<(), BakeError> {
    let mut env = environment();
    // As where Debian's packages are mostly installed. Of another locale each program, and scripts start thousands, opens a dozen files.
    env.retain(|(name, _)| name != "LC_ALL");
    env.push(("LC_ALL".to_owned(), "C".to_owned()));
    env.extend(more.map(|(name, value)| (name.to_owned(), value)));
    env.push(("SOURCE_DATE_EPOCH".to_owned(), date.to_string()));
    let script = format!("{BEGIN}{script}{END}");
    run(container, &["/bin/sh", "-c", &script], env, "", "", said).map(drop)
}

/// Configures the packages unpacked at the root, which is all that there is. `packages`: the names of their info files, in order.
pub(crate) fn base(
    container: &Container<'_>,
    packages: &[String],
    arch: &str,
    date: i64,
    said: &mut dyn FnMut(&str),
) -> Result<(), BakeError> {
    // It makes /etc/passwd, which the others' scripts need.
    let first = ["base-passwd", "base-files"];
    let mut order: Vec<&str> = first
        .into_iter()
        .filter(|name| packages.iter().any(|p| p == name))
        .collect();
    order.extend(
        packages
            .iter()
            .map(String::as_str)
            .filter(|name| !first.contains(name)),
    );
    let more = [("PACKAGES", order.join(" ")), ("ARCH", arch.to_owned())];
    scripts(container, BASE, more, date, said)
}

/// Before packages are unpacked over a configured base. `configured`: the names of info files.
pub(crate) fn round(
    container: &Container<'_>,
    configured: &[String],
    arch: &str,
    date: i64,
    said: &mut dyn FnMut(&str),
) -> Result<(), BakeError> {
    let more = [
        ("CONFIGURE", configured.join(" ")),
        ("ARCH", arch.to_owned()),
    ];
    scripts(container, ROUND, more, date, said)
}

/// Configures all that is unpacked.
pub(crate) fn rest(
    container: &Container<'_>,
    arch: &str,
    date: i64,
    said: &mut dyn FnMut(&str),
) -> Result<(), BakeError> {
    let more = [("ARCH", arch.to_owned()), ("HOME", "/root".to_owned())];
    scripts(container, REST, more, date, said)
}

/// Files that say when or where they were made, and that are made anew where they are needed.
const FORGOTTEN: &[&str] = &[
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_*",
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/*-old",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/cache/apt/*.bin",
    "var/cache/fontconfig/*",
    "var/log/*.log",
    "var/log/apt/*",
    "var/log/btmp",
    "var/log/wtmp",
    "var/log/lastlog",
    "var/log/faillog",
    "run/*",
    "run/lock/*",
    "tmp/*",
];

/// `/var/lock`, without which scripts and services of some packages end.
const KEPT: &str = "run/lock";

pub(crate) fn tidy(root: &Path, date: i64) -> io::Result<()> {
    for pattern in FORGOTTEN {
        let path = Path::new(pattern);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            continue;
        };
        let name = name.to_string_lossy();
        let Ok(entries) = fs::read_dir(root.join(folder)) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            if fits(&name, &entry.file_name().to_string_lossy()) {
                let kind = entry.file_type()?;
                if kind.is_dir() && folder.join(entry.file_name()) == Path::new(KEPT) {
                    continue;
                }
                if kind.is_dir() {
                    fs::remove_dir_all(entry.path())?
                } else {
                    fs::remove_file(entry.path())?
                }
            }
        }
    }
    // systemd and dbus make one at first boot where the file is there and empty.
    let machine_id = root.join("etc/machine-id");
    if machine_id.exists() {
        fs::write(machine_id, b"")?;
    }
    // The day of the last change of each password.
    let shadow = root.join("etc/shadow");
    if let Ok(text) = fs::read_to_string(&shadow) {
        let day = (date / 86_400).to_string();
        let lines = text.lines().map(|line| {
            let mut fields: Vec<_> = line.split(':').map(str::to_owned).collect();
            if let Some(changed) = fields.get_mut(2).filter(|changed| !changed.is_empty()) {
                changed.clone_from(&day);
            }
            fields.join(":") + "\n"
        });
        fs::write(shadow, lines.collect::<String>())?;
    }
    Ok(())
}

/// One `*` at most.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_runs_only_the_folder_of_locks_stays() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["run/lock/apache2", "run/nginx"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("run/utmp"), "").unwrap();
        tidy(root.path(), 0).unwrap();
        let names = |folder: &str| -> Vec<_> {
            let entries = fs::read_dir(root.path().join(folder)).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names("run"), ["lock"]);
        assert!(names("run/lock").is_empty());
    }

    #[test]
    fn patterns_have_one_star() {
        assert!(fits("*.log", "dpkg.log") && !fits("*.log", "log") && fits("*", "x"));
        assert!(fits("lock*", "lock-frontend") && !fits("a*a", "a"));
    }
}
