//! dpkg's own database: written as dpkg would have after unpacking, so that the image's dpkg takes over from there, and read where more
//! packages come on top.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};

use crate::debian::control::{self, Paragraph, relations};
use crate::debian::deb::{Control, Unpacked, merged};
use crate::debian::slim;
use crate::debian::upper_dir::UpperDir;
use crate::error::BakeError;
use crate::in_root;

/// A package with what it says, and with what of it is in place.
pub(crate) struct Installed {
    pub(crate) paragraph: Paragraph,
    pub(crate) control: Control,
    pub(crate) unpacked: Unpacked,
}

impl Installed {
    /// Its configuration files, below the root.
    pub(crate) fn conffiles(&self) -> impl Iterator<Item = &Path> {
        let lines = self.control.get("conffiles").into_iter();
        let lines = lines.flat_map(|bytes| bytes.split(|byte| *byte == b'\n'));
        // `remove-on-upgrade PATH` is about what an older version had.
        let paths = lines.filter_map(|line| line.trim_ascii_end().strip_prefix(b"/"));
        paths.map(|path| Path::new(OsStr::from_bytes(path)))
    }
}

const DPKG: &str = "var/lib/dpkg";

/// What was installed before, as far as more packages have to do with it.
#[derive(Default)]
pub(crate) struct Before {
    /// The image's dpkg works: it puts configuration files in place when it configures their packages, and not before, so that
    /// other packages' scripts don't use what is not ready.
    is_configured: bool,
    /// Documents are left out.
    is_slim: bool,
    /// By the name of its info files.
    paragraphs: BTreeMap<String, Paragraph>,
    /// Whose each path is.
    owners: HashMap<PathBuf, String>,
    diversions: Vec<Diversion>,
    /// Paths that packages want to hear of.
    interests: BTreeSet<PathBuf>,
}

struct Diversion {
    from: PathBuf,
    to: PathBuf,
    /// Whose file stays at `from`; `:` is nobody's.
    by: String,
}

impl Before {
    /// Where there is nothing yet.
    pub(crate) fn nothing(slim: bool) -> Self {
        Self {
            is_slim: slim,
            ..Self::default()
        }
    }

    pub(crate) fn read(upper_dir: &UpperDir, slim: bool) -> io::Result<Self> {
        let mut before = Self {
            is_configured: true,
            is_slim: slim,
            ..Self::default()
        };
        for paragraph in control::paragraphs(&upper_dir.read_text("var/lib/dpkg/status")?) {
            let name = info_name(&paragraph);
            let list = Path::new(DPKG).join(format!("info/{name}.list"));
            let list = upper_dir.read(&list)?.unwrap_or_default();
            for path in listed(&list) {
                before.owners.insert(merged(path), name.clone());
            }
            before.paragraphs.insert(name, paragraph);
        }
        let diversions = upper_dir.read_text("var/lib/dpkg/diversions")?;
        let lines: Vec<_> = diversions.lines().collect();
        for diversion in lines.chunks_exact(3) {
            before.diversions.push(Diversion {
                from: merged(Path::new(diversion[0].trim_start_matches('/'))),
                to: PathBuf::from(diversion[1].trim_start_matches('/')),
                by: diversion[2].to_owned(),
            });
        }
        let interests = upper_dir.read_text("var/lib/dpkg/triggers/File")?;
        before.interests = interests
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(|path| PathBuf::from(path.trim_start_matches('/')))
            .collect();
        Ok(before)
    }

    /// The package that has `path`.
    pub(crate) fn owner(&self, path: &Path) -> Option<(&str, &Paragraph)> {
        let name = self.owners.get(&merged(path))?;
        Some((name, self.paragraphs.get(name)?))
    }

    /// Where a path of `package` goes.
    pub(crate) fn place(&self, package: &Paragraph, path: &Path) -> Option<PathBuf> {
        if self.is_slim && slim::leaves_out(path) {
            return None;
        }
        let name = package.get("Package").unwrap_or_default();
        if let Some((owner, paragraph)) = self.owner(path)
            && owner != info_name(package)
            && replaces(paragraph, package)
        {
            return None;
        }
        let real = merged(path);
        let mut diversions = self.diversions.iter();
        match diversions.find(|diversion| diversion.from == real && diversion.by != name) {
            Some(diversion) => Some(diversion.to.clone()),
            None => Some(path.to_owned()),
        }
    }
}

/// Where the file of a package is written: a configuration file waits beside its place.
pub(crate) fn place(before: &Before, package: &Installed, path: &Path) -> Option<PathBuf> {
    let place = before.place(&package.paragraph, path)?;
    if !before.is_configured || !package.conffiles().any(|conffile| conffile == path) {
        return Some(place);
    }
    let mut name = place.into_os_string();
    name.push(".dpkg-new");
    Some(PathBuf::from(name))
}

/// Whether files of `other` may be taken by `package`.
pub(crate) fn replaces(package: &Paragraph, other: &Paragraph) -> bool {
    let arch = package.get("Architecture").unwrap_or_default();
    let named = other.get("Package").unwrap_or_default();
    let version = other.get("Version").unwrap_or_default();
    let provided = relations(other.get("Provides").unwrap_or_default(), arch);
    relations(package.get("Replaces").unwrap_or_default(), arch)
        .iter()
        .flatten()
        .any(|relation| {
            let provides = || {
                let mut all = provided.iter().flatten();
                relation.version.is_none() && all.any(|other| other.name == relation.name)
            };
            relation.name == named && relation.admits(version) || provides()
        })
}

/// The name of the package's files below `info`: those of more than one architecture carry theirs.
pub(crate) fn info_name(paragraph: &Paragraph) -> String {
    let name = paragraph.get("Package").unwrap_or_default();
    match (paragraph.get("Multi-Arch"), paragraph.get("Architecture")) {
        (Some("same"), Some(arch)) => format!("{name}:{arch}"),
        _ => name.to_owned(),
    }
}

/// Adds the packages, unpacked and not configured.
pub(crate) fn add(
    upper_dir: &UpperDir,
    before: &Before,
    installed: &[&Installed],
    taken: &BTreeMap<String, BTreeSet<PathBuf>>,
) -> Result<(), BakeError> {
    let failed = BakeError::io(upper_dir.upper().join(DPKG));
    write_all(upper_dir, before, installed, taken).map_err(failed)
}

fn write_all(
    upper_dir: &UpperDir,
    before: &Before,
    installed: &[&Installed],
    taken: &BTreeMap<String, BTreeSet<PathBuf>>,
) -> io::Result<()> {
    let dpkg = Path::new(DPKG);
    for name in ["info", "updates", "triggers", "alternatives", "parts"] {
        upper_dir.make_folder(&dpkg.join(name))?;
    }
    let mut status = upper_dir.read_text("var/lib/dpkg/status")?;
    if !status.is_empty() && !status.ends_with("\n\n") {
        status.push('\n');
    }
    let mut file_triggers = upper_dir.read_text("var/lib/dpkg/triggers/File")?;
    let mut named_triggers: BTreeMap<String, String> = BTreeMap::new();
    let mut activated: BTreeSet<&Path> = BTreeSet::new();
    for one in installed {
        let info = info_name(&one.paragraph);
        let mut paragraph = one.paragraph.clone();
        paragraph.set("Status", "install ok unpacked");
        let conffiles = conffiles(upper_dir, before, one)?;
        if !conffiles.is_empty() {
            paragraph.set("Conffiles", &conffiles);
        }
        status.push_str(&paragraph.write());
        status.push('\n');
        let list = list(one.unpacked.paths.iter().map(PathBuf::as_path));
        upper_dir.write(&dpkg.join(format!("info/{info}.list")), &list, 0o644)?;
        for (name, bytes) in &one.control {
            if name == "control" {
                continue;
            }
            let script =
                ["preinst", "postinst", "prerm", "postrm", "config"].contains(&name.as_str());
            let path = dpkg.join(format!("info/{info}.{name}"));
            upper_dir.write(&path, bytes, if script { 0o755 } else { 0o644 })?;
        }
        for path in &one.unpacked.paths {
            let above = path
                .ancestors()
                .filter_map(|path| before.interests.get(path));
            activated.extend(above.map(PathBuf::as_path));
        }
        let triggers = one
            .control
            .get("triggers")
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        for line in triggers.unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else {
                continue;
            };
            let Some(rest) = directive.strip_prefix("interest") else {
                continue;
            };
            let wait = if rest == "-noawait" { "/noawait" } else { "" };
            if trigger.starts_with('/') {
                file_triggers.push_str(&format!("{trigger} {info}{wait}\n"));
            } else {
                named_triggers
                    .entry(trigger.to_owned())
                    .or_default()
                    .push_str(&format!("{info}{wait}\n"));
            }
        }
    }
    // Files that others' packages had, and that the new ones replace.
    for (info, gone) in taken {
        let path = dpkg.join(format!("info/{info}.list"));
        let before = upper_dir.read(&path)?.unwrap_or_default();
        let kept = listed(&before).filter(|path| !gone.contains(*path));
        // `/.` is the root itself.
        let kept = list(kept.map(|path| {
            if path == Path::new(".") {
                Path::new("")
            } else {
                path
            }
        }));
        upper_dir.write(&path, &kept, 0o644)?;
    }
    upper_dir.write(&dpkg.join("status"), status.as_bytes(), 0o644)?;
    if upper_dir.read(&dpkg.join("available"))?.is_none() {
        upper_dir.write(&dpkg.join("available"), b"", 0o644)?;
        upper_dir.write(&dpkg.join("info/format"), b"1\n", 0o644)?;
    }
    let triggers = dpkg.join("triggers");
    upper_dir.write(&triggers.join("File"), file_triggers.as_bytes(), 0o644)?;
    for (name, packages) in named_triggers {
        let path = triggers.join(name);
        let there = upper_dir.read_text(&path.to_string_lossy())?;
        upper_dir.write(&path, (there + &packages).as_bytes(), 0o644)?;
    }
    if !activated.is_empty() {
        // As dpkg-trigger writes it; `-`: nobody waits for it.
        let mut text = upper_dir.read_text("var/lib/dpkg/triggers/Unincorp")?;
        for path in activated {
            text.push_str(&format!("/{} -\n", path.display()));
        }
        upper_dir.write(&triggers.join("Unincorp"), text.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// A package's list of paths. They are bytes, of which nothing is lost.
fn list<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<u8> {
    let mut list = Vec::new();
    for path in paths {
        let path = path.as_os_str().as_bytes();
        list.extend_from_slice(if path.is_empty() { b"/." } else { b"/" });
        list.extend_from_slice(path);
        list.push(b'\n');
    }
    list
}

/// The paths of such a list.
fn listed(list: &[u8]) -> impl Iterator<Item = &Path> {
    let lines = list.split(|byte| *byte == b'\n');
    lines.filter(|line| !line.is_empty()).map(|line| {
        let first = line.iter().position(|byte| *byte != b'/');
        Path::new(OsStr::from_bytes(&line[first.unwrap_or(line.len())..]))
    })
}

fn conffiles(upper_dir: &UpperDir, before: &Before, one: &Installed) -> io::Result<String> {
    let mut field = String::new();
    for path in one.conffiles() {
        if before.is_configured {
            field.push_str(&format!("\n /{} newconffile", path.display()));
            continue;
        }
        let bytes = match in_root::bytes(upper_dir.upper(), &upper_dir.place(&merged(path))?) {
            // Another package has it, or it is left out.
            Err(error) if in_root::is_absent(&error) => continue,
            bytes => bytes?,
        };
        let sum = Md5::digest(bytes);
        let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        field.push_str(&format!("\n /{} {hex}", path.display()));
    }
    Ok(field)
}

/// Owners and modes that an administrator, or here a script, wants in place of a package's (dpkg-statoverride(1)).
pub(crate) fn override_modes(upper_dir: &UpperDir, installed: &[&Installed]) -> io::Result<()> {
    let text = upper_dir.read_text("var/lib/dpkg/statoverride")?;
    if text.is_empty() {
        return Ok(());
    }
    let (passwd, group) = (
        upper_dir.read_text("etc/passwd")?,
        upper_dir.read_text("etc/group")?,
    );
    let number = |text: &str, name: &str| -> Option<u32> {
        if let Some(number) = name.strip_prefix('#') {
            return number.parse().ok();
        }
        let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        lines.find(|fields| fields[0] == name)?.get(2)?.parse().ok()
    };
    for line in text.lines() {
        // As dpkg has it, which does nothing more then.
        let invalid = || {
            let why = format!("var/lib/dpkg/statoverride: no user, group, mode and path: {line}");
            io::Error::new(io::ErrorKind::InvalidData, why)
        };
        let words: Vec<_> = line.splitn(4, ' ').collect();
        let [user, owner, mode, path] = words[..] else {
            return Err(invalid());
        };
        let uid = number(&passwd, user).ok_or_else(invalid)?;
        let gid = number(&group, owner).ok_or_else(invalid)?;
        let mode = u32::from_str_radix(mode, 8).map_err(|_| invalid())?;
        let path = Path::new(path.trim_start_matches('/'));
        let mut paths = installed.iter().flat_map(|one| &one.unpacked.paths);
        if paths.any(|listed| listed == path) {
            let target = upper_dir.upper().join(upper_dir.place(&merged(path))?);
            chown(&target, Some(uid), Some(gid))?;
            fs::set_permissions(&target, Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_bytes_stay_what_they_are() {
        let paths = [&b""[..], b"etc", b"usr/share/caf\xe9"];
        let paths = paths.map(|path| Path::new(OsStr::from_bytes(path)));
        let written = list(paths.into_iter());
        assert_eq!(written, b"/.\n/etc\n/usr/share/caf\xe9\n");
        let read: Vec<_> = listed(&written).collect();
        assert_eq!(read, [Path::new("."), paths[1], paths[2]]);
    }
}
